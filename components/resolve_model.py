"""Which model a word names."""

from typing import NamedTuple

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def resolve_model(model: str) -> NamedTuple("Model", checkpoint_uri=str, weights=str, data_uri=str, tracking_run_id=str):  # type: ignore[valid-type]
    """Finds a model by registry alias, run or checkpoint.

    Args:
        model: models:/NAME@ALIAS, a run's directory, or a checkpoint's directory inside a run's.

    Returns:
        Its checkpoint and weights, the data set that it was trained on, and its MLflow run.
    """
    from components.nightly_run import resolve_model

    return resolve_model(model)

"""The model of a nightly check."""

from typing import NamedTuple

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def resolve_model(model: str, storage_root_uri: str, pipeline_run_id: str) -> NamedTuple(  # type: ignore[valid-type]
    "Model", checkpoint_uri=str, weights=str, data_uri=str, tracking_run_id=str
):
    """Find a model by registry alias, run or checkpoint.

    Args:
        model: models:/NAME@ALIAS, a run's directory, or a checkpoint's directory inside a run's.
        storage_root_uri: The storage root.
        pipeline_run_id: ID of this run of the pipeline. It names this check.

    Returns:
        Its checkpoint and weights, the data set that it was trained on, and its MLflow run.
    """
    from components.launch.logs import pipeline_log_stored
    from components.steps.nightly import reporting_failure, resolve_model
    from training import storage

    purpose = f"nightly-{pipeline_run_id}"
    log = pipeline_log_stored(storage_root_uri, pipeline_run_id, "resolve-model")
    with log, reporting_failure(model, "", storage_root_uri, purpose):
        return storage.retry(lambda: resolve_model(model))

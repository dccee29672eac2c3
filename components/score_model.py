"""A fresh score of a model."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def score_model(
    metrics: dsl.Output[dsl.Metrics], checkpoint_uri: str, weights: str, data_uri: str, storage_root_uri: str, purpose: str
) -> str:
    """Evaluates a model anew, with noise of its own.

    Args:
        metrics: The numbers.
        checkpoint_uri: What to evaluate.
        weights: Which weights; empty takes the first average.
        data_uri: The data set that it was trained on.
        storage_root_uri: Where reference statistics are kept.
        purpose: Names the draw and the result.

    Returns:
        URI of the result.
    """
    from components.nightly_run import score_model

    return score_model(checkpoint_uri, weights, data_uri, storage_root_uri, purpose, log_metric=metrics.log_metric)

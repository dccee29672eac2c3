"""A fresh score of a model."""

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def score_model(
    metrics: dsl.Output[dsl.Metrics],
    checkpoint_uri: str,
    weights: str,
    data_uri: str,
    baseline_nights: int,
    min_difference: float,
    storage_root_uri: str,
    pipeline_run_id: str,
    resources: str,
) -> str:
    """Evaluate a model again, with new noise.

    Args:
        metrics: The numbers.
        checkpoint_uri: The checkpoint.
        weights: Name of the weights; empty takes the first average.
        data_uri: The data set that it was trained on.
        baseline_nights: Number of healthy scores that make the first baseline.
        min_difference: A smaller change does not matter, in units of the distance.
        storage_root_uri: The storage root.
        pipeline_run_id: ID of this run of the pipeline. It names the result and seeds the noise.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        URI of the result.
    """
    from components.launch.logs import pipeline_log_stored
    from components.launch.run import run_step
    from components.steps.evaluate import log_result
    from components.steps.nightly import reporting_failure
    from components.steps.registry import SCORE
    from training import storage

    purpose = f"nightly-{pipeline_run_id}"
    arguments = {
        "checkpoint_uri": checkpoint_uri,
        "weights": weights,
        "data_uri": data_uri,
        "baseline_nights": baseline_nights,
        "min_difference": min_difference,
        "storage_root_uri": storage_root_uri,
        "purpose": purpose,
    }
    log = pipeline_log_stored(storage_root_uri, pipeline_run_id, "score-model")
    with log, reporting_failure(checkpoint_uri, weights, storage_root_uri, purpose):
        uri = run_step(SCORE, arguments, resources)
    return storage.retry(lambda: log_result(uri, metrics.log_metric))

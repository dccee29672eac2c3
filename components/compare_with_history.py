"""The judgement of a nightly score."""

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def compare_with_history(
    page: dsl.Output[dsl.HTML],
    evaluation_uri: str,
    tracking_run_id: str,
    baseline_nights: int,
    min_difference: float,
    storage_root_uri: str,
    pipeline_run_id: str,
) -> str:
    """Judge a score by the model's history, and fail if the model has become worse.

    Args:
        page: The page of this night.
        evaluation_uri: The score.
        tracking_run_id: The model's MLflow run.
        baseline_nights: Number of healthy scores that make the first baseline.
        min_difference: A smaller change does not matter, in units of the distance.
        storage_root_uri: The storage root.
        pipeline_run_id: ID of this run of the pipeline.

    Returns:
        The judgement in one sentence.
    """
    from components.launch.logs import pipeline_log_stored
    from components.steps.nightly import compare_with_history
    from training import storage

    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "compare-with-history"):
        return storage.retry(
            lambda: compare_with_history(
                evaluation_uri, tracking_run_id, baseline_nights, min_difference, storage_root_uri, page_path=page.path
            )
        )

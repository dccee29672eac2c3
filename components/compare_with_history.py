"""The verdict on a nightly score."""

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def compare_with_history(
    page: dsl.Output[dsl.HTML], evaluation_uri: str, tracking_run_id: str, num_standard_errors: float, min_difference: float
) -> str:
    """Compare a score with the model's history and fail on a regression, naming both numbers.

    Args:
        page: The comparison.
        evaluation_uri: The score.
        tracking_run_id: The model's MLflow run, which keeps the history.
        num_standard_errors: A difference of fewer standard errors than this is noise.
        min_difference: A smaller difference does not matter, in units of the distance.

    Returns:
        The verdict in one sentence.
    """
    from components.steps.nightly import compare_with_history

    return compare_with_history(evaluation_uri, tracking_run_id, num_standard_errors, min_difference, page_path=page.path)

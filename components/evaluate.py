"""The reported numbers of a trained run."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate(run_uri: str, data_uri: str, reference_uri: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Evaluates a run's best checkpoint by its experiment's protocol, notes the numbers and registers the model.

    Args:
        run_uri: The run's directory.
        data_uri: The data set.
        reference_uri: Reference statistics.
        metrics: The numbers.

    Returns:
        URI of the result.
    """
    from components.evaluation_run import evaluate_run

    return evaluate_run(run_uri, data_uri, reference_uri, log_metric=metrics.log_metric)

"""The reported numbers of a trained run."""

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate(metrics: dsl.Output[dsl.Metrics], run_uri: str, data_uri: str, reference_uri: str, resources: str) -> str:
    """Evaluate a run's best checkpoint by its experiment's protocol, log the numbers and register the model.

    Args:
        metrics: The numbers.
        run_uri: The run's directory.
        data_uri: The data set.
        reference_uri: Reference statistics.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        URI of the result.
    """
    from components.launch.run import run_step
    from components.steps.evaluate import log_result
    from components.steps.registry import EVALUATE

    uri = run_step(EVALUATE, {"run_uri": run_uri, "data_uri": data_uri, "reference_uri": reference_uri}, resources)
    return log_result(uri, metrics.log_metric)

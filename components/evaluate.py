"""The reported numbers of a trained run."""

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate(
    metrics: dsl.Output[dsl.Metrics],
    run_uri: str,
    data_uri: str,
    reference_uri: str,
    pipeline_run_id: str,
    resources: str,
    force_from: str = "",
) -> str:
    """Evaluate a run's best checkpoint by its experiment's protocol, log the numbers and register the model.

    Args:
        metrics: The numbers.
        run_uri: The run's directory.
        data_uri: The data set.
        reference_uri: Reference statistics.
        pipeline_run_id: ID of this run of the pipeline.
        resources: Resources of the stage; see `components.launch.resources`.
        force_from: "evaluate" evaluates again what is evaluated.

    Returns:
        URI of the result.
    """
    from components.launch.run import run_step
    from components.steps.evaluate import log_result
    from components.steps.registry import EVALUATE
    from training import storage

    arguments = {"run_uri": run_uri, "data_uri": data_uri, "reference_uri": reference_uri}
    uri = run_step(EVALUATE, {**arguments, "pipeline_run_id": pipeline_run_id, "force_from": force_from}, resources)
    return storage.retry(lambda: log_result(uri, metrics.log_metric))

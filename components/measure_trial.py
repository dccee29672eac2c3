"""The measures of one trial of an ablation."""

from typing import Any, Dict  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def measure_trial(
    metrics: dsl.Output[dsl.Metrics],
    item: Dict[str, Any],  # noqa: UP006
    run_uri: str,
    pipeline_run_id: str,
    resources: str,
) -> str:
    """Measure a trained trial, and write its record where the report reads it.

    Args:
        metrics: The reported numbers, if the trial has them.
        item: The trial; see `components.ablations.directory.loop_item`.
        run_uri: The run's directory.
        pipeline_run_id: ID of this run of the pipeline.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        URI of the trial's record.
    """
    from components.ablations.registry import MEASURE
    from components.ablations.steps import log_record
    from components.launch.run import run_step
    from training import storage

    uri = run_step(MEASURE, {"item": item, "run_uri": run_uri, "pipeline_run_id": pipeline_run_id}, resources)
    return storage.retry(lambda: log_record(uri, metrics.log_metric))

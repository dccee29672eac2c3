"""What an ablation takes of one trial."""

from typing import Any, Dict  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def measure_trial(
    metrics: dsl.Output[dsl.Metrics],
    item: Dict[str, Any],  # noqa: UP006
    run_uri: str,
    pipeline_run_id: str,
    num_workers: int,
    num_gpus_per_worker: int,
    ray_mode: str,
    ray_address: str,
    ray_queue: str,
    rayjob_options: Dict[str, Any],  # noqa: UP006
) -> str:
    """Measures a trained trial, and notes what was found where the report finds it.

    Args:
        metrics: The reported numbers, where it takes them.
        item: Of the plan.
        run_uri: The run's directory.
        pipeline_run_id: Of this run of the pipeline.
        num_workers: Processes that draw samples at once; 1 works in this one.
        num_gpus_per_worker: 1 works on GPUs, 0 on the CPU.
        ray_mode: "local" runs Ray in this step, "rayjob" on a cluster that KubeRay makes for it, "address" on one that stands.
        ray_address: With "address", where that cluster is.
        ray_queue: With "rayjob", Kueue's local queue.
        rayjob_options: With "rayjob", what the cluster should be.

    Returns:
        URI of the trial's record.
    """
    from components.ablations.registry import MEASURE
    from components.ablations.steps import log_record
    from components.launch.modes import run_in_mode

    uri = run_in_mode(
        MEASURE,
        {
            "item": item,
            "run_uri": run_uri,
            "resources": {"num_workers": num_workers, "num_gpus_per_worker": num_gpus_per_worker},
            "pipeline_run_id": pipeline_run_id,
        },
        ray_mode=ray_mode,
        ray_address=ray_address,
        ray_queue=ray_queue,
        rayjob_options=rayjob_options,
    )
    return log_record(uri, metrics.log_metric)

"""The reported numbers of a trained run."""

from typing import Any, Dict  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate(
    metrics: dsl.Output[dsl.Metrics],
    run_uri: str,
    data_uri: str,
    reference_uri: str,
    num_workers: int,
    num_gpus_per_worker: int,
    ray_mode: str,
    ray_address: str,
    ray_queue: str,
    rayjob_options: Dict[str, Any],  # noqa: UP006
) -> str:
    """Evaluates a run's best checkpoint by its experiment's protocol, notes the numbers and registers the model.

    Args:
        metrics: The numbers.
        run_uri: The run's directory.
        data_uri: The data set.
        reference_uri: Reference statistics.
        num_workers: Processes that draw samples at once; 1 works in this one.
        num_gpus_per_worker: 1 works on GPUs, 0 on the CPU.
        ray_mode: "local" runs Ray in this step, "rayjob" on a cluster that KubeRay makes for it, "address" on one that stands.
        ray_address: With "address", where that cluster is.
        ray_queue: With "rayjob", Kueue's local queue.
        rayjob_options: With "rayjob", what the cluster should be.

    Returns:
        URI of the result.
    """
    from components.launch.modes import run_in_mode
    from components.steps.evaluate import log_result
    from components.steps.registry import EVALUATE

    uri = run_in_mode(
        EVALUATE,
        {
            "run_uri": run_uri,
            "data_uri": data_uri,
            "reference_uri": reference_uri,
            "resources": {"num_workers": num_workers, "num_gpus_per_worker": num_gpus_per_worker},
        },
        ray_mode=ray_mode,
        ray_address=ray_address,
        ray_queue=ray_queue,
        rayjob_options=rayjob_options,
    )
    return log_result(uri, metrics.log_metric)

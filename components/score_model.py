"""A fresh score of a model."""

from typing import Any, Dict  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def score_model(
    metrics: dsl.Output[dsl.Metrics],
    checkpoint_uri: str,
    weights: str,
    data_uri: str,
    storage_root_uri: str,
    pipeline_run_id: str,
    num_workers: int,
    num_gpus_per_worker: int,
    ray_mode: str,
    ray_address: str,
    ray_queue: str,
    rayjob_options: Dict[str, Any],  # noqa: UP006
) -> str:
    """Evaluates a model anew, with noise of its own.

    Args:
        metrics: The numbers.
        checkpoint_uri: What to evaluate.
        weights: Which weights; empty takes the first average.
        data_uri: The data set that it was trained on.
        storage_root_uri: Where everything is kept.
        pipeline_run_id: ID of this run of the pipeline. It names the draw and the result.
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
    from components.steps.nightly import reporting_failure
    from components.steps.registry import SCORE

    purpose = f"nightly-{pipeline_run_id}"
    arguments = {
        "checkpoint_uri": checkpoint_uri,
        "weights": weights,
        "data_uri": data_uri,
        "storage_root_uri": storage_root_uri,
        "purpose": purpose,
        "resources": {"num_workers": num_workers, "num_gpus_per_worker": num_gpus_per_worker},
    }
    with reporting_failure(checkpoint_uri, weights, storage_root_uri, purpose):
        uri = run_in_mode(SCORE, arguments, ray_mode=ray_mode, ray_address=ray_address, ray_queue=ray_queue, rayjob_options=rayjob_options)
    return log_result(uri, metrics.log_metric)

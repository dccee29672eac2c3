"""The training of one trial of an ablation."""

from typing import Any, Dict  # noqa: UP035 - kfp copies the annotation into a file that has this name only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def train_trial(
    item: Dict[str, Any],  # noqa: UP006
    storage_root_uri: str,
    tracking_experiment: str,
    pipeline_run_id: str,
    num_workers: int,
    min_workers: int,
    num_gpus_per_worker: int,
    microbatch_size: int,
    precision: str,
    use_compile: bool,
    cache_dir: str,
    resident_data: bool,
    ray_mode: str,
    ray_address: str,
    ray_queue: str,
    rayjob_options: Dict[str, Any],  # noqa: UP006
) -> str:
    """Trains a trial as the train step trains an experiment, unless it is done, or looks at a run that exists.

    Args:
        item: Of the plan.
        storage_root_uri: Where everything is kept.
        tracking_experiment: MLflow experiment.
        pipeline_run_id: Of this run of the pipeline.
        num_workers: Data-parallel workers.
        min_workers: As few as this go on where machines are lost; 0 insists on `num_workers`.
        num_gpus_per_worker: 1 trains on GPUs, 0 on the CPU.
        microbatch_size: Images a worker passes through the network at once; 0 takes its whole share.
        precision: "fp32" or "bf16".
        use_compile: Pass the network through torch.compile.
        cache_dir: Where data is staged on a node's disk; empty is a temporary directory.
        resident_data: Keep the whole data set in each training device's memory.
        ray_mode: "local" runs Ray in this step, "rayjob" on a cluster that KubeRay makes for the run, "address" on one that stands.
        ray_address: With "address", where that cluster is.
        ray_queue: With "rayjob", Kueue's local queue.
        rayjob_options: With "rayjob", what the cluster should be.

    Returns:
        URI of the run's directory.
    """
    from components.ablations.steps import train_trial
    from components.launch.modes import run_in_mode
    from components.steps.registry import TRAIN

    def train() -> str:
        uri: str = run_in_mode(
            TRAIN,
            {
                "experiment_preset": item["experiment_preset"],
                "experiment_overrides": item["overrides"],
                "data_uri": item["data_uri"],
                "reference_uri": item["reference_uri"],
                "storage_root_uri": storage_root_uri,
                "tracking_experiment": tracking_experiment,
                "pipeline_run_id": pipeline_run_id,
                "resources": {
                    "num_workers": num_workers,
                    "min_workers": min_workers,
                    "num_gpus_per_worker": num_gpus_per_worker,
                    "microbatch_size": microbatch_size,
                    "precision": precision,
                    "compile": use_compile,
                    "cache_dir": cache_dir,
                    "resident_data": resident_data,
                },
            },
            ray_mode=ray_mode,
            ray_address=ray_address,
            ray_queue=ray_queue,
            rayjob_options=rayjob_options,
        )
        return uri

    return train_trial(item, train, pipeline_run_id=pipeline_run_id)

"""The measurement of several trials together: an ensemble or a cascade."""

from typing import Any, Dict, List  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def joint_measure(
    ablation_name: str,
    ablation_scale: str,
    ablation_grid: Dict[str, Any],  # noqa: UP006
    ablation_runs: Dict[str, Any],  # noqa: UP006
    experiment_preset: str,
    experiment_objective: str,
    experiment_overrides: List[str],  # noqa: UP006
    storage_root_uri: str,
    num_workers: int,
    num_gpus_per_worker: int,
    ray_mode: str,
    ray_address: str,
    ray_queue: str,
    rayjob_options: Dict[str, Any],  # noqa: UP006
) -> str:
    """Measures an ensemble or a cascade of the trials, where the ablation has one; otherwise does nothing.

    Args:
        ablation_name: Which ablation, or what a grid of one's own is called.
        ablation_scale: "paper" or "tiny".
        ablation_grid: One's own grid, path -> values.
        ablation_runs: Role -> run or checkpoint to look at.
        experiment_preset: Another experiment to vary.
        experiment_objective: Another objective for every trial.
        experiment_overrides: Overrides of every trial.
        storage_root_uri: Where everything is kept.
        num_workers: Processes that draw samples at once; 1 works in this one.
        num_gpus_per_worker: 1 works on GPUs, 0 on the CPU.
        ray_mode: "local" runs Ray in this step, "rayjob" on a cluster that KubeRay makes for it, "address" on one that stands.
        ray_address: With "address", where that cluster is.
        ray_queue: With "rayjob", Kueue's local queue.
        rayjob_options: With "rayjob", what the cluster should be.

    Returns:
        URI of the record; empty where the ablation has no joint measurement.
    """
    from components.ablations.directory import ablation_uri
    from components.ablations.registry import JOINT
    from components.launch.modes import run_in_mode
    from evaluation.ablations.definitions.request import from_form

    request = from_form(
        ablation_name, ablation_scale, ablation_grid, ablation_runs, experiment_preset, experiment_objective, experiment_overrides
    )
    if request.ablation().joint == "none":
        return ""
    uri: str = run_in_mode(
        JOINT,
        {
            "ablation_uri": ablation_uri(request, storage_root_uri),
            "resources": {"num_workers": num_workers, "num_gpus_per_worker": num_gpus_per_worker},
        },
        ray_mode=ray_mode,
        ray_address=ray_address,
        ray_queue=ray_queue,
        rayjob_options=rayjob_options,
    )
    return uri

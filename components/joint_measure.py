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
    resources: str,
) -> str:
    """Measure an ensemble or a cascade of the trials, where the ablation has one; otherwise does nothing.

    Args:
        ablation_name: Name of the ablation, or of a grid of one's own.
        ablation_scale: "paper" or "tiny".
        ablation_grid: One's own grid, path -> values.
        ablation_runs: Role -> run or checkpoint to look at.
        experiment_preset: Another experiment to vary.
        experiment_objective: Another objective for every trial.
        experiment_overrides: Overrides of every trial.
        storage_root_uri: Where everything is kept.
        resources: Resources of the stage; see `components.launch.resources`.

    Returns:
        URI of the record; empty where the ablation has no joint measurement.
    """
    from components.ablations.directory import ablation_uri
    from components.ablations.registry import JOINT
    from components.launch.run import run_step
    from evaluation.ablations.definitions.request import from_form

    request = from_form(
        ablation_name, ablation_scale, ablation_grid, ablation_runs, experiment_preset, experiment_objective, experiment_overrides
    )
    if request.ablation().joint == "none":
        return ""
    uri: str = run_step(JOINT, {"ablation_uri": ablation_uri(request, storage_root_uri)}, resources)
    return uri

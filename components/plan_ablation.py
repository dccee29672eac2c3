"""The plan of an ablation: the list of trials that the pipeline loops over, and the ablation's run in MLflow."""

from typing import Any, Dict, List  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def plan_ablation(
    ablation_name: str,
    ablation_scale: str,
    ablation_grid: Dict[str, Any],  # noqa: UP006
    ablation_options: Dict[str, Any],  # noqa: UP006
    experiment_preset: str,
    experiment_objective: str,
    experiment_overrides: List[str],  # noqa: UP006
    data_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
    pipeline_run_id: str,
) -> list[dict[str, str]]:
    """List the trials of an ablation, each checked.

    Args:
        ablation_name: Name of the ablation, or own-grid.
        ablation_scale: "paper", "small" or "tiny".
        ablation_grid: Axes of an own grid, path -> values.
        ablation_options: See `evaluation.ablations.definitions.request.AblationOptions`.
        experiment_preset: Another experiment to vary.
        experiment_objective: Another objective for every trial.
        experiment_overrides: Overrides of every trial.
        data_uri: Directory of the data set, for an ablation with a single one.
        storage_root_uri: The storage root.
        tracking_experiment: MLflow's experiment.
        pipeline_run_id: ID of this run of the pipeline.

    Returns:
        An item for each trial, see `components.ablations.directory.loop_item`: inside a loop kfp.local takes the output of any
        other step for the loop's item. No field may be called `name`: kfp would lose it.
    """
    from components.ablations.directory import loop_item
    from components.ablations.planning import plan
    from components.launch.logs import pipeline_log_stored
    from evaluation.ablations.definitions.request import from_form
    from training import storage

    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "plan-ablation"):
        request = from_form(
            ablation_name, ablation_scale, ablation_grid, ablation_options, experiment_preset, experiment_objective, experiment_overrides
        )
        found: list[Any] = storage.retry(
            lambda: plan(request, storage_root_uri, tracking_experiment, data_uri=data_uri, pipeline_run_id=pipeline_run_id)
        )
        return [loop_item(item) for item in found]

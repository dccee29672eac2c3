"""The report of an ablation, also of one whose trials failed."""

from typing import Any, Dict, List  # noqa: UP035 - kfp copies the annotation into a file that has these names only

from kfp import dsl

from components.container.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def tabulate_ablation(
    status: dsl.PipelineTaskFinalStatus,
    page: dsl.Output[dsl.HTML],
    pipeline_run_id: str,
    ablation_name: str,
    ablation_scale: str,
    ablation_grid: Dict[str, Any],  # noqa: UP006
    ablation_options: Dict[str, Any],  # noqa: UP006
    experiment_preset: str,
    experiment_objective: str,
    experiment_overrides: List[str],  # noqa: UP006
    storage_root_uri: str,
) -> str:
    """Collect the results of the trials into one page, in S3, KFP and MLflow; it names the trials that failed.

    Args:
        status: How the trials ended.
        page: The report.
        pipeline_run_id: ID of this run of the pipeline.
        ablation_name: Name of the ablation, or own-grid.
        ablation_scale: "paper", "small" or "tiny".
        ablation_grid: Axes of an own grid, path -> values.
        ablation_options: See `evaluation.ablations.definitions.request.AblationOptions`.
        experiment_preset: Another experiment to vary.
        experiment_objective: Another objective for every trial.
        experiment_overrides: Overrides of every trial.
        storage_root_uri: The storage root.

    Returns:
        URI of the report; empty where the run ended before the ablation was planned.
    """
    from components.ablations.close import finish_ablation
    from components.launch.logs import pipeline_log_stored
    from components.steps.close import finish_unread
    from evaluation.ablations.definitions.request import from_form
    from training import storage
    from training.config.errors import UserError

    with pipeline_log_stored(storage_root_uri, pipeline_run_id, "tabulate-ablation"):
        try:
            request = from_form(
                ablation_name,
                ablation_scale,
                ablation_grid,
                ablation_options,
                experiment_preset,
                experiment_objective,
                experiment_overrides,
            )
            request.trials()  # the steps before have refused what it refuses
        except UserError:
            name = f"ablation {ablation_name}"
            return storage.retry(lambda: finish_unread(status.state, pipeline_run_id, storage_root_uri, name=name))
        return storage.retry(lambda: finish_ablation(status.state, pipeline_run_id, request, storage_root_uri, page_path=page.path))

"""The last step of a sweep's pipeline: it closes the MLflow runs of the trials and makes the report."""

from __future__ import annotations

from components.ablations.directory import ablation_uri
from components.ablations.report import make_report
from components.steps.close import close_runs
from evaluation.ablations.definitions.request import AblationRequest


def finish_ablation(
    state: str,
    pipeline_run_id: str,
    request: AblationRequest,
    storage_root_uri: str,
    page_path: str,
) -> str:
    """Close the MLflow runs of trials that were left open, then make the report of all trials.

    Args:
        state: The state that KFP gives the exit task; see `components.steps.close`.
        pipeline_run_id: The pipeline's run.
        request: The ablation.
        storage_root_uri: Where the runs are.
        page_path: Local file for the page.

    Returns:
        URI of the report.

    Raises:
        ConfigError: The ablation is not valid, or was never planned.
    """
    close_runs(state, pipeline_run_id)
    return make_report(ablation_uri(request, storage_root_uri), page_path)

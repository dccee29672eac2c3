"""The last step of a sweep's pipeline: it closes the MLflow runs of the trials and makes the report."""

from __future__ import annotations

from components.ablations.directory import ablation_uri, read_plan
from components.ablations.report import collect, make_report
from components.ablations.tracking import TrialTracking
from components.steps.close import close_runs, end_of_run, tell_end
from evaluation.ablations.definitions.request import AblationRequest
from training.console import say
from training.tracking.client import TrackingError
from training.tracking.runs import PIPELINE_RUN_TAG, open_runs


def finish_ablation(state: str, pipeline_run_id: str, request: AblationRequest, storage_root_uri: str, page_path: str) -> str:
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
        UserError: The ablation is not valid, or was never planned.
    """
    uri = ablation_uri(request, storage_root_uri)
    end = end_of_run(state, pipeline_run_id)
    tell_end(end, pipeline_run_id, storage_root_uri)
    _send_records(uri, pipeline_run_id)
    close_runs(end, pipeline_run_id)
    return make_report(uri, page_path)


def _send_records(uri: str, pipeline_run_id: str) -> None:
    """Send MLflow the records that it was away for: those of trials whose runs it still shows as running."""
    plan = read_plan(uri)
    records = {record.label: record for record in collect(uri, plan.request) if not record.error}
    try:
        for run in open_runs(PIPELINE_RUN_TAG, pipeline_run_id):
            label = run.tags.get("iddpm.trial", "")
            if label in records:
                TrialTracking(plan, label, plan.trial(label), pipeline_run_id).finish(records[label])
    except TrackingError as error:
        say(f"{error}; the records of the trials are in {uri}, and MLflow may lack some of them")

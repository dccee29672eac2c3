"""The last step of a sweep's pipeline: it closes the MLflow runs of the trials and makes the report."""

from __future__ import annotations

from typing import Any

from components.ablations.directory import PLAN, Plan, ablation_uri, read_plan
from components.ablations.report import PAGE, collect, make_report
from components.ablations.tracking import finish_trial, metric_points, open_trial
from components.steps.close import close_runs, end_of_run
from components.steps.mlflow_sync import leave_mark, remove_mark
from components.steps.run_messages import tell_end
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.page.gallery import SUMMARY, StoredSummary
from training import storage
from training.console import say
from training.tracking.client import TrackingError
from training.tracking.runs import PIPELINE_RUN_TAG, is_complete, tags_of


def finish_ablation(state: str, pipeline_run_id: str, request: AblationRequest, storage_root_uri: str, page_path: str) -> str:
    """Make the report of all trials, and close the MLflow runs of trials that were left open; return the report's URI.

    It is empty where the run ended before the sweep was planned.
    """
    uri = ablation_uri(request, storage_root_uri)
    end = end_of_run(state, pipeline_run_id)
    name = f"ablation {request.name}"
    if not end.succeeded:
        tell_end(end, pipeline_run_id, storage_root_uri, name=name)
    try:
        if not storage.exists(storage.join(uri, PLAN)):
            return ""
        update_ablation(uri, page_path, cancelled=end.cancelled)
    finally:
        close_runs(end, pipeline_run_id)
    if end.succeeded:
        tell_end(end, pipeline_run_id, storage_root_uri, name=name, numbers=ablation_numbers(uri))
    return storage.join(uri, PAGE)


def ablation_numbers(ablation_uri: str) -> dict[str, Any]:
    """Return what the report says of the paper's claims, and a line of it."""
    summary = storage.read_json(storage.join(ablation_uri, SUMMARY), StoredSummary)
    lines = [f"{each['verdict']}: {each['claim']}" for each in summary["findings"]]
    return {
        "summary": "; ".join(lines) or "the report is made",
        "findings": summary["findings"],
        "report_uri": storage.join(ablation_uri, PAGE),
    }


def update_ablation(ablation_uri: str, page_path: str = "", *, cancelled: bool = False, at_work: bool = False) -> bool:
    """Make the report, and send MLflow the records and the report; if it does not answer, leave a mark for the reaper, and return False.

    Args:
        page_path: Local file for the page; empty writes none.
        cancelled: Whether somebody ended the sweep, so that trials without a record did not fail.
        at_work: See `make_report`.

    Raises:
        UserError: Nothing was planned there.
    """
    try:
        make_report(ablation_uri, page_path, cancelled=cancelled, at_work=at_work)
        _send_records(read_plan(ablation_uri), ablation_uri)
    except TrackingError as error:
        say(f"{error}; {ablation_uri} has everything, and MLflow gets it from the reaper or the same command")
        leave_mark(ablation_uri, {"ablation_uri": ablation_uri, **({"cancelled": "true"} if cancelled else {})})
        return False
    remove_mark(ablation_uri)
    return True


def _send_records(plan: Plan, ablation_uri: str) -> None:
    """Send MLflow the records of trials that it was away for; raise TrackingError if MLflow does not answer."""
    for record in collect(ablation_uri, plan.request):
        if record.error or not record.tracking_run_id or is_complete(record.tracking_run_id, {name for name, _ in metric_points(record)}):
            continue
        pipeline_run_id = tags_of(record.tracking_run_id).get(PIPELINE_RUN_TAG, "")
        trial = plan.trial(record.label)
        if not finish_trial(open_trial(plan, record.label, trial, pipeline_run_id, seed=record.seed), record):
            raise TrackingError(f"MLflow does not answer and lacks the record of {record.label}")

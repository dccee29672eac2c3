"""The report of an ablation from the records of its trials: page, table and figures, in storage and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.ablations.directory import Plan, read_plan
from components.ablations.tracking import comparison_url, parallel_coordinates
from evaluation.ablations.definitions.ablation import label_of
from evaluation.ablations.definitions.paper import names
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.page.gallery import SUMMARY
from evaluation.records.numbers import plain_estimate
from evaluation.reports.study import as_csv
from training import storage
from training.console import say
from training.tracking.client import TrackingError

if TYPE_CHECKING:
    from evaluation.ablations.trials.record import AblationTrial
    from training.tracking.tracked_run import Status, TrackedRun

PAGE = "report.html"
FILES = (PAGE, "table.csv", "table.json", "figure.svg", SUMMARY)
"""The files of a report. Each report has all of them, except the figure, which some ablations lack."""


def make_report(ablation_uri: str, page_path: str = "", *, cancelled: bool = False, at_work: bool = False) -> str:
    """Make page, table and figures from the trials' records, also of failed and missing ones; return the page's URI.

    Args:
        page_path: Local file for a copy of the page; empty writes none.
        cancelled: Whether somebody ended the sweep: its run in MLflow is then closed as KILLED, not as FAILED, where trials are missing.
        at_work: Whether a command may still work on it: where trials are missing, its run in MLflow then stays as it is.

    Raises:
        UserError: Nothing was planned there.
        TrackingError: The report is there, and MLflow, which does not answer, lacks it.
    """
    from evaluation.ablations.claims.findings import findings
    from evaluation.ablations.page.figures import figures
    from evaluation.ablations.page.page import render
    from evaluation.ablations.page.table import table_rows

    plan = read_plan(ablation_uri)
    request, ablation = plan.request, plan.request.ablation()
    records = collect(ablation_uri, request)
    rows = table_rows(request, records)
    drawn, found = figures(request, records, rows), findings("" if request.grid else request.name, records)
    failed = [record.label for record in records if record.error]
    parent, compare_url, mlflow_links = _mlflow_links(plan, records)
    links = {
        **mlflow_links,
        "Directory": ablation_uri,
        **{f"Run of {record.label}": record.run_uri for record in records if record.run_uri},
    }
    page = render(request, records, rows, figures=drawn, findings=found, links=links)
    summary = {
        "name": request.name,
        "title": ablation.title,
        "source": ablation.source,
        "scale": request.scale,
        "changes": [*request.all_changes, *([f"{request.seeds} seeds"] if request.seeds > 1 else [])],
        "order": names().index(request.name) if request.name in names() else len(names()),
        "findings": [finding.to_dict() for finding in found],
        "failed": failed,
        "compare_url": compare_url,
    }
    flat = [row.to_dict() for row in rows]
    table, csv_table = {**summary, "rows": flat}, as_csv(flat)
    uri = storage.join(ablation_uri, PAGE)
    storage.write_bytes(uri, page.encode())
    storage.write_bytes(storage.join(ablation_uri, "table.csv"), csv_table.encode())
    storage.write_json(storage.join(ablation_uri, "table.json"), {**table, "trials": [record.to_dict() for record in records]})
    storage.write_json(storage.join(ablation_uri, SUMMARY), summary)
    if drawn:
        svg = f'<?xml version="1.0" encoding="utf-8"?>\n{drawn[0].svg}'
        storage.write_bytes(storage.join(ablation_uri, "figure.svg"), svg.encode())
    if page_path:
        storage.write_bytes(page_path, page.encode())
    for record in records:
        say(_describe(record))
    for finding in found:
        say(f"{finding.verdict}: {finding.claim} {finding.evidence}")
    if parent is None:
        raise TrackingError(f"MLflow did not answer and lacks the report {uri}")
    parent.log_artifact(page, PAGE)
    parent.log_artifact(csv_table, "table.csv")
    parent.log_artifact(json.dumps(table, indent=2), "table.json")
    parent.set_tags({"iddpm.compare_url": compare_url})
    parent.correct_metrics({("num_finished", 0): len(records) - len(failed), ("num_failed", 0): len(failed)})
    status: Status = "FINISHED" if not failed else "KILLED" if cancelled else "FAILED"
    if not (parent.close() if failed and at_work else parent.finish(status)):
        raise TrackingError(f"MLflow does not answer and lacks the report {uri}")
    return uri


def _mlflow_links(plan: Plan, records: Sequence[AblationTrial]) -> tuple[TrackedRun | None, str, dict[str, str]]:
    """Return the ablation's run, the address of the comparison, and the page's links to MLflow.

    Where MLflow does not answer, the run is None and the only link is the plan's.
    """
    from training.tracking.runs import attach

    try:
        parent = attach(plan.parent_run_id)
        compare_url = comparison_url(plan.request, parent, records)
        links = {"Compare the trials in MLflow": compare_url, **parallel_coordinates(parent, records), "The ablation in MLflow": parent.url}
        return parent, compare_url, links
    except TrackingError as error:
        say(str(error))
        return None, plan.parent_url, {"The ablation in MLflow": plan.parent_url}


def collect(ablation_uri: str, request: AblationRequest) -> list[AblationTrial]:
    """Return a record for every trial, in the plan's order, then for the joint measurement; a missing record counts as failed."""
    from evaluation.ablations.trials.record import AblationTrial, read_record, split_by_seed

    records = []
    for trial in request.trials():
        record = read_record(ablation_uri, trial.label)
        if record is None:
            error = "it left no record: its step did not start or was killed; see the step's log"
            known = {name: getattr(trial, name) for name in ("role", "values", "preset", "own", "seed")}
            record = AblationTrial(label=trial.label, **known, error=error)
        records.append(record)
    role = request.ablation().joint_role
    for seed, of_seed in split_by_seed(records).items() if role else ():
        error = "it needs every trial, and one is missing" if any(record.error for record in of_seed) else "it was not measured yet"
        label = label_of(role, seed)
        records.append(read_record(ablation_uri, label) or AblationTrial(label=label, role=role, error=error, seed=seed))
    return records


def _describe(record: AblationTrial) -> str:
    if record.error:
        return f"{record.label}: failed, {record.error}"
    final = record.final
    if final is None:
        return f"{record.label}: {', '.join(record.measures)}"
    bits_per_dim = (final["likelihood"] or {}).get("bits_per_dim")
    bits = "" if bits_per_dim is None else f", {bits_per_dim:.4f} bits/dim"
    return f"{record.label}: {final['distance_name']} {plain_estimate(final['distance'], None)}{bits}"

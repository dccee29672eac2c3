"""The report of an ablation, from the records that its trials left: page, table, figures, in S3 and in MLflow."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from components.ablations.directory import read_plan
from components.ablations.tracking import comparison_url, side_by_side
from evaluation.ablations.definitions.paper import names
from evaluation.ablations.definitions.request import AblationRequest
from training import storage
from training.console import say

PAGE = "report.html"
FILES = (PAGE, "table.csv", "table.json", "figure.svg", "summary.json")
"""What a report is made of; every file but the figure is always there."""


def make_report(ablation_uri: str, page_path: str = "") -> str:
    """Collects the trials' records into a page, a table and figures; what failed or is missing is named there.

    Args:
        ablation_uri: The ablation's directory.
        page_path: Local file for the page too; empty writes none.

    Returns:
        URI of the page.

    Raises:
        UserError: Nothing was planned there.
    """
    from evaluation.ablations.page.page import parts, render
    from evaluation.ablations.page.table import table_rows
    from training.tracking.runs import attach

    plan = read_plan(ablation_uri)
    request = AblationRequest.from_dict(plan["request"])
    records = collect(ablation_uri, request)
    rows = table_rows(request, records)
    drawn, found = parts(request, records, rows)
    parent = attach(plan["parent_run_id"])
    compare = comparison_url(request, parent, records)
    links = {"Compare the trials in MLflow": compare}
    links |= side_by_side(parent, records)
    links |= {"The ablation in MLflow": parent.url, "Directory": ablation_uri}
    links |= {f"Run of {record.label}": record.run_uri for record in records if record.run_uri}
    page = render(request, records, rows, drawn=drawn, found=found, links=links)
    failed = [record.label for record in records if record.error]
    summary = {
        "name": request.name,
        "title": request.ablation().title,
        "source": request.ablation().source,
        "scale": request.scale,
        "changes": [*([f"preset {request.preset}"] if request.varies_another else []), *request.changes],
        "order": names().index(request.name) if request.name in names() else len(names()),
        "findings": [finding.to_dict() for finding in found],
        "failed": failed,
        "compare_url": compare,
    }
    flat = [row.to_dict() for row in rows]
    uri = storage.join(ablation_uri, PAGE)
    storage.write_bytes(uri, page.encode())
    storage.write_bytes(storage.join(ablation_uri, "table.csv"), _as_csv(flat).encode())
    storage.write_json(
        storage.join(ablation_uri, "table.json"), {**summary, "rows": flat, "trials": [record.to_dict() for record in records]}
    )
    storage.write_json(storage.join(ablation_uri, "summary.json"), summary)
    if drawn:
        storage.write_bytes(storage.join(ablation_uri, "figure.svg"), _standalone(drawn[0].svg).encode())
    if page_path:
        Path(page_path).parent.mkdir(parents=True, exist_ok=True)
        Path(page_path).write_text(page)
    parent.log_text(page, PAGE)
    parent.log_text(_as_csv(flat), "table.csv")
    parent.log_text(json.dumps({**summary, "rows": flat}, indent=2), "table.json")
    parent.set_tags({"iddpm.compare_url": compare})
    parent.log_metrics({"num_finished": len(records) - len(failed), "num_failed": len(failed)}, 0)
    parent.finish("FAILED" if failed else "FINISHED")
    for record in records:
        say(_line(record))
    for finding in found:
        say(f"{finding.verdict}: {finding.claim} {finding.evidence}")
    return uri


def collect(ablation_uri: str, request: AblationRequest) -> list[Any]:
    """A record for every trial, in the plan's order, and for what is taken of several; of one that left none, that it did not."""
    from evaluation.ablations.trials.record import TrialRecord, read_record

    records = []
    for trial in request.trials():
        record = read_record(ablation_uri, trial.label)
        if record is None:
            told = "it left no record: its step did not come so far, or was ended from outside; its log says more"
            record = TrialRecord(label=trial.label, role=trial.role, values=trial.values, preset=trial.preset, own=trial.own, error=told)
        records.append(record)
    joint = {"ensemble": "ensemble", "cascade": "two-stage"}.get(request.ablation().joint)
    if joint is not None:
        record = read_record(ablation_uri, joint)
        missing = "it needs every trial, and one is missing" if any(r.error for r in records) else "it was not taken yet"
        records.append(record or TrialRecord(label=joint, role=joint, error=missing))
    return records


def _as_csv(rows: list[dict[str, Any]]) -> str:
    names_of_columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names_of_columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _standalone(svg: str) -> str:
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg


def _line(record: Any) -> str:
    if record.error:
        return f"{record.label}: failed, {record.error}"
    final = record.final
    if final is None:
        return f"{record.label}: {', '.join(record.measures)}"
    bits = final["likelihood"]["bits_per_dim"] if final["likelihood"] else None
    return f"{record.label}: {final['distance_name']} {final['distance']:.4g}" + (f", {bits:.4f} bits/dim" if bits is not None else "")

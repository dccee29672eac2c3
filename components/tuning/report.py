"""A tuning in MLflow, its report in storage, and its close.

The tuning is one run in MLflow, and the trials' trainings lie below it. No trial has a run beside that of its training.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from components.steps.close import close_runs, end_of_run, find_data
from components.steps.mlflow_sync import call_at_end
from components.steps.run_messages import tell_end
from components.tuning.directory import PLAN, Plan, tuning_uri
from evaluation.reports.study import as_json
from evaluation.tuning.record import TuningTrial, best_of, ranked, read_records
from evaluation.tuning.request import TuneRequest
from training import storage
from training.console import say
from training.tracking.references import TUNING_URI_TAG

if TYPE_CHECKING:
    from training.tracking.tracked_run import Status, TrackedRun

PAGE = "report.html"
BEST = "best.toml"
FILES = (PAGE, "table.json", BEST)
"""The files of a report; the last is there once a trial has finished."""


def open_tuning(key: str, uri: str, request: TuneRequest, tracking_experiment: str, pipeline_run_id: str) -> TrackedRun:
    """Find or create the tuning's run in MLflow, the parent of its trainings."""
    from training.tracking.runs import PIPELINE_RUN_TAG, open_run

    experiment = request.experiment()
    tracked = open_run(
        run_key=key,
        experiment_name=tracking_experiment,
        run_name=f"tune {experiment.name}",
        tags={
            "iddpm.role": "tuning",
            TUNING_URI_TAG: uri,
            "iddpm.preset": experiment.name,
            PIPELINE_RUN_TAG: pipeline_run_id,  # also if empty: the tuning now belongs to whoever continues it
        },
        params={
            "search": {axis.field: word.partition("=")[2] for axis, word in zip(request.axes(), request.search, strict=True)},
            "overrides": " ".join(request.overrides),
            "trials": request.trials,
            **dataclasses.asdict(request.options),
        },
    )
    say(f"tuning {key}, followed at {tracked.url}")
    return tracked


@contextlib.contextmanager
def close_tuning(tracked: TrackedRun, uri: str) -> Iterator[None]:
    """Send MLflow the report at the end of the block, and close the tuning's run, however the block ends."""

    def end(status: Status) -> None:
        make_report(uri)
        for name in FILES:
            if storage.exists(storage.join(uri, name)):
                tracked.log_artifact(storage.read_bytes(storage.join(uri, name)), name)
        if not tracked.finish(status, timeout_seconds=10.0):
            say(f"MLflow does not answer and lacks the report; {uri} has everything, and the same command sends it")

    with call_at_end(end):
        yield


def log_trials(tracked: TrackedRun, records: Sequence[TuningTrial]) -> None:
    """Log the score of each trial and the best up to it to the tuning's run; the step is the trial's number.

    A trial that failed and was run again changes the best of those after it too.
    """
    ordered = sorted(records, key=lambda record: record.number)
    points: dict[tuple[str, int], float] = {}
    for count, record in enumerate(ordered, start=1):
        best = best_of(ordered[:count])
        scores = {"trial_score": record.score, "best_score": best.score if best else None}
        points |= {(name, record.number): score for name, score in scores.items() if score is not None}
    tracked.correct_metrics(points)


def make_report(uri: str, page_path: str = "") -> dict[str, Any]:
    """Write the page, the table and the best trial's experiment file from the records of the trials.

    Args:
        page_path: Local file for a copy of the page; empty writes none.

    Returns:
        The best trial for messages, see `tuning_numbers`.
    """
    from evaluation.tuning.page import render

    plan = storage.read_record(storage.join(uri, PLAN), Plan)
    request, records = plan.request, read_records(uri)
    page = render(request, records, links={"The tuning in MLflow": plan.tracking_url, "Directory": uri})
    storage.write_bytes(storage.join(uri, PAGE), page.encode())
    rows = [dataclasses.asdict(record) for record in ranked(records)]
    storage.write_bytes(storage.join(uri, "table.json"), as_json({"request": request.to_dict(), "trials": rows}))
    if page_path:
        storage.write_bytes(page_path, page.encode())
    if (best := best_of(records)) is not None:
        storage.write_bytes(storage.join(uri, BEST), request.as_file(best.params).encode())
    return tuning_numbers(uri, records)


def tuning_numbers(uri: str, records: Sequence[TuningTrial] | None = None) -> dict[str, Any]:
    """Return the best trial for messages: `summary` and the numbers; empty while none has finished.

    Args:
        uri: The tuning's directory.
        records: The records of its trials; None reads them.
    """
    records = read_records(uri) if records is None else records
    best = best_of(records)
    if best is None:
        return {}
    words = " ".join(f"{field}={value}" for field, value in best.params.items())
    return {"summary": f"best {best.score:.4g} of {len(records)} trials, with {words}", "score": best.score, "params": best.params}


def finish_tuning(state: str, pipeline_run_id: str, request: TuneRequest, data_uri: str, storage_root_uri: str, page_path: str) -> str:
    """Make the report of the trials so far, close the MLflow runs that were left open, and tell the webhook.

    Args:
        state: The state that KFP gives the exit task; see `components.steps.close`.
        data_uri: The data set; empty is its default place.

    Returns:
        URI of the report; empty if there is no data set, and so no tuning.
    """
    end, name = end_of_run(state, pipeline_run_id), f"tuning of {request.experiment().name}"
    close_runs(end, pipeline_run_id)
    if not end.succeeded:
        tell_end(end, pipeline_run_id, storage_root_uri, name=name)
    found = find_data(request.experiment(), data_uri, storage_root_uri)
    uri = tuning_uri(request, found, storage_root_uri) if found else ""
    if not uri or not storage.exists(storage.join(uri, PLAN)):
        return ""
    numbers = make_report(uri, page_path)
    if end.succeeded:
        tell_end(end, pipeline_run_id, storage_root_uri, name=name, numbers=numbers)
    return storage.join(uri, PAGE)

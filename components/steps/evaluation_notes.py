"""An evaluation in MLflow, numbers, protocol card, page and samples: among the records of the run that it is of, else as a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from training import storage

if TYPE_CHECKING:
    from training.tracking.tracked_run import TrackedRun


def note_evaluation(run_uri: str, result_name: str, tracking_run_id: str) -> str:
    """Logs an evaluation to the MLflow run that trained the model.

    It gets a run of its own where there is no such run, and, below that run, where the name was used by another protocol.

    Args:
        run_uri: The run's directory.
        result_name: Which evaluation; its numbers are logged as `<name>/distance` and so on, at the checkpoint's step.
        tracking_run_id: The MLflow run; empty where none is known, as of a published checkpoint.

    Returns:
        The page of the run that has it.

    Raises:
        TrackingError: MLflow can't be reached, goes away, or refuses.
    """
    from components.steps.study_notes import WENT_AWAY, note_study
    from evaluation.records.result import EvaluationResult
    from evaluation.records.run_directory import EVALUATIONS
    from evaluation.reports.report import report_uri
    from evaluation.reports.study import Study
    from training.tracking.runs import TrackingError, attach, whereabouts

    uri = storage.join(run_uri, EVALUATIONS, f"{result_name}.json")
    result = EvaluationResult.from_dict(storage.read_json(uri))
    numbers = result.flat_metrics(result_name)
    sources = [source for source in (report_uri(run_uri, result_name), result.grid_uri, uri) if source and storage.exists(source)]
    files = {source.rpartition("/")[2]: storage.read_bytes(source) for source in sources}
    tracked = attach(tracking_run_id) if tracking_run_id and whereabouts(tracking_run_id) else None
    if tracked is None or _holds_others(tracked, numbers, result.step):
        name = run_uri.rstrip("/").rpartition("/")[2]
        study = Study(
            kind="evaluation",
            title=f"{name}: {result_name}",
            text="\n".join(f"{key.rpartition('/')[2]:<32} {value:.6g}" for key, value in numbers.items()),
            models={name: result.protocol["model"]},
            protocol=result.protocol,
            points={(key, result.step): value for key, value in numbers.items()},
            files=files,
        )
        return note_study(study, [tracked.run_id if tracked else ""])
    tracked.log_metrics(numbers, result.step)
    for file, content in files.items():
        tracked.log_bytes(content, f"evaluations/{file}")
    if not tracked.flush():
        raise TrackingError(WENT_AWAY)
    return tracked.url


def _holds_others(tracked: TrackedRun, numbers: Mapping[str, float], step: int) -> bool:
    """Whether the run has other numbers by these names, of another protocol: they would stay, beside the new card and page."""
    there = {key: dict(tracked.metric_history(key)).get(step) for key in numbers}
    return any(value not in (None, numbers[key]) for key, value in there.items())

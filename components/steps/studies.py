"""Log a study of trained models, or one evaluation, to MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from evaluation.records.run_directory import EVALUATIONS, REPLACED, result_uri
from training import storage
from training.distributed.signals import run_stoppable, stop_flag
from training.tracking.client import TrackingError

if TYPE_CHECKING:
    from evaluation.records.result import EvaluationResult
    from evaluation.reports.study import Study
    from training.tracking.tracked_run import TrackedRun

FINAL = "final"
"""Name of the evaluation whose numbers are the run's."""
DEFAULT_EXPERIMENT = "iddpm"
"""MLflow experiment of a study whose models have no runs; the pipelines' default, too."""
_MLFLOW_AWAY = "MLflow stopped answering before it had everything; the same command sends the rest"
_MAX_NAME_LENGTH = 250  # of a run; MLflow's limit
_MAX_NOTE_LENGTH = 8000  # of a tag; MLflow's limit
_END_OF_NOTE = "\n```"


def log_study(study: Study, tracking_run_ids: Sequence[str]) -> str:
    """Log a study to MLflow as a run of its own, and return its page's address; the same study again finds its run, and adds nothing.

    It is logged when it is done, so no run stays open if the study is interrupted. A study of a single model is a child of
    that model's run; a comparison is in the MLflow experiment of the first of its models that has a run.

    Args:
        tracking_run_ids: The MLflow run of each of its models, in their order; empty where there is none.
    """
    from training.tracking.runs import locate, open_run

    locations = [locate(run_id) if run_id else None for run_id in tracking_run_ids]
    known = [run_id for run_id, location in zip(tracking_run_ids, locations, strict=True) if location]
    links = ", ".join(f"[{name}]({place.url})" for name, place in zip(study.models, locations, strict=True) if place)
    # The links come first, as MLflow hides the end of a long note.
    note = f"{f'Trained by: {links}' if links else ''}\n\n```\n{study.text}"[: _MAX_NOTE_LENGTH - len(_END_OF_NOTE)] + _END_OF_NOTE
    params = {
        "model": {str(number): f"{name}: {what}" for number, (name, what) in enumerate(study.models.items(), start=1)},
        **{name: value for name, value in study.protocol.items() if name not in ("model", "inputs_sha256")},
    }
    with stop_flag() as stop:
        run = run_stoppable(
            lambda: open_run(
                run_key=study.key,
                experiment_name=next((place.experiment_name for place in locations if place), DEFAULT_EXPERIMENT),
                run_name=study.title[:_MAX_NAME_LENGTH],
                tags={"iddpm.study": study.kind, "iddpm.model_run_ids": ", ".join(dict.fromkeys(known)), "mlflow.note.content": note},
                params=params,
                parent_run_id=known[0] if known and len(study.models) == 1 else "",
            ),
            stop,
        )
        try:
            for (name, step), value in study.points.items():
                if value is not None:
                    run.log_metrics({name: value}, step)
            for name, content in study.files.items():
                run.log_artifact(content, name)
            url = run.url
            delivered = run_stoppable(lambda: run.finish("FINISHED"), stop)
        except BaseException as error:
            run.finish("FAILED" if isinstance(error, Exception) else "KILLED", timeout_seconds=10.0)
            raise
    if not delivered:
        raise TrackingError(_MLFLOW_AWAY)
    return url


def log_evaluation(run_uri: str, result_name: str, tracking_run_id: str) -> str:
    """Log an evaluation to the MLflow run that trained the model; return the address of that run's page.

    Without such a run it becomes a run of its own. If that run has other numbers of the same name, from another protocol, it becomes
    a child run: MLflow would keep the old numbers beside the new report. An evaluation that was done again by force replaces the
    numbers of the one before.

    Args:
        result_name: Name of the evaluation; its numbers are logged as `<name>/distance` and so on, at the checkpoint's step.
        tracking_run_id: The MLflow run; empty where none is known, for instance for a published checkpoint.
    """
    from evaluation.reports.study import Study
    from training.tracking.runs import attach, locate

    result = read_evaluation(run_uri, result_name)
    numbers = result.flat_metrics(result_name)
    run = attach(tracking_run_id) if tracking_run_id and locate(tracking_run_id) else None
    is_repeat = any(name.startswith(f"{result_name}{REPLACED}") for name in _evaluations(run_uri))
    if run is None or (not is_repeat and _has_other_numbers(run, numbers, result.step)):
        name = run_uri.rstrip("/").rpartition("/")[2]
        study = Study(
            kind="evaluation",
            title=f"{name}: {result_name}",
            text="\n".join(f"{key.rpartition('/')[2]:<32} {value:.6g}" for key, value in numbers.items()),
            models={name: result.protocol["model"]},
            protocol=result.protocol,
            points={(key, result.step): value for key, value in numbers.items()},
            files=_evaluation_files(run_uri, result_name, result),
        )
        return log_study(study, [run.run_id if run else ""])
    milliseconds = int(datetime.fromisoformat(result.created_at).timestamp() * 1000)
    log = run.replace_metrics if is_repeat else run.log_metrics
    log(numbers, result.step, milliseconds=milliseconds)
    for name, content in _evaluation_files(run_uri, result_name, result).items():
        run.log_artifact(content, "report.html" if name == "report.html" else f"evaluations/{name}")
    if not run.flush():
        raise TrackingError(_MLFLOW_AWAY)
    return run.url


def read_evaluation(run_uri: str, result_name: str) -> EvaluationResult:
    """Read an evaluation's result from the run's directory; raise ObjectNotFoundError if there is none of that name."""
    from evaluation.records.result import EvaluationResult

    return EvaluationResult.read(result_uri(run_uri, result_name))


def _evaluations(run_uri: str) -> list[str]:
    return [uri.rpartition("/")[2] for uri in storage.list_uris(storage.join(run_uri, EVALUATIONS))]


def _evaluation_files(run_uri: str, result_name: str, result: EvaluationResult) -> dict[str, bytes]:
    """Return the files of an evaluation, by name: score card, and result, sample grid and report as far as they exist."""
    from evaluation.reports.study import as_json

    report_uri = result_uri(run_uri, "report" if result_name == FINAL else result_name).removesuffix(".json") + ".html"
    uris = [uri for uri in (report_uri, result.grid_uri, result_uri(run_uri, result_name)) if uri and storage.exists(uri)]
    card = as_json({"scores": [score.to_dict() for score in result.score_card()]})
    return {f"{result_name}-score-card.json": card, **{uri.rpartition("/")[2]: storage.read_bytes(uri) for uri in uris}}


def _has_other_numbers(run: TrackedRun, numbers: Mapping[str, float], step: int) -> bool:
    there = {key: dict(run.metric_history(key)).get(step) for key in numbers}
    return any(value not in (None, numbers[key]) for key, value in there.items())

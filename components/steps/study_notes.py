"""A study of trained models in MLflow: a run of its own, which leads to the runs of its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.distributed.signals import run_stoppable, stop_flag

if TYPE_CHECKING:
    from evaluation.reports.study import Study

DEFAULT_EXPERIMENT = "iddpm"
"""MLflow's experiment of a study whose models have no runs; the pipelines' default, too."""
WENT_AWAY = "MLflow went away before all had arrived; the same command brings the rest"
_MAX_NAME_LENGTH = 250  # of a run; MLflow's limit
_MAX_NOTE_LENGTH = 5000  # of a tag; MLflow's limit


def note_study(study: Study, tracking_run_ids: Sequence[str]) -> str:
    """Logs a study to MLflow; the same study again finds its run, and adds nothing.

    It is noted when it is done, so that no run is left open by one that is cut off. A study of a single run is a part of
    that run; a comparison stands beside the runs of its models, in the experiment of the first that has one.

    Args:
        study: What was found.
        tracking_run_ids: The MLflow run of each of its models, in their order; empty where there is none.

    Returns:
        The page of the study's run.

    Raises:
        TrackingError: MLflow can't be reached, goes away, or refuses.
    """
    from training.tracking.runs import TrackingError, open_run, whereabouts

    found = [whereabouts(run_id) if run_id else None for run_id in tracking_run_ids]
    known = [run_id for run_id, place in zip(tracking_run_ids, found, strict=True) if place]
    links = ", ".join(f"[{name}]({place.url})" for name, place in zip(study.models, found, strict=True) if place)
    # The links first: MLflow folds away what is long.
    note = f"{f'Trained by: {links}' if links else ''}\n\n```\n{study.text}"[:_MAX_NOTE_LENGTH] + "\n```"
    params = {
        "model": {str(number): f"{name}: {what}" for number, (name, what) in enumerate(study.models.items(), start=1)},
        **{name: value for name, value in study.protocol.items() if name not in ("model", "inputs_sha256")},
    }
    with stop_flag() as stop:
        run = run_stoppable(
            lambda: open_run(
                run_key=study.key,
                experiment_name=next((place.experiment_name for place in found if place), DEFAULT_EXPERIMENT),
                run_name=study.title[:_MAX_NAME_LENGTH],
                tags={"iddpm.study": study.kind, "iddpm.model_run_ids": ", ".join(dict.fromkeys(known)), "mlflow.note.content": note},
                params=params,
                parent_run_id=known[0] if known and len(study.models) == 1 else None,
            ),
            stop,
        )
        try:
            for (name, step), value in study.points.items():
                if value is not None:
                    run.log_metrics({name: value}, step)
            for name, content in study.files.items():
                run.log_bytes(content, name)
            url = run.url
            delivered = run_stoppable(lambda: run.finish("FINISHED"), stop)
        except BaseException as error:
            run.finish("FAILED" if isinstance(error, Exception) else "KILLED", timeout_seconds=10.0)
            raise
    if not delivered:
        raise TrackingError(WENT_AWAY)
    return url

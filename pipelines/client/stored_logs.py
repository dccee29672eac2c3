"""The logs in the directories of trainings, which stay when pods and Ray's workers are gone, and are there on a laptop too."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from pipelines.client.arguments import close_to
from training import storage
from training.config.errors import UserError
from training.storage.logs import StoredLog, list_logs, read_part
from training.tracking.runs import RUN_KEY_TAG, RUN_URI_TAG, find_trainings, open_runs

_KEY = re.compile(r"(.+-)?[0-9a-f]{10}")
_PAUSE_SECONDS = 5.0


def find_directories(run: str, *, by_pipeline: bool) -> list[str]:
    """Return the directories of the trainings that a word names.

    Args:
        run: A directory, a run key or its ten digits, or the id of a pipeline's run.
        by_pipeline: Look for the trainings of a pipeline's run, too.

    Returns:
        Nothing for a pipeline's run without `by_pipeline`.

    Raises:
        UserError: There is no such training.
        TrackingError: MLflow, which knows the trainings, can't be reached.
    """
    if "/" in run:
        return [run.rstrip("/")]
    is_key = _KEY.fullmatch(run) is not None
    if not is_key and not by_pipeline:
        return []
    found = find_trainings(key=run) if is_key else find_trainings(pipeline_run_id=run)
    if not found:
        raise UserError(f"MLflow knows no training {'' if is_key else 'of the run '}{run}; `iddpm runs` lists them")
    return [each.tags[RUN_URI_TAG] for each in (found[:1] if is_key else found)]


def show_stored_logs(
    directories: Sequence[str],
    step: str,
    rank: int | None,
    *,
    follow: bool,
    out: Callable[[str], None],
    err: Callable[[str], None],
    pause_seconds: float = _PAUSE_SECONDS,
) -> None:
    """Print the logs in the directories of trainings, in the order in which they began.

    Args:
        directories: The trainings' directories.
        step: The step; empty takes all.
        rank: A worker of the training; None takes the steps' own logs.
        follow: Print also what comes while MLflow shows the training as running.
        out: Called with each line of a log.
        err: Called with each line about a log.
        pause_seconds: Time between two looks.

    Raises:
        UserError: There is no such log.
    """
    shown: dict[tuple[str, StoredLog], tuple[int, int]] = {}
    while True:
        is_over = not follow or not any(map(_is_running, directories))
        there = [(directory, log) for directory in directories for log in list_logs(directory)]
        wanted = [(directory, log) for directory, log in there if step in ("", log.step) and _is_wanted(log, rank)]
        if is_over and not wanted:
            raise UserError(_explain(directories, step, rank, [log for _, log in there]))
        for directory, log in wanted:
            key = (directory, log._replace(parts=()))
            if key not in shown:
                err(f"--- {log.step}, {log.source}, began {datetime.strptime(log.began, '%Y%m%dT%H%M%S'):%Y-%m-%d %H:%M:%S} UTC")
            number, line = shown.get(key, (0, 0))
            for part in log.parts:
                if part.number < number:
                    continue
                lines = read_part(part.uri)
                if part.number > number + (number > 0 or line > 0):
                    err(f"--- {part.number - number - 1} MiB of it are left out here")
                for text in lines[line if part.number == number else 0 :]:
                    out(text)
                number, line = part.number, len(lines)
            shown[key] = (number, line)
        if is_over:
            return
        time.sleep(pause_seconds)


def _is_wanted(log: StoredLog, rank: int | None) -> bool:
    return log.source == "step" if rank is None else log.source.startswith(f"rank-{rank}.")


def _is_running(directory: str) -> bool:
    return bool(open_runs(RUN_KEY_TAG, directory.rpartition("/")[2]))


def _explain(directories: Sequence[str], step: str, rank: int | None, there: Sequence[StoredLog]) -> str:
    """Return why there is nothing to show, and what there is."""
    where = ", ".join(directories)
    if not there:
        is_run = any(storage.exists(storage.join(each, "experiment.json")) for each in directories)
        return f"{where}: has no logs" + ("" if is_run else "; is it the directory of a run?")
    ranks = sorted({log.source.partition(".")[0].removeprefix("rank-") for log in there if log.source.startswith("rank-")}, key=int)
    if rank is not None:
        return f"{where}: has no log of rank {rank}; it has those of ranks {', '.join(ranks) or 'none'}"
    steps = sorted({log.step for log in there if log.source == "step"})
    if not steps:
        return f"{where}: has no log of a step, as a trial that another step trained; --rank shows those of workers {', '.join(ranks)}"
    return f"{where}: has no log of step {step!r}{close_to(step, steps) or '; it has those of ' + ', '.join(steps)}"

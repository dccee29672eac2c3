"""The logs in a storage root, which stay when pods and Ray's workers are gone, also on a laptop.

They lie in the directories of trainings, of their data sets, and of the runs of pipelines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from components.launch.logs import pipeline_directory
from components.steps.registry import PREPROCESS
from components.steps.runs import EXPERIMENT, data_of, storage_root_of
from training import storage
from training.config.errors import UserError
from training.config.validation import close_to
from training.data.format.manifest import MANIFEST
from training.storage.logs import StoredLog, list_logs, read_part
from training.tracking.references import ABLATION_URI_TAG, TUNING_URI_TAG
from training.tracking.runs import (
    PIPELINE_RUN_TAG,
    RUN_KEY_TAG,
    RUN_URI_TAG,
    find_training,
    find_trainings,
    is_run_key,
    latest_runs,
    open_runs,
)

_DEFAULT_ROOT = "s3://iddpm"
"""The default of every pipeline's `storage_root_uri`."""
_NUM_SEARCHED = 1000
"""Runs in MLflow whose storage roots are searched, the latest ones."""
_PAUSE_SECONDS = 5.0
_Found = tuple[str, StoredLog]
"""A log, with the directory that it is in."""


def find_directories(run: str, *, by_pipeline: bool) -> list[str]:
    """Return the directories of the trainings that a word names, each after the directory of the pipeline's run that worked on it last.

    For a pipeline's run without a training, they are the run's own directory and that of its ablation or tuning. The storage root may be
    the default one, or that of one of the latest runs in MLflow; all of them are searched.

    Args:
        run: A directory, also of a data set, a run key or its ten digits, or the id of a pipeline's run.
        by_pipeline: Look for a pipeline's run and its trainings, too.

    Returns:
        Nothing for a pipeline's run without `by_pipeline`.

    Raises:
        UserError: There is no log of such a run of a pipeline.
        TrackingError: There is no such training, or MLflow can't be reached.
    """
    if "/" in run:
        return [run.rstrip("/")]
    is_key = is_run_key(run)
    if not is_key and not by_pipeline:
        return []
    found = [find_training(run)] if is_key else find_trainings(pipeline_run_id=run)
    if not found:
        return _without_training(run)
    directories: list[str] = []
    for each in found:
        uri, pipeline_run_id = each.tags[RUN_URI_TAG], each.tags.get(PIPELINE_RUN_TAG)
        directory = pipeline_directory(storage_root_of(uri), pipeline_run_id) if pipeline_run_id else ""
        directories.extend([directory, uri] if directory and list_logs(directory) else [uri])
    return list(dict.fromkeys(directories))


def _without_training(pipeline_run_id: str) -> list[str]:
    """Return the directories with logs of a pipeline's run, and of the ablation or tuning that it worked on last.

    Raises:
        UserError: There are none.
    """
    tags = [each.tags for each in open_runs(PIPELINE_RUN_TAG, pipeline_run_id, status="")]
    uris = [uri for each in tags if (uri := _directory_of(each))]
    latest = [uri for each in latest_runs(_NUM_SEARCHED) if (uri := _directory_of(each.tags) or each.tags.get(RUN_URI_TAG, ""))]
    roots = dict.fromkeys([*map(storage_root_of, uris), _DEFAULT_ROOT, *map(storage_root_of, latest)])
    found, errors = [], []
    for directory in dict.fromkeys([*(pipeline_directory(root, pipeline_run_id) for root in roots), *uris]):
        try:
            found += [directory] if list_logs(directory) else []
        except storage.StorageError as error:  # MLflow may still have runs of a bucket that was deleted
            errors.append(error)
    if not found:
        # A preparation that failed left no training behind, and its log with the data set.
        hint = "if no training began, name the directory of the pipeline's run or of the data set, like s3://BUCKET/pipelines/ID"
        unread = f"; not every place could be searched: {errors[0]}" if errors else ""
        raise UserError(f"MLflow has no training of run {pipeline_run_id}; `iddpm runs` lists the runs; {hint}{unread}")
    return found


def _directory_of(tags: Mapping[str, str]) -> str:
    """Return the directory of the ablation or tuning that a run of MLflow is part of; empty for another run."""
    return tags.get(ABLATION_URI_TAG) or tags.get(TUNING_URI_TAG) or ""


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
    """Print the logs in the directories, and of the preparation of the trainings' data sets, in the order in which they began.

    Args:
        directories: The directories of trainings, of runs of pipelines, or of a data set.
        step: The step; empty takes all.
        rank: A worker of the training; None takes the steps' own logs.
        follow: Print also what comes while MLflow shows the training, ablation or tuning as running. A comparison or a nightly check has no
            run in MLflow while it runs, so it can't be followed here.
        out: Called with each line of a log.
        err: Called with each line about a log.
        pause_seconds: Time between two looks.

    Raises:
        UserError: There is no such log.
    """
    shown: dict[tuple[str, StoredLog], tuple[int, int]] = {}
    while True:
        is_over = not follow or not any(map(_is_running, directories))
        if follow and is_over and not shown:
            err("MLflow shows nothing of it as running: these are the logs so far")
        data_sets = list(dict.fromkeys(filter(None, map(data_of, directories)))) if rank is None else []
        of_data = [(directory, log) for directory in data_sets for log in list_logs(directory, PREPROCESS.name)]
        there = [(directory, log) for directory in directories for log in list_logs(directory)]
        wanted = [(directory, log) for directory, log in [*of_data, *there] if step in ("", log.step) and _is_wanted(log, rank)]
        wanted.sort(key=lambda each: each[1].began)
        if is_over and not wanted:
            raise UserError(_explain(directories, data_sets, step, rank, there, of_data))
        for directory, log in wanted:
            key = (directory, log._replace(parts=()))
            number, line = shown.get(key, (0, 0))
            for part in log.parts:
                if part.number < number:
                    continue
                lines = read_part(part.uri)
                if key not in shown and lines:
                    err(f"--- {log.step}, {log.source}, began {datetime.strptime(log.began, '%Y%m%dT%H%M%S'):%Y-%m-%d %H:%M:%S} UTC")
                    shown[key] = (0, 0)
                if part.number > number + 1:
                    err(f"--- {part.number - number - 1} MiB of it are left out here")
                for text in lines[line if part.number == number else 0 :]:
                    out(text)
                number, line = part.number, len(lines)
            if key in shown:
                shown[key] = (number, line)
        if is_over:
            if not shown:
                err("nothing was logged there")
            if not step and not any(_is_wanted(log, rank) for _, log in there):  # the data set alone had a log
                err(_explain(directories, data_sets, step, rank, there, []))
            return
        time.sleep(pause_seconds)


def _is_wanted(log: StoredLog, rank: int | None) -> bool:
    return _is_of_step(log) if rank is None else log.source.startswith(f"rank-{rank}.")


def _is_of_step(log: StoredLog) -> bool:
    return not log.source.startswith("rank-")


def _is_running(directory: str) -> bool:
    return bool(open_runs(RUN_KEY_TAG, directory.rpartition("/")[2]))


def _explain(
    directories: Sequence[str], data_sets: Sequence[str], step: str, rank: int | None, there: Sequence[_Found], of_data: Sequence[_Found]
) -> str:
    """Return why there is nothing to show, and what there is in the directories (`there`) and in those of their data sets (`of_data`)."""
    where = ", ".join([*directories, *(data_sets if step == PREPROCESS.name else [])])
    if not there and not of_data:
        is_known = any(storage.exists(storage.join(each, name)) for each in directories for name in (EXPERIMENT, f"train/{MANIFEST}"))
        return f"{where}: has no logs" + ("" if is_known else "; is it the directory of a run or of a data set?")
    ranks = sorted({log.source.partition(".")[0].removeprefix("rank-") for _, log in there if not _is_of_step(log)}, key=int)
    if rank is not None:
        return f"{where}: has no log of rank {rank}; it has those of ranks {', '.join(ranks) or 'none'}"
    own = {log.step for _, log in there if _is_of_step(log)}
    steps = sorted(own | {log.step for _, log in of_data})
    if ranks and not own:
        return f"{where}: has no step's log, because another step trained this trial; --rank shows those of workers {', '.join(ranks)}"
    return f"{where}: has no log of step {step!r}{close_to(step, steps) or '; it has those of ' + ', '.join(steps)}"

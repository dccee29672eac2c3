"""Store the log of a step's process in the directory of the run, of the data set or of the pipeline's run that it works on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.launch.step import Step, load
from training import storage
from training.config.errors import UserError
from training.storage.logs import LogUpload, log_uri

PIPELINES = "pipelines"
"""The folder of a storage root with a directory for each run of a pipeline: the logs of steps that work on no other directory, and what
the first step read from the form."""
_LAST_LINES_SECONDS = 5.0


class LogPlace(NamedTuple):
    """The place where the log of a step is stored.

    Attributes:
        directory_uri: Directory of the run, sweep or data set that the step works on; empty for a step that works on none.
        makes: See `step_log_stored`.
    """

    directory_uri: str
    makes: tuple[str, ...] = ()


def log_place(step: Step, arguments: Mapping[str, Any]) -> LogPlace:
    """Return where the log of a step is stored."""
    if step.find_log:
        place: LogPlace = load(step.find_log)(arguments)
        return place
    if step.run_files:
        return LogPlace(load(step.run_files)(arguments)[1])
    return LogPlace(arguments.get("run_uri") or arguments.get("ablation_uri") or "")


def pipeline_directory(storage_root_uri: str, pipeline_run_id: str) -> str:
    """Return the directory of a pipeline's run."""
    return storage.join(storage_root_uri, PIPELINES, pipeline_run_id)


def pipeline_log_stored(storage_root_uri: str, pipeline_run_id: str, name: str) -> contextlib.AbstractContextManager[None]:
    """Store the log of a step that works on no run, sweep or data set, or does not know it before it has begun.

    Args:
        storage_root_uri: The storage root.
        pipeline_run_id: ID of the pipeline's run.
        name: Name of the step in the compiled pipeline, like "close-run".
    """
    return step_log_stored(pipeline_directory(storage_root_uri, pipeline_run_id), name)


@contextlib.contextmanager
def step_log_stored(directory_uri: str, name: str, makes: Sequence[str] = ()) -> Iterator[None]:
    """Store what this process and its children print while the block runs, and the error that ends it.

    `tee` copies the output, so a child that is killed loses nothing of its own.

    Args:
        directory_uri: Directory of the run, sweep or data set that the step works on; empty stores nothing.
        makes: For a directory that many runs share: the files that the step makes last, or finds. A step that succeeds and leaves them as
            they were has only found its work done. Its log is not kept: it says nothing else, and each run would add one.
    """
    if not directory_uri:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="iddpm-log-", ignore_cleanup_errors=True) as directory:
        path = Path(directory, "log")
        path.touch()
        before = _versions(makes)
        # Several runs may begin to make the same data set in the same second.
        upload = LogUpload(path, log_uri(directory_uri, name, f"step-{uuid.uuid4().hex[:4]}" if makes else "step"))
        is_kept = True
        try:
            with _copied(1, path), _copied(2, path):
                yield
            is_kept = not makes or _versions(makes) != before
        except BaseException as error:
            _append(path, error)
            raise
        finally:
            upload.finish(keep=is_kept)


def _versions(uris: Sequence[str]) -> list[object]:
    """Return the version of each file: None for a missing one, and an object equal to nothing for one that can't be looked at."""
    found: list[object] = []
    for uri in uris:
        try:
            found.append(storage.version(uri))
        except storage.ObjectNotFoundError:
            found.append(None)
        except storage.StorageError:
            found.append(object())  # so the log is kept
    return found


def _append(path: Path, error: BaseException) -> None:
    """Write an error to the end of a log, unless a child process has printed it there as its last line.

    The caller that catches the error prints it too late for the log.
    """
    if _ends_with(path, f": {error}"):
        return
    is_expected = isinstance(error, UserError) or not isinstance(error, Exception)
    with path.open("a", errors="replace", encoding="utf-8") as file:
        file.write(f"{type(error).__name__}: {error}\n" if is_expected else "".join(traceback.format_exception(error)))


def _ends_with(path: Path, words: str) -> bool:
    wanted = f"{words}\n".encode(errors="replace")
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(wanted)))
        return file.read() == wanted


@contextlib.contextmanager
def _copied(number: int, path: Path) -> Iterator[None]:
    """Copy what is written to a file descriptor to the end of a file too."""
    stream = sys.stdout if number == 1 else sys.stderr
    stream.flush()
    before = os.dup(number)
    # In a session of its own: the signal that stops this process must not cut off its last words.
    tee = subprocess.Popen(["tee", "-a", str(path)], stdin=subprocess.PIPE, stdout=before, start_new_session=True)
    assert tee.stdin is not None
    os.dup2(tee.stdin.fileno(), number)
    tee.stdin.close()
    try:
        yield
    finally:
        stream.flush()
        os.dup2(before, number)
        os.close(before)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that the step left behind may still write
            tee.wait(_LAST_LINES_SECONDS)

"""Store the log of a step's process in the directory of the run that it works on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.launch.step import Step, load
from training.storage.logs import LogUpload, log_uri

_LAST_LINES_SECONDS = 5.0


def log_directory(step: Step, arguments: Mapping[str, Any]) -> str:
    """Return the directory of the run or sweep that a step works on; empty for a step that works on none, or before there is one."""
    find = step.run_files or step.find_run
    return load(find)(arguments)[1] if find else arguments.get("run_uri") or arguments.get("ablation_uri") or ""


@contextlib.contextmanager
def step_log_stored(directory_uri: str, name: str) -> Iterator[None]:
    """Store what this process and its children print while the block runs.

    `tee` copies the output, so a child that is killed loses nothing of its own.

    Args:
        directory_uri: Directory of the run or sweep that the step works on; empty stores nothing.
        name: Name of the step.
    """
    if not directory_uri:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="iddpm-log-", ignore_cleanup_errors=True) as directory:
        path = Path(directory, "log")
        path.touch()
        upload = LogUpload(path, log_uri(directory_uri, name, "step"))
        try:
            with _copied(1, path), _copied(2, path):
                yield
        finally:
            upload.finish()


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

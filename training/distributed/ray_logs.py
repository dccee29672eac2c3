"""Ray's logs: what of them a step shows, and where all of them are kept."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training import storage
from training.console import say

_NOISE = ("PlacementGroupCleaner", "State API may be temporarily unavailable", "PreemptionWatcher")
"""Ray Train repeats these warnings where Ray has no dashboard, and at each start; they have no effect."""
_MAX_FILE_BYTES = 256 * 1024
_MAX_FILES = 200
_SECRETS = ("SECRET", "PASSWORD", "TOKEN", "ACCESS_KEY")


def hide_noise() -> None:
    """Leave lines that are not about the run out of what Ray copies from its workers to this process."""
    from ray._private import worker

    show: Callable[..., None] = worker.print_worker_logs
    if getattr(show, "hides_noise", False):
        return

    def show_rest(data: Mapping[str, Any], *rest: Any, **options: Any) -> None:
        lines = [line for line in data["lines"] if not any(words in line for words in _NOISE)]
        if lines:
            show({**data, "lines": lines}, *rest, **options)

    show_rest.hides_noise = True  # type: ignore[attr-defined]
    worker.print_worker_logs = show_rest


def logs_of_this_node() -> Path:
    """Return the directory of the logs of the Ray node that this process is connected to."""
    from ray._private import worker

    node: Any = worker._global_node
    return Path(node.get_logs_dir_path())


def store_logs(directory: Path, run_uri: str) -> str:
    """Store the end of each log of a Ray node in the run's directory, compressed and without secrets.

    Args:
        directory: The node's logs.
        run_uri: The run's directory.

    Returns:
        Where they are; empty if storage does not take them, as the run does not depend on it.
    """
    secrets = [value.encode() for name, value in os.environ.items() if len(value) > 7 and any(word in name for word in _SECRETS)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        files = sorted((path for path in directory.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_mtime)
        for path in files[:_MAX_FILES]:
            content = _end_of(path)
            for secret in secrets:
                content = content.replace(secret, b"***")
            entry = tarfile.TarInfo(str(path.relative_to(directory)))
            entry.size, entry.mtime = len(content), int(path.stat().st_mtime)
            archive.addfile(entry, io.BytesIO(content))
    uri = storage.join(run_uri, "ray-logs", f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.tar.gz")
    try:
        storage.write_bytes(uri, buffer.getvalue())
    except storage.StorageError as error:
        say(f"Ray's logs are not kept: {error}")
        return ""
    return uri


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MAX_FILE_BYTES))
        return file.read(_MAX_FILE_BYTES)

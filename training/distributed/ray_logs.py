"""Ray's logs: what of them a step shows, and where all of them are kept."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import re
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training import storage
from training.config.redaction import without_secrets
from training.console import say
from training.storage.logs import LogUpload, log_uri

_NOISE = ("PlacementGroupCleaner", "State API may be temporarily unavailable", "PreemptionWatcher", "Failed to send resource request for")
"""Ray Train repeats these warnings where Ray has no dashboard, at each start, and on busy nodes; they have no effect."""
_LAST_OF_NOISE = ("ray.exceptions.", "ConnectionError: Found multiple active Ray instances")
"""Beginnings of the last line of a traceback that follows such a warning."""
_LOW_MEMORY = "killed due to the node running low on memory"
_DUMP_END = "Refer to the documentation on how to address the out of memory issue"
"""Words in the first and in the last of the about fifty lines that Ray writes about a node's memory. Later errors repeat the lines."""
_DUMP_LINES = 200
"""A longer dump has lost its last line."""
_MEMORY_USED = re.compile(r"was (\S+) used / (\S+) limit")
_MAX_FILE_BYTES = 256 * 1024
_MAX_FILES = 200


def hide_noise() -> None:
    """Leave lines that are not about the run out of what Ray logs here and copies from its workers to this process."""
    from ray._private import worker

    show: Callable[..., None] = worker.print_worker_logs
    if getattr(show, "hides_noise", False):
        return
    filters: defaultdict[tuple[Any, ...], NoiseFilter] = defaultdict(NoiseFilter)

    def show_rest(data: Mapping[str, Any], *rest: Any, **options: Any) -> None:
        parts = [part for line in data["lines"] for part in line.splitlines() or [line]]  # an error of Ray comes as one line
        if lines := filters[data.get("ip"), data.get("pid"), data.get("is_err")].rest(parts):
            show({**data, "lines": lines}, *rest, **options)

    show_rest.hides_noise = True  # type: ignore[attr-defined]
    worker.print_worker_logs = show_rest
    tokens = logging.getLogger("ray._private.authentication.authentication_token_setup")
    tokens.addFilter(lambda record: "is enabled for this Ray cluster" not in record.getMessage())  # as it should be


class NoiseFilter:
    """Leave out lines that are not about the run. One filter reads the output of one process, in parts.

    Left out are Ray's warnings that have no effect, each with the traceback that follows it. If Ray killed processes for their memory, its
    lines about the node's memory are left out but for the first, and so is the traceback before them. Ray's logs in S3 keep all lines.
    """

    def __init__(self) -> None:
        self._dump_lines_left = 0
        self._in_noise = False

    def rest(self, lines: Sequence[str]) -> list[str]:
        """Return the lines to show of the next part."""
        kept: list[str] = []
        traceback_at: int | None = None  # of a traceback in `kept` that may end in a dump
        for line in lines:
            if self._dump_lines_left and not line.startswith("iddpm|"):
                self._dump_lines_left = 0 if _DUMP_END in line else self._dump_lines_left - 1
                continue
            self._dump_lines_left = 0
            if any(words in line for words in _NOISE):
                self._in_noise = True
                continue
            if self._in_noise and line.startswith(("Traceback (most recent call last)", " ", *_LAST_OF_NOISE)):
                self._in_noise = not line.startswith(_LAST_OF_NOISE)
                continue
            self._in_noise = False
            if _LOW_MEMORY in line and not line.startswith("iddpm|"):  # one of ours may repeat Ray's words
                self._dump_lines_left = _DUMP_LINES
                del kept[len(kept) if traceback_at is None else traceback_at :]
            if line.startswith("Traceback (most recent call last)"):
                traceback_at = len(kept)
            elif not line.startswith((" ", "ray.train.ControllerError:")):  # the dump is that error's second line
                traceback_at = None
            kept.append(line)
        return kept


class MemoryShortageError(RuntimeError):
    """Ray killed the process of a task because its node was short of memory; one line with the remedy."""


def memory_shortage(error: BaseException, resources: str = "train_resources") -> str:
    """Return what Ray's error says of a node's memory, with the remedy, in one line; empty where memory is not the reason.

    Args:
        error: The error.
        resources: Where the memory is set, for the remedy.
    """
    if _LOW_MEMORY not in str(error):
        return ""
    used = _MEMORY_USED.search(str(error))
    return (
        f"memory ran out{f' ({used[1]} used, the limit is {used[2]})' if used else ''}; if it happens again, give it more "
        f'({resources}: {{"memory": ...}}, of a RayJob\'s head rayjob: {{"head_memory": ...}}) or a smaller microbatch_size'
    )


def logs_of_this_node() -> Path:
    """Return the directory of the logs of the Ray node that this process is connected to."""
    from ray._private import worker

    node: Any = worker._global_node
    return Path(node.get_logs_dir_path())


@contextlib.contextmanager
def worker_log_stored(run_uri: str, rank: int) -> Iterator[None]:
    """Store the log of this Ray worker in the run's directory while the block runs."""
    from ray._private.worker import global_worker

    paths = {"out": global_worker.get_out_file_path(), "err": global_worker.get_err_file_path()}
    uploads = [LogUpload(Path(path), log_uri(run_uri, "train", f"rank-{rank}.{name}")) for name, path in paths.items() if path]
    try:
        yield
    finally:
        for upload in uploads:
            upload.finish()


def store_logs(directory: Path, run_uri: str) -> str:
    """Store the end of each log of a Ray node in the run's directory, compressed and without secrets; return the URI.

    It is empty if storage does not take them, since the run does not depend on them.
    """
    uri = storage.join(run_uri, "ray-logs", f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{platform.node()}.tar.gz")
    try:
        storage.write_bytes(uri, _archive_of(directory))
    except OSError as error:
        say(f"Ray's logs are not kept: {error}")
        return ""
    return uri


def _archive_of(directory: Path) -> bytes:
    """Return the ends of the logs as an archive, without those that Ray moves or removes meanwhile."""
    found: list[tuple[float, Path]] = []
    for folder, _, names in os.walk(directory):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):
                if path.is_file():
                    found.append((path.stat().st_mtime, path))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for modified, path in sorted(found, reverse=True)[:_MAX_FILES]:
            try:
                content = without_secrets(_end_of(path).decode(errors="replace")).encode()
            except OSError:
                continue
            entry = tarfile.TarInfo(str(path.relative_to(directory)))
            entry.size, entry.mtime = len(content), int(modified)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _end_of(path: Path) -> bytes:
    """Return the last lines of a file; a line of which only a part is read may begin within a secret, and is left out."""
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - _MAX_FILE_BYTES)
        file.seek(start)
        content = file.read(_MAX_FILE_BYTES)
    return content.partition(b"\n")[2] if start else content

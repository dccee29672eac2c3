"""Logs in the directory of a run or data set, stored while they grow: compressed, in parts, bounded in size, without secrets.

    <run>/logs/<step>/<time>-<source>.<part>.gz    such as logs/train/20261126T190501-rank-1.out.002.gz

S3 can't append. So a log is a row of parts of up to 1 MiB: the last one is written again as it grows, and the older ones stay as they are.
"""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from training import storage
from training.config.redaction import without_secrets

LOGS = "logs"
SECONDS_BETWEEN_UPLOADS = 30.0
"""A process that is killed loses at most the lines of this time."""
_PART_BYTES = 1 << 20
_NUM_LAST_PARTS = 7
"""Parts that are kept beside the first one, which shows how the work began."""
_RAYS_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""Lines by which Ray finds out who wrote a worker's log."""
_PART = re.compile(r"/logs/(?P<step>[^/]+)/(?P<time>\d{8}T\d{6})-(?P<source>[^/]+)\.(?P<part>\d{3,})\.gz$")


class Part(NamedTuple):
    """A stored part of a log."""

    uri: str
    number: int


class StoredLog(NamedTuple):
    """A log in the directory of a run or data set.

    Attributes:
        step: The step that wrote it, like "train".
        began: When its process began, UTC as "20261126T190501".
        source: "step" for the step's own process, in a data set's directory "step-" and four digits that tell steps of the same second
            apart; "rank-N.out" and "rank-N.err" for a worker of a training.
        parts: Its parts, in order.
    """

    step: str
    began: str
    source: str
    parts: tuple[Part, ...]


def log_uri(run_uri: str, step: str, source: str) -> str:
    """Return the address of a log that begins now, without part and ending."""
    return storage.join(run_uri, LOGS, step, f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{source}")


def list_logs(run_uri: str, step: str = "") -> list[StoredLog]:
    """Return a run's logs in the order in which they began; those of one step, or of all."""
    found: dict[tuple[str, str, str], list[Part]] = defaultdict(list)
    for uri in storage.list_uris(storage.join(run_uri, LOGS, step)):
        if match := _PART.search(uri):
            found[match["time"], match["step"], match["source"]].append(Part(uri, int(match["part"])))
    return [
        StoredLog(step, began, source, tuple(sorted(parts, key=lambda part: part.number)))
        for (began, step, source), parts in sorted(found.items())
    ]


def read_part(uri: str) -> list[str]:
    """Return the lines of a part; none if it was removed meanwhile, as a log that has grown too long loses its middle."""
    try:
        lines = gzip.decompress(storage.read_bytes(uri)).decode(errors="replace").splitlines()
    except storage.ObjectNotFoundError:
        return []
    return [line for line in lines if not line.startswith(_RAYS_MARKS)]


class LogUpload:
    """Stores a growing file from a thread of its own, and never fails the work that writes it."""

    def __init__(self, path: Path, uri: str) -> None:
        """Begin a log in storage under `uri` (`log_uri`)."""
        self._path, self._uri = path, uri
        self._part, self._begin, self._stored = 0, 0, 0
        self._is_kept = True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="iddpm-log", daemon=True)
        self._thread.start()

    def finish(self, *, keep: bool = True) -> None:
        """Store the rest; or without `keep`, delete what was stored."""
        self._is_kept = keep
        self._ended.set()
        self._thread.join(SECONDS_BETWEEN_UPLOADS)

    def _run(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_UPLOADS):
            self._try(self.store)
        self._try((lambda: self.store(is_complete=True)) if self._is_kept else self._delete)

    def _delete(self) -> None:
        for part in range(self._part + 1 if self._stored else 0):
            storage.delete(f"{self._uri}.{part:03d}.gz")

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError:  # a StorageError too; a later call stores it
            return

    def store(self, *, is_complete: bool = False) -> None:
        """Store what was added since the last call.

        Args:
            is_complete: Store a last line without an end too; before that it might be half a secret.

        Raises:
            StorageError: Storage does not take it; the next call does the same again.
        """
        is_full = True
        while is_full:
            data, is_full = self._read(is_complete)
            if self._begin + len(data) > self._stored:
                text = without_secrets(data.decode(errors="replace"))
                storage.write_bytes(f"{self._uri}.{self._part:03d}.gz", gzip.compress(text.encode()))
                self._stored = self._begin + len(data)
            if is_full:
                self._begin += len(data)
                self._part += 1
                if self._part > _NUM_LAST_PARTS:
                    storage.delete(f"{self._uri}.{self._part - _NUM_LAST_PARTS:03d}.gz")

    def _read(self, is_complete: bool) -> tuple[bytes, bool]:
        """Return the current part up to the end of a line, and whether it is full."""
        with self._path.open("rb") as file:
            file.seek(self._begin)
            data = file.read(_PART_BYTES)
        is_full, end = len(data) == _PART_BYTES, data.rfind(b"\n") + 1
        is_whole = not end if is_full else is_complete  # a line that is longer than a part is cut
        return (data if is_whole else data[:end]), is_full

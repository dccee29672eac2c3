"""`metrics.jsonl` in a run's directory: the record of the run's metrics, from which MLflow gets those that it lacks.

Each line is one JSON object: `step`, `time` (milliseconds since 1970) and `values` by metric; NaN and infinities are the strings "NaN",
"Infinity" and "-Infinity". A (metric, step) keeps its first value, so a step that is trained again after a resume adds nothing. After a
roll-back the draws differ: a line with `rollback` says that the values of later steps before it are abandoned, and the next ones count.

A value is written here before it is sent, with its time. A server that hung may still carry out a request that it did not answer, even
after the sender was killed. MLflow stores equal points of the same time once, so sending the file's points again is harmless.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from training import storage
from training.config.validation import parse_json

METRICS = "metrics.jsonl"
_SECONDS_BETWEEN_WRITES = 10.0
_TAIL_BYTES = 1 << 16
"""A line is shorter than this."""
_OLD_METRICS = "metrics_for_mlflow.json"
"""File that an earlier version wrote while MLflow was away: {"run_id", "points": [[metric, value, step, milliseconds]]}."""


class _Line(NamedTuple):
    step: int
    milliseconds: int
    values: dict[str, float]
    is_rollback: bool = False


class Point(NamedTuple):
    """A value of a metric at a training step, with the time at which it was logged; `replaces` one that was abandoned."""

    key: str
    value: float
    step: int
    milliseconds: int
    replaces: bool = False


class MetricsFile:
    """The metrics of one run. `append` returns at once, `save` writes the file, and `unsent` has the saved points that are not sent yet.

    S3 can't append, so the file is written whole. A run of 5,000 log lines with 25 metrics has 4 MB; `seconds_between_writes` keeps the
    traffic under 100 kB a second, and the requests to S3 and MLflow at six a minute. Rank 0 of a training is the only writer.

    Attributes:
        unsent: Points that are on record and that MLflow may lack; the thread that sends them removes them.
    """

    def __init__(self, run_uri: str | None) -> None:
        """Read nothing yet; without a run's directory the metrics are kept in memory only."""
        self._run_uri = run_uri
        self._new: list[_Line] = []
        self._appending = threading.Lock()
        self._saving = threading.Lock()
        self._steps: dict[str, set[int]] = defaultdict(set)
        self._abandoned: dict[str, set[int]] = defaultdict(set)
        self._latest: dict[str, int] = defaultdict(int)  # the latest time of each metric
        self._text: bytes | None = None
        self._has_old_file = False
        self._unsaved = b""
        self._unsaved_points: list[Point] = []
        self.unsent: list[Point] = []

    @property
    def seconds_between_writes(self) -> float:
        """Seconds to gather values before the next write: 10, more where the file is large."""
        return max(_SECONDS_BETWEEN_WRITES, len(self._text or b"") / 1e5)

    def append(self, values: Mapping[str, float], step: int, milliseconds: int) -> None:
        """Add values of a step, in memory."""
        with self._appending:
            self._new.append(_Line(step, milliseconds, {key: float(value) for key, value in values.items()}))

    def abandon_after(self, step: int, milliseconds: int) -> None:
        """Let the values that are appended from now on replace those of the steps after `step`, in memory."""
        with self._appending:
            self._new.append(_Line(step, milliseconds, {}, is_rollback=True))

    def save(self) -> None:
        """Write what was added; what can't be written raises StorageError, and stays for the next call."""
        with self._saving:
            if self._text is None:
                self._text = self._read()
            with self._appending:
                new, self._new = self._new, []
            for line in new:
                if line.is_rollback:
                    self._abandon(line)
                else:
                    self._add(line.step, line.milliseconds, line.values)
            if self._run_uri is not None and self._unsaved:
                storage.write_bytes(storage.join(self._run_uri, METRICS), self._text + self._unsaved)
                if self._has_old_file:
                    storage.delete(storage.join(self._run_uri, _OLD_METRICS))
                    self._has_old_file = False
                self._text += self._unsaved
            self._unsaved = b""
            self.unsent += self._unsaved_points
            self._unsaved_points = []

    def _abandon(self, line: _Line) -> None:
        if self._forget_after(line.step):
            self._unsaved += json.dumps({"step": line.step, "time": line.milliseconds, "values": {}, "rollback": True}).encode() + b"\n"

    def _forget_after(self, step: int) -> bool:
        """Mark the values of steps after `step` as abandoned; return True if there are any."""
        found = False
        for key, steps in self._steps.items():
            later = {at for at in steps if at > step}
            found = found or bool(later)
            self._abandoned[key] |= later
            steps -= later
        return found

    def _add(self, step: int, milliseconds: int, values: Mapping[str, float]) -> None:
        fresh = {key: value for key, value in values.items() if step not in self._steps[key]}
        if not fresh:
            return
        # A value that replaces another is newer, also where the clock was set back: MLflow tells them apart by nothing else.
        milliseconds = max([milliseconds, *(self._latest[key] + 1 for key in fresh if step in self._abandoned[key])])
        for key, value in fresh.items():
            self._steps[key].add(step)
            self._latest[key] = max(self._latest[key], milliseconds)
            self._unsaved_points.append(Point(key, value, step, milliseconds, step in self._abandoned[key]))
        plain = {key: value if math.isfinite(value) else json.dumps(value) for key, value in fresh.items()}
        self._unsaved += json.dumps({"step": step, "time": milliseconds, "values": plain}).encode() + b"\n"

    def _read(self) -> bytes:
        """Read what an earlier process left; its points may not have arrived."""
        if self._run_uri is None:
            return b""
        # Both before anything is taken from them: a call that fails here is repeated.
        text, old = (_read_or_empty(storage.join(self._run_uri, name)) for name in (METRICS, _OLD_METRICS))
        for line in parse_metrics(text, self._run_uri):
            if line.is_rollback:
                self._forget_after(line.step)
                self.unsent = [point for point in self.unsent if point.step <= line.step]
            for key, value in line.values.items():
                self._steps[key].add(line.step)
                self._latest[key] = max(self._latest[key], line.milliseconds)
                self.unsent.append(Point(key, value, line.step, line.milliseconds, line.step in self._abandoned[key]))
        self._has_old_file = bool(old)
        for key, value, step, milliseconds in json.loads(old)["points"] if old else ():
            self._add(int(step), int(milliseconds), {key: float(value)})
        return text


def read_metric(run_uri: str, key: str) -> list[tuple[int, float]]:
    """Read (step, value) of one metric from a run's directory, by step; empty where it has none."""
    found: dict[int, float] = {}
    for line in parse_metrics(_read_or_empty(storage.join(run_uri, METRICS)), run_uri):
        if line.is_rollback:
            found = {step: value for step, value in found.items() if step <= line.step}
        elif key in line.values:
            found.setdefault(line.step, line.values[key])
    return sorted(found.items())


def last_time(run_uri: str) -> int:
    """Return when a run logged its latest metrics, in milliseconds since 1970; 0 where it has none. Only the file's end is read."""
    try:
        with storage.open_seekable(storage.join(run_uri, METRICS)) as file:
            end = file.seek(0, io.SEEK_END)
            file.seek(max(0, end - _TAIL_BYTES))
            lines = file.read().splitlines()
    except storage.ObjectNotFoundError:
        return 0
    with _named(run_uri, "last line"):
        return int(parse_json(lines[-1])["time"]) if lines else 0


def _read_or_empty(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except storage.ObjectNotFoundError:
        return b""


def parse_metrics(text: bytes, run_uri: str) -> list[_Line]:
    """Return the lines of a run's `metrics.jsonl`; raise StorageError, which names the line, if one is no step with its values."""

    def read(line: dict[str, Any]) -> _Line:
        values = {key: float(value) for key, value in line["values"].items()}
        return _Line(int(line["step"]), int(line["time"]), values, bool(line.get("rollback")))

    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        with _named(run_uri, f"line {number:,}"):
            found.append(read(parse_json(line)))
    return found


@contextlib.contextmanager
def _named(run_uri: str, line: str) -> Iterator[None]:
    """Turn the errors of a line that is no step with its values into one that names the file and the line.

    By hand, as a bare GPU machine has no pydantic.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{line} is no step with its values ({type(error).__name__})"
        raise storage.StorageError(f"{storage.join(run_uri, METRICS)}: {reason}; remove that line, or bring the whole file back") from error

"""Values of metrics on their way to one MLflow run: each step's arrives, and arrives once, whoever is killed or hangs meanwhile.

A request that nobody answered may still be carried out: a server that hung takes it up when it goes on, even where the process that sent
it is gone and another one has asked since what is there. But MLflow stores a value once that comes twice with the same time.
So the values are kept beside the run, with their times, before they are sent; whoever goes on with the run sends those again.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from training import storage
from training.tracking.client import is_transient

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000  # MLflow's limit of one request
_MAX_WAITING = 200_000


def kept_metrics_uri(run_uri: str) -> str:
    """The file in a training run's directory for the metrics that wait for MLflow."""
    return storage.join(run_uri, "metrics_for_mlflow.json")


class _Point(NamedTuple):
    key: str
    value: float
    step: int
    milliseconds: int


class MetricPoints:
    """What waits to be sent. `add` returns at once; `deliver` is called by one thread, again where it fails."""

    def __init__(self, client: MlflowClient, run_id: str, kept_uri: str | None) -> None:
        """Reads and sends nothing yet.

        Args:
            client: The way to MLflow.
            run_id: MLflow's name of the run.
            kept_uri: File for what waits, of one writer at a time; None keeps it in memory alone.
        """
        self._client = client
        self._run_id = run_id
        self._kept_uri = kept_uri
        self._lock = threading.Lock()
        self._waiting: list[_Point] = []
        self._announced = False
        self._steps: dict[str, set[int]] = {}
        self._keeping = threading.Lock()
        self._kept: list[_Point] | None = None

    def add(self, values: Mapping[str, float], step: int) -> bool:
        """Takes values of a step; what is more than MLflow's absence of days is dropped.

        Returns:
            Whether `deliver` has to be called for them: no earlier call is still to come.
        """
        now = int(time.time() * 1000)
        with self._lock:
            room = max(_MAX_WAITING - len(self._waiting), 0)
            self._waiting += [_Point(key, float(value), int(step), now) for key, value in values.items()][:room]
            announced, self._announced = self._announced, True
        return not announced

    def keep(self) -> list[_Point]:
        """Writes down what waits, so that a process that is killed leaves it to the one that goes on with the run.

        Returns:
            What waits, that of an earlier process first.

        Raises:
            StorageError: It can't be read or written.
        """
        with self._keeping:
            if self._kept_uri is None:
                with self._lock:
                    return list(self._waiting)
            if self._kept is None:
                self._kept = self._left_by_another(self._kept_uri)
                with self._lock:
                    self._waiting = self._kept + self._waiting
            with self._lock:
                waiting = list(self._waiting)
            if not set(waiting) <= set(self._kept):
                storage.write_bytes(self._kept_uri, json.dumps({"run_id": self._run_id, "points": waiting}).encode())
                self._kept = waiting
            return waiting

    def deliver(self) -> bool:
        """Sends what waits. A (metric, step) that the run has already keeps its first value.

        Returns:
            Whether more came meanwhile, so that it has to be called again.

        Raises:
            Exception: MLflow did not take it, or it can't be kept. What MLflow refuses for good is dropped; the rest waits.
        """
        waiting = storage.retry(self.keep)
        try:
            for start in range(0, len(waiting), _BATCH):
                self._send(waiting[start : start + _BATCH])
        except Exception as error:
            if not is_transient(error):  # what MLflow refuses once it will refuse again
                with self._lock:
                    self._waiting.clear()
                    self._announced = False
            raise
        with self._lock:
            self._announced = bool(self._waiting)
            return self._announced

    def forget(self) -> None:
        """Removes the file, once all has arrived.

        Raises:
            StorageError: It can't be removed.
        """
        if self._kept_uri is not None:
            storage.delete(self._kept_uri)

    def _left_by_another(self, kept_uri: str) -> list[_Point]:
        try:
            kept = storage.read_json(kept_uri)
        except storage.ObjectNotFoundError:
            return []
        return [_Point(*point) for point in kept["points"]] if kept["run_id"] == self._run_id else []

    def _send(self, batch: list[_Point]) -> None:
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Metric] = {}
        for key, value, step, milliseconds in batch:
            if step not in self._logged_steps(key):
                new.setdefault((key, step), Metric(key, value if math.isfinite(value) else math.nan, milliseconds, step))
        if new:
            self._client.log_batch(self._run_id, metrics=list(new.values()))
        for key, step in new:
            self._steps[key].add(step)
        with self._lock:
            del self._waiting[: len(batch)]

    def _logged_steps(self, key: str) -> set[int]:
        if key not in self._steps:
            self._steps[key] = {int(metric.step) for metric in self._client.get_metric_history(self._run_id, key)}
        return self._steps[key]

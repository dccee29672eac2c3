"""One run in MLflow, as a thing to log to: nothing waits for the server, nothing is logged twice."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

from training.storage import is_s3
from training.tracking.client import TrackingError, insist, is_transient, tracking_uri
from training.tracking.metric_points import MetricPoints
from training.tracking.outbox import Outbox

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from numpy.typing import NDArray

Status = Literal["FINISHED", "FAILED", "KILLED"]

PARENT_TAG = "mlflow.parentRunId"

_KEY = re.compile(r"[A-Za-z0-9_\-. /]{1,250}")
_LOGGED_IMAGE = re.compile(r"images/(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+\d+\+[^+]+\+compressed\.\w+")
_MAX_VALUE_LENGTH = 6000  # of a parameter; MLflow's limit
_MAX_DIGEST_LENGTH = 36  # MLflow's limit


class TrackedRun:
    """One run. Writing returns at once and is delivered in order in the background; `flush` waits for it.

    Two processes may write to one run, but not to one metric.

    Args:
        client: The way to MLflow.
        run_id: MLflow's name of the run.
        kept_metrics_uri: File for the metrics that wait, through which a process that goes on with the run sends what one that
            was killed left, and nothing twice even where MLflow hung; None where nobody goes on.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, kept_metrics_uri: str | None = None) -> None:
        self._client = client
        self._run_id = run_id
        self._outbox = Outbox("MLflow", is_transient)
        self._points = MetricPoints(client, run_id, kept_metrics_uri)
        self._images: set[tuple[str, int]] | None = None
        if kept_metrics_uri is not None:
            self.log_metrics({}, 0)  # sends what an earlier process left

    @property
    def run_id(self) -> str:
        """MLflow's name of the run."""
        return self._run_id

    @functools.cached_property
    def _experiment_id(self) -> str:
        return str(insist(lambda: self._client.get_run(self._run_id)).info.experiment_id)

    @property
    def url(self) -> str:
        """Page of the run, in the mode for training; MLflow opens others as evaluations of language models."""
        return f"{tracking_uri()}/#/experiments/{self._experiment_id}/runs/{self._run_id}?workflowType=machine_learning"

    def parts_url(self, *, order_by_metric: str) -> str:
        """Page of the runs whose parent this one is, as a flat table and charts, best first.

        MLflow folds such runs away by default; a filter and an order by metric unfold them.
        """
        query = {
            "searchFilter": f"tags.`{PARENT_TAG}` = '{self._run_id}'",
            "orderByKey": f"metrics.`{order_by_metric}`",
            "orderByAsc": "true",
            "compareRunsMode": "CHART",
            "workflowType": "machine_learning",
        }
        return f"{tracking_uri()}/#/experiments/{self._experiment_id}/runs?{urlencode(query, quote_via=quote)}"

    def side_by_side_url(self, run_ids: Sequence[str]) -> str:
        """Page that sets runs of this experiment beside each other: parallel coordinates, and which parameters differ."""
        query = {"runs": json.dumps(list(run_ids)), "experiments": json.dumps([self._experiment_id]), "workflowType": "machine_learning"}
        return f"{tracking_uri()}/#/compare-runs?{urlencode(query, quote_via=quote)}"

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs values of a step. A (metric, step) that the run has already keeps its first value.

        Args:
            values: By metric. Infinity is logged as NaN, since MLflow would store a large number.
            step: Training step.
        """
        for key in values:
            _require_key(key)
        if self._points.add(values, step):
            self._outbox.put("metrics", self._send_points)

    def keep_metrics(self) -> None:
        """Writes down the metrics that have not arrived yet, where there is a file for them.

        Raises:
            StorageError: It can't be written.
        """
        self._points.keep()

    def log_image(self, key: str, image: NDArray[np.uint8], step: int) -> None:
        """Logs a picture that MLflow shows under a slider of steps; the first one of a step stays.

        Args:
            key: Name of the series.
            image: [height, width, 1 or 3], 0 to 255.
            step: Training step.
        """
        _require_key(key)
        pixels = image.copy()
        self._outbox.put(f"image {key} of step {step}", lambda: self._send_image(key, pixels, int(step)))

    def log_text(self, text: str, artifact_path: str) -> None:
        """Stores a text under that path of the run's artifacts."""
        self._outbox.put(artifact_path, lambda: self._client.log_text(self._run_id, text, artifact_path))

    def log_file(self, path: str | Path, artifact_path: str) -> None:
        """Stores a file as `artifact_path` (its path and name among the run's artifacts).

        For reports and pictures: it is read into memory now. What is large belongs in S3, and its URI in a tag.

        Raises:
            TrackingError: The file can't be read.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise TrackingError(f"{path}: {error.strerror}; it can't be stored in MLflow as {artifact_path}") from error
        self.log_bytes(data, artifact_path)

    def log_bytes(self, data: bytes, artifact_path: str) -> None:
        """Stores what is at hand as a file of that path among the run's artifacts."""
        self._outbox.put(artifact_path, lambda: self._send_file(data, artifact_path))

    def log_dataset(self, name: str, digest: str, uri: str) -> None:
        """Notes the data set that the run reads.

        Args:
            name: Its name.
            digest: Its content's digest; MLflow keeps the first 36 characters.
            uri: Where it is.
        """
        self._outbox.put(f"data set {name}", lambda: self._send_dataset(name, digest[:_MAX_DIGEST_LENGTH], uri))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Notes parameters, nested mappings as dotted names.

        MLflow never changes a parameter. Where a resumed run has another value now (fewer workers, for instance), the
        first stays and the new one becomes the tag `resumed.<name>`.
        """
        flat = flatten(params)
        self._outbox.put("parameters", lambda: self._send_params(flat))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; unlike parameters they can change."""
        copy = {key: str(value) for key, value in tags.items()}
        self._outbox.put("tags", lambda: self._send_tags(copy))

    def metric_history(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric by step, what this process has not delivered yet included.

        Raises:
            TrackingError: MLflow can't be reached.
        """
        self.flush()
        history = insist(lambda: self._client.get_metric_history(self._run_id, key))
        return sorted((int(metric.step), float(metric.value)) for metric in history)

    def flush(self, *, timeout_seconds: float = 30.0) -> bool:
        """Waits until all is delivered; False where MLflow stayed away, in which case it is kept and tried again."""
        return self._outbox.flush(timeout_seconds)

    def close(self, *, timeout_seconds: float = 30.0) -> bool:
        """Waits until all is delivered, for a process that leaves the run open to others.

        Returns:
            False where MLflow stayed away; the metrics then wait in their file, if there is one, and the rest is lost.

        Raises:
            StorageError: The file can't be written or removed.
        """
        if not self.flush(timeout_seconds=timeout_seconds):
            self._points.keep()
            return False
        self._points.forget()
        return True

    def finish(self, status: Status, *, timeout_seconds: float = 60.0) -> bool:
        """Delivers all and gives the run its end; False where MLflow stayed away."""
        self._outbox.put(f"status {status}", lambda: self._client.set_terminated(self._run_id, status=status))
        return self._outbox.flush(timeout_seconds)

    # The rest runs in the outbox's thread, and may run twice.

    def _send_points(self) -> None:
        if self._points.deliver():
            self._outbox.put("metrics", self._send_points)

    def _send_image(self, key: str, pixels: NDArray[np.uint8], step: int) -> None:
        if self._images is None:
            names = [str(file.path) for file in self._client.list_artifacts(self._run_id, "images")]
            found = [match for name in names if (match := _LOGGED_IMAGE.fullmatch(name))]
            self._images = {(match["key"], int(match["step"])) for match in found}
        name = key.replace("/", "~")  # as MLflow writes it
        if (name, step) in self._images:
            return
        try:
            self._client.log_image(self._run_id, pixels, key=key, step=step, synchronous=True)
        except Exception:
            self._images = None  # it may have arrived all the same: ask before the next attempt
            raise
        self._images.add((name, step))

    def _send_file(self, data: bytes, artifact_path: str) -> None:
        directory, _, name = artifact_path.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="iddpm-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self._client.log_artifact(self._run_id, str(path), directory or None)

    def _send_dataset(self, name: str, digest: str, uri: str) -> None:
        from mlflow.entities import Dataset, DatasetInput

        kind = "s3" if is_s3(uri) else "local"
        dataset = Dataset(name=name, digest=digest, source_type=kind, source=json.dumps({"uri": uri}))
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset=dataset)])

    def _send_params(self, flat: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self._run_id).data.params
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        changed = [RunTag(f"resumed.{key}", value) for key, value in flat.items() if key in known and known[key] != value]
        for start in range(0, len(new), 100):  # MLflow's limit of one request
            self._client.log_batch(self._run_id, params=new[start : start + 100])
        for start in range(0, len(changed), 100):
            self._client.log_batch(self._run_id, tags=changed[start : start + 100])

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level of dotted names and words: {"a": {"b": 1}} is {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_MAX_VALUE_LENGTH]
    return flat


def _require_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise TrackingError(f"{key!r} is not a metric's name; MLflow takes letters, digits, '_', '-', '.', ' ' and '/'")

"""One MLflow run to log to. No call that logs waits for the server, and nothing is logged twice."""

from __future__ import annotations

import functools
import io
import json
import math
import re
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

from training.console import say
from training.storage import is_s3, join
from training.tracking.client import TrackingError, is_transient, public_uri, request, shortened
from training.tracking.metrics_file import METRICS, MetricsFile, Point
from training.tracking.sender import BackgroundSender

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from numpy.typing import NDArray

Status = Literal["FINISHED", "FAILED", "KILLED"]

PARENT_TAG = "mlflow.parentRunId"

_BATCH = 1000  # metrics of one request; MLflow's limit
_KEY = re.compile(r"[A-Za-z0-9_\-. /]{1,250}")
_LOGGED_IMAGE = re.compile(r"images/(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+\d+\+[^+]+\+compressed\.\w+")
_MAX_VALUE_LENGTH = 6000  # of a parameter; MLflow's limit
_MAX_DIGEST_LENGTH = 36  # MLflow's limit


class TrackedRun:
    """One run. Logging returns at once; a background thread delivers in order, and `flush` waits for it.

    Two processes may write to one run, but not to one metric.

    Args:
        run_uri: The directory in whose `metrics.jsonl` the metrics are recorded before they are sent, for the one process that trains
            the run; points that an earlier process recorded are sent too, where MLflow lacks them. None records nothing.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, run_uri: str | None = None) -> None:
        self._client = client
        self._run_id = run_id
        self._sender = BackgroundSender(kept_in=join(run_uri, METRICS) if run_uri else "memory")
        self._metrics = MetricsFile(run_uri)
        self._metrics_are_queued = threading.Event()
        self._sent_times: defaultdict[str, dict[int, int]] | None = None
        self._images: set[tuple[str, int]] | None = None
        self._refused: set[str] = set()
        if run_uri is not None:
            self._queue_metrics()

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    @functools.cached_property
    def _experiment_id(self) -> str:
        return str(request(lambda: self._client.get_run(self._run_id)).info.experiment_id)

    @property
    def url(self) -> str:
        """Address of the run's page, in the view for training; MLflow's default view is for language models."""
        return f"{public_uri()}/#/experiments/{self._experiment_id}/runs/{self._run_id}?workflowType=machine_learning"

    def children_url(self, *, order_by_metric: str) -> str:
        """Address of the page with the child runs of this one, as a flat table and charts, smallest metric first.

        MLflow hides child runs by default; a filter and an order by metric show them.
        """
        query = {
            "searchFilter": f"tags.`{PARENT_TAG}` = '{self._run_id}'",
            "orderByKey": f"metrics.`{order_by_metric}`",
            "orderByAsc": "true",
            "compareRunsMode": "CHART",
            "workflowType": "machine_learning",
        }
        return f"{public_uri()}/#/experiments/{self._experiment_id}/runs?{urlencode(query, quote_via=quote)}"

    def compare_url(self, run_ids: Sequence[str]) -> str:
        """Address of the page that compares runs of this experiment: parallel coordinates, and the parameters that differ."""
        query = {"runs": json.dumps(list(run_ids)), "experiments": json.dumps([self._experiment_id]), "workflowType": "machine_learning"}
        return f"{public_uri()}/#/compare-runs?{urlencode(query, quote_via=quote)}"

    def log_metrics(self, values: Mapping[str, float], step: int, *, milliseconds: int | None = None) -> None:
        """Log values of a step. A (metric, step) that the run has already keeps its first value.

        `correct_metrics` and `abandon_metrics_after` replace values.

        Args:
            values: By metric. MLflow gets infinity as NaN, since it would store a large number.
            milliseconds: Time of the values, since 1970; None is now. Values from a file get the file's time, so that a process
                that sends them again after MLflow hung does not add them twice.

        Raises:
            TrackingError: A name is not one that MLflow takes.
        """
        for key in values:
            _require_key(key)
        self._metrics.append(values, int(step), int(time.time() * 1000) if milliseconds is None else milliseconds)
        self._queue_metrics()

    def abandon_metrics_after(self, step: int) -> None:
        """Let the values that are logged from now on replace those of the steps after `step`, as after a roll-back.

        MLflow deletes no value: its charts show both at one step, and `metric_history` returns the newer one.
        """
        self._metrics.abandon_after(step, int(time.time() * 1000))
        self._queue_metrics()

    def replace_metrics(self, values: Mapping[str, float], step: int, *, milliseconds: int) -> None:
        """Log values in place of earlier ones.

        MLflow keeps every value and shows the newest one at the largest step. So each value is logged at `step`, and again at the shown
        value's step if that is larger.

        Args:
            values: By metric, at most 500.
            milliseconds: Time of the values, since 1970; later than that of the earlier ones.
        """
        self._sender.put("metrics", lambda: self._send_replacement(dict(values), step, milliseconds))

    def correct_metrics(self, points: Mapping[tuple[str, int], float]) -> None:
        """Log single values and curves that may have changed since this or an earlier process logged them.

        A value that differs from the run's replaces it: MLflow keeps both values of a step and shows the newer one. An equal value is not
        logged again. The comparison costs one request for each metric that the run has.

        Args:
            points: By metric and step.
        """
        for key, _ in points:
            _require_key(key)
        self._sender.put("metrics", lambda: self._send_corrections(dict(points), int(time.time() * 1000)))

    def save_metrics(self) -> None:
        """Write the metrics logged so far to the run's directory, if the run has one; a failure is a StorageError."""
        self._metrics.save()

    def log_image(self, key: str, image: NDArray[np.uint8], step: int) -> None:
        """Log a picture, which MLflow shows under a slider of steps; the first one of a step stays.

        Args:
            key: Name of the series.
            image: [height, width, 1 or 3], 0 to 255.
        """
        _require_key(key)
        pixels = image.copy()
        self._sender.put(f"image {key} of step {step}", lambda: self._send_image(key, pixels, int(step)), ask=self._ask)

    def log_png(self, key: str, png: bytes, step: int) -> None:
        """Log an image like `log_image`, from the bytes of a PNG file."""
        import numpy as np
        from PIL import Image

        self.log_image(key, np.array(Image.open(io.BytesIO(png)).convert("RGB")), step)

    def image_steps(self, key: str) -> set[int]:
        """Return the steps whose picture of that series MLflow has; raise TrackingError if MLflow can't be reached."""
        return {step for name, step in request(self._list_images) if name == key.replace("/", "~")}

    def log_artifact(self, content: bytes | str, artifact_path: str) -> None:
        """Store a small file, such as a report or a picture, under that path of the run's artifacts.

        A large file belongs in S3, and its URI in a tag.
        """
        data = content.encode() if isinstance(content, str) else content
        self._sender.put(artifact_path, lambda: self._send_file(data, artifact_path), ask=self._ask)

    def log_dataset(self, name: str, digest: str, uri: str) -> None:
        """Log the data set that the run reads; of its digest MLflow stores the first 36 characters."""
        from mlflow.entities import Dataset, DatasetInput

        kind = "s3" if is_s3(uri) else "local"
        dataset = Dataset(name=name, digest=digest[:_MAX_DIGEST_LENGTH], source_type=kind, source=json.dumps({"uri": uri}))
        inputs = [DatasetInput(dataset=dataset)]
        self._sender.put(f"data set {name}", lambda: self._send_inputs(inputs))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, nested mappings as dotted names.

        MLflow never changes a parameter. Where a resumed run has another value now (fewer workers, for instance), the
        first stays and the new one becomes the tag `resumed.<name>`.
        """
        flat = flatten(params)
        self._sender.put("parameters", lambda: self._send_params(flat))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; unlike parameters they can change."""
        from mlflow.entities import RunTag

        copy = [RunTag(key, str(value)) for key, value in tags.items()]
        self._sender.put("tags", lambda: self._client.log_batch(self._run_id, tags=copy))

    def metric_history(self, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric by step, the newest value of each. What this process has logged is delivered first."""
        self.flush()
        history = request(lambda: self._client.get_metric_history(self._run_id, key))
        by_time = sorted(history, key=attrgetter("timestamp"))
        return sorted({int(metric.step): float(metric.value) for metric in by_time}.items())

    def flush(self, *, timeout_seconds: float = 30.0) -> bool:
        """Wait until all is delivered; return False if MLflow did not answer in that time. The sender goes on trying."""
        return self._sender.flush(timeout_seconds)

    def close(self) -> bool:
        """Wait until all is delivered, and leave the run open; return False if MLflow did not answer. Raises as `save_metrics`."""
        delivered = self.flush()
        self.save_metrics()
        return delivered

    def finish(self, status: Status, *, timeout_seconds: float = 60.0) -> bool:
        """Deliver all and end the run with that status; return False if MLflow did not answer."""
        self._sender.put(f"status {status}", lambda: self._client.set_terminated(self._run_id, status=status))
        return self._sender.flush(timeout_seconds)

    # The rest runs in the sender's thread, and may run twice.

    def _ask(self) -> None:
        self._client.get_run(self._run_id)

    def _queue_metrics(self) -> None:
        if not self._metrics_are_queued.is_set():
            self._metrics_are_queued.set()
            if not self._sender.put("metrics", self._send_metrics):
                self._metrics_are_queued.clear()

    def _send_metrics(self) -> None:
        self._sender.wait(self._metrics.seconds_between_writes)  # to send more points in one request
        self._metrics_are_queued.clear()
        try:
            self._metrics.save()
            while points := self._metrics.unsent[:_BATCH]:
                self._send_batch(points)
                del self._metrics.unsent[: len(points)]
        except Exception as error:
            if is_transient(error):  # the sender repeats this call
                self._metrics_are_queued.set()
            raise

    def _send_batch(self, points: list[Point]) -> None:
        """Send points in one request; where MLflow refuses it, metric by metric, so that only the bad metric is lost."""
        try:
            self._send_points(points)
            return
        except Exception as error:
            if is_transient(error):
                raise
        refused: defaultdict[str, list[str]] = defaultdict(list)
        for key, group in groupby(sorted(points, key=attrgetter("key")), key=attrgetter("key")):
            try:
                self._send_points(list(group))
            except Exception as error:
                if is_transient(error):
                    raise
                refused[shortened(error)].append(key)
        for reason, keys in refused.items():
            new = sorted(set(keys) - self._refused)  # metrics come again and again, and a deleted run refuses them all
            self._refused.update(new)
            if new:
                say(f"MLflow refused the metrics {', '.join(new)}: {reason}")

    def _send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        sent = self._times_in_mlflow()
        lacking = [point for point in points if _is_lacking(point, sent[point.key])]
        if lacking:
            metrics = [Metric(p.key, p.value if math.isfinite(p.value) else math.nan, p.milliseconds, p.step) for p in lacking]
            self._client.log_batch(self._run_id, metrics=metrics)
        for point in lacking:
            sent[point.key][point.step] = point.milliseconds
            self._refused.discard(point.key)

    def _send_replacement(self, values: Mapping[str, float], step: int, milliseconds: int) -> None:
        from mlflow.entities import Metric

        shown = {metric.key: int(metric.step) for metric in self._client.get_run(self._run_id).to_proto().data.metrics}
        metrics = [
            Metric(key, value if math.isfinite(value) else math.nan, milliseconds, at)
            for key, value in values.items()
            for at in sorted({step, max(step, shown.get(key, step))})
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _send_corrections(self, values: Mapping[tuple[str, int], float], milliseconds: int) -> None:
        shown: dict[tuple[str, int], tuple[float, int]] = {}
        for key in {key for key, _ in values} & self._client.get_run(self._run_id).data.metrics.keys():
            for metric in sorted(self._client.get_metric_history(self._run_id, key), key=attrgetter("timestamp")):
                shown[key, int(metric.step)] = float(metric.value), int(metric.timestamp)
        points = []
        for (key, step), value in values.items():
            there, at = shown.get((key, step), (None, 0))
            if there is None or not (there == value or (math.isnan(there) and not math.isfinite(value))):
                points.append(Point(key, value, step, max(milliseconds, at + 1), replaces=True))
        for start in range(0, len(points), _BATCH):
            self._send_batch(points[start : start + _BATCH])

    def _times_in_mlflow(self) -> defaultdict[str, dict[int, int]]:
        """Return the time of the newest value of each step of each metric that MLflow has.

        A new run costs one request, a resumed one a request for each metric.
        """
        if self._sent_times is None:
            found: defaultdict[str, dict[int, int]] = defaultdict(dict)
            for key in self._client.get_run(self._run_id).data.metrics:
                for metric in self._client.get_metric_history(self._run_id, key):
                    found[key][int(metric.step)] = max(int(metric.timestamp), found[key].get(int(metric.step), 0))
            self._sent_times = found
        return self._sent_times

    def _list_images(self) -> set[tuple[str, int]]:
        names = [str(file.path) for file in self._client.list_artifacts(self._run_id, "images")]
        return {(match["key"], int(match["step"])) for name in names if (match := _LOGGED_IMAGE.fullmatch(name))}

    def _send_image(self, key: str, pixels: NDArray[np.uint8], step: int) -> None:
        if self._images is None:
            self._images = self._list_images()
        name = key.replace("/", "~")  # as MLflow writes it
        if (name, step) in self._images:
            return
        try:
            self._client.log_image(self._run_id, pixels, key=key, step=step, synchronous=True)
        except Exception:
            self._images = None  # it may have arrived in spite of the error: list the images before the next attempt
            raise
        self._images.add((name, step))

    def _send_file(self, data: bytes, artifact_path: str) -> None:
        directory, _, name = artifact_path.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="iddpm-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self._client.log_artifact(self._run_id, str(path), directory or None)

    def _send_inputs(self, inputs: list[DatasetInput]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_inputs(self._run_id, datasets=inputs)
        except MlflowException as error:
            if is_transient(error):
                raise
            # If two runs log a new data set at the same moment, MLflow inserts it twice, and its database refuses one. It is there by now.
            self._client.log_inputs(self._run_id, datasets=inputs)

    def _send_params(self, flat: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        data = self._client.get_run(self._run_id).data
        known, new = data.params, [Param(key, value) for key, value in flat.items() if key not in data.params]
        # The last value is in the tag of an earlier resumption, if there is one. A setting may also have gone back to its first value.
        shown = {key: data.tags.get(f"resumed.{key}", value) for key, value in known.items()}
        changed = [RunTag(f"resumed.{key}", value) for key, value in flat.items() if key in known and shown[key] != value]
        for start in range(0, len(new), 100):  # MLflow's limit of one request
            self._client.log_batch(self._run_id, params=new[start : start + 100])
        for start in range(0, len(changed), 100):
            self._client.log_batch(self._run_id, tags=changed[start : start + 100])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one level of dotted names and text: {"a": {"b": 1}} becomes {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_MAX_VALUE_LENGTH]
    return flat


def _is_lacking(point: Point, sent: Mapping[int, int]) -> bool:
    """Return True if MLflow, which has values of these times by step, lacks the point."""
    return point.step not in sent or (point.replaces and point.milliseconds > sent[point.step])


def _require_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise TrackingError(f"{key!r} is not a metric's name; MLflow takes letters, digits, '_', '-', '.', ' ' and '/'")

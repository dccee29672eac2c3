"""The latest trainings as MLflow has them: how far each is, how fast, how good, and what it costs.

A search of MLflow returns the latest value of each metric. So a look costs one request, and one more for each training that was scored
since the last look. The trainings of several runs of pipelines cost one request for each: MLflow's search has no OR, and no IN for tags.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.tracking.client import connect, request
from training.tracking.runs import (
    ERROR_TAG,
    NUM_WORKERS_TAG,
    PIPELINE_RUN_TAG,
    PRUNED_TAG,
    RUN_KEY_TAG,
    RUN_URI_TAG,
    STEP_TAG,
    TRAIN_STEP,
    TRIAL_TAG,
    experiment_ids,
    is_training,
    run_pages,
)
from training.tracking.tracked_run import PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SCORE = "score/best"
_PAGE = 100
_MOST_PAGES = 20
_SECONDS = 3.0
"""A look is for a person who waits, so MLflow is given up soon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A training.

    Attributes:
        pipeline_run_id: The pipeline's run that worked on it last.
        trial: The label of the sweep's trial that it belongs to; empty for a training of its own.
        state: "running", "finished", "failed", "killed" or "pruned"; or the later step that works on it, like "evaluate".
        step: Updates so far.
        num_steps: Updates in all, unless it stops early.
        images_per_second: The rate of the last interval of logging; None before the first.
        seconds_left: Time left of a running training, at this rate.
        silent_seconds: Seconds since a running training last logged anything.
        best_score: The smallest distance among the checkpoints scored so far.
        gpu_share: Mean use of the GPUs of rank 0's machine, 0 to 1.
        card_hours: Hours so far of all its cards, or of its workers on a CPU: their number times the hours of the updates at this rate.
        card_hours_in_all: The same of all updates, at this rate.
    """

    key: str
    run_uri: str
    tracking_run_id: str
    pipeline_run_id: str
    trial: str
    state: str
    error: str
    step: int
    num_steps: int
    images_per_second: float | None
    seconds_left: float | None
    silent_seconds: float | None
    best_score: float | None
    best_step: int | None
    gpu_share: float | None
    card_hours: float | None
    card_hours_in_all: float | None


class LatestTrainings:
    """Reads the latest trainings, again and again for a person who watches."""

    def __init__(self) -> None:
        self._best: dict[tuple[str, int], tuple[float | None, int | None]] = {}

    def read(self, count: int) -> list[Training]:
        """Return the latest trainings, that many at most, the latest first."""
        client = connect()
        return request(lambda: self._read(client, experiment_ids(client), count=count), seconds=_SECONDS)

    def read_of(self, pipeline_run_ids: Iterable[str]) -> list[Training]:
        """Return all trainings that one of these runs of pipelines was the last to work on: run by run, the latest training first."""
        conditions = [f"tags.`{PIPELINE_RUN_TAG}` = '{run_id}'" for run_id in pipeline_run_ids]
        if not conditions:
            return []
        client = connect()

        def read() -> list[Training]:
            experiments = experiment_ids(client)
            return [each for condition in conditions for each in self._read(client, experiments, condition)]

        return request(read, seconds=_SECONDS)

    def _read(self, client: MlflowClient, experiments: list[str], condition: str = "", *, count: int | None = None) -> list[Training]:
        found: list[Any] = []
        trials: dict[str, str] = {}
        for page in itertools.islice(run_pages(client, condition, experiments, size=_PAGE), _MOST_PAGES):
            trials |= {run.info.run_id: run.data.tags[TRIAL_TAG] for run in page if TRIAL_TAG in run.data.tags}
            found += [run for run in page if is_training(run.data.tags)]
            if count is not None and len(found) >= count:
                break
        return [
            self._training(client, run, run.data.tags.get(TRIAL_TAG) or trials.get(run.data.tags.get(PARENT_TAG, ""), ""))
            for run in found[:count]
        ]

    def _training(self, client: MlflowClient, run: Any, trial: str) -> Training:
        tags, params = run.data.tags, run.data.params
        latest = {metric.key: metric for metric in run.to_proto().data.metrics}
        state = "running" if run.info.status == "SCHEDULED" else run.info.status.lower()
        if state == "running" and tags.get(STEP_TAG, TRAIN_STEP) != TRAIN_STEP:
            state = tags[STEP_TAG]
        elif state == "killed" and tags.get(PRUNED_TAG):
            state = "pruned"
        rate = latest["train/images_per_second"].value if "train/images_per_second" in latest else None
        step = max((int(metric.step) for key, metric in latest.items() if key.startswith("train/")), default=0)
        num_steps, batch_size = (int(params.get(f"optim.{name}", 0)) for name in ("num_steps", "global_batch_size"))
        num_workers = int(tags.get(NUM_WORKERS_TAG, 0))
        update_seconds = batch_size / rate if rate else None
        update_card_hours = update_seconds * num_workers / 3600 if update_seconds and num_workers else None
        is_running = state == "running"
        logged = max((int(metric.timestamp) for metric in latest.values()), default=int(run.info.start_time)) / 1000
        best = self._best_score(client, run.info.run_id, int(latest[_SCORE].step)) if _SCORE in latest else (None, None)
        return Training(
            key=tags[RUN_KEY_TAG],
            run_uri=tags[RUN_URI_TAG],
            tracking_run_id=run.info.run_id,
            pipeline_run_id=tags.get(PIPELINE_RUN_TAG, ""),
            trial=trial,
            state=state,
            error=tags.get(ERROR_TAG, ""),
            step=step,
            num_steps=num_steps,
            images_per_second=rate,
            seconds_left=max(0, num_steps - step) * update_seconds if is_running and update_seconds else None,
            silent_seconds=max(0.0, time.time() - logged) if is_running else None,
            best_score=best[0],
            best_step=best[1],
            gpu_share=_gpu_share({key: metric.value for key, metric in latest.items()}),
            card_hours=step * update_card_hours if update_card_hours else None,
            card_hours_in_all=(num_steps if is_running else step) * update_card_hours if update_card_hours else None,
        )

    def _best_score(self, client: MlflowClient, run_id: str, latest_step: int) -> tuple[float | None, int | None]:
        """Return the smallest finite score and its step, or None; the scores are read again once there is one of a later step."""
        if (run_id, latest_step) not in self._best:
            scores = client.get_metric_history(run_id, _SCORE)
            finite = [(float(each.value), int(each.step)) for each in scores if math.isfinite(each.value)]
            self._best[run_id, latest_step] = min(finite, default=(None, None))
        return self._best[run_id, latest_step]


def _gpu_share(values: Mapping[str, float]) -> float | None:
    shares = [value / 100 for key, value in values.items() if key.startswith("system/gpu_") and key.endswith("_utilization_percentage")]
    return sum(shares) / len(shares) if shares else None

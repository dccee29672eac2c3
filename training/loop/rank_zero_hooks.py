"""What rank 0 does beside the loop: saves, scores, logs, shows progress, and learns whether to stop.

Training waits for none of it. What talks to a store or computes does so in a thread or a Ray task of its own, and is
tried again through an outage of the store.
"""

from __future__ import annotations

import dataclasses
import math
import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch

from training import storage
from training.checkpoints import averages, checkpoint
from training.console import format_rate, format_remaining, say
from training.loop.gauges import Gauge, SystemGauge
from training.loop.job import Job, Scorer
from training.loop.trainer import Hooks, Outcome
from training.tracking.metric_points import kept_metrics_uri
from training.tracking.runs import TrackedRun, attach

SECONDS_BETWEEN_LINES = 5.0
SCORE_GPU_SHARE = 0.25
"""A score shares a worker's GPU: with one of its own to wait for it might wait for ever, while training waits for it."""
_LISTEN_SECONDS = 2.0
"""Between two looks whether to stop, while it waits at the end."""
_ASK_SECONDS = 1.0
"""Between two looks whether to stop, while it trains."""
NUM_LATEST = 2
"""Checkpoints that stay whatever their score: the latest, and one before it should it turn out damaged."""


@ray.remote(num_cpus=1, max_retries=2)
def _score(scorer: Scorer, checkpoint_uri: str) -> Mapping[str, Any]:
    os.nice(10)  # training has the right of way on a machine that both share
    torch.set_num_threads(1)
    return storage.retry(lambda: scorer.score(checkpoint_uri))


def _kept_scores(job: Job) -> Sequence[Mapping[str, Any]]:
    scorer = job.scorer
    return storage.retry(lambda: scorer.history(job.run_uri)) if scorer is not None else ()


class RankZeroHooks:
    """Rank 0's side of a training run; `hooks` is what the loop calls.

    Args:
        job: The run.
        world_size: Number of workers.

    Raises:
        StorageError: The run's directory can't be read.
    """

    def __init__(self, job: Job, world_size: int) -> None:
        self.job = job
        gone = storage.retry(lambda: checkpoint.clean(job.run_uri))
        self.writer = checkpoint.AsyncWriter(job.run_uri, first=self._before_checkpoint)
        self.tracked: TrackedRun | None = None
        if job.tracking_run_id:
            self.tracked = attach(job.tracking_run_id, unseen=True, kept_metrics_uri=kept_metrics_uri(job.run_uri))
        self.gauge = Gauge(job.experiment, world_size)
        self.system = SystemGauge() if job.tracking_run_id else None
        self.progress = _Progress(job.experiment.optim.num_steps)
        self.chores = ThreadPoolExecutor(1, thread_name_prefix="iddpm-chores")
        self.saved: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.control: Any = ray.get_actor(job.control_name, namespace="iddpm")
        self.order: str | None = None
        self.asked_at = -math.inf
        self.pending: dict[int, ray.ObjectRef[Any]] = {}
        self.history = list(_kept_scores(job))
        self.logged = {int(score["step"]) for score in self.history}.difference(gone)
        self.kept = set(storage.retry(lambda: checkpoint.steps(job.run_uri)))
        for step in sorted(self.kept - self.logged):
            self._submit(step)
        for score in self.history:  # whoever was killed may not have come to it
            self._tell(score)
        for score in self.history[-1:]:
            self._show(score)

    def hooks(self) -> Hooks:
        """For the loop, which is about to begin."""
        ray.get(self.control.begin.remote())
        return Hooks(log=self.log, save=self.save, should_stop=self.should_stop, interruption=self.interruption)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics to MLflow and shows a line of progress."""
        if self.tracked is not None:
            told = {**metrics, **self.gauge.read(metrics["images_per_second"])}
            system = self.system.read() if self.system is not None else {}
            self.tracked.log_metrics({f"train/{name}": value for name, value in told.items()} | system, step)
        self.progress.show(step, metrics["loss"], metrics["images_per_second"])

    def save(self, step: int, files: Mapping[str, Any]) -> None:
        """Copies a checkpoint and begins to write it."""
        self.writer.save(step, files, lambda uri: self.saved.put(step))

    def _is_due(self, step: int) -> bool:
        """Whether an undisturbed run has that checkpoint: one that an interruption left changes neither scores nor choice."""
        optim = self.job.experiment.optim
        return step % optim.checkpoint_interval == 0 or step == optim.num_steps

    def _before_checkpoint(self, step: int, files: Mapping[str, Any]) -> None:
        if self._is_due(step):
            averages.keep_snapshot(self.job.run_uri, step, files)
        if self.tracked is not None:  # a run that is killed and goes on from here does not log what led here again
            self.tracked.keep_metrics()

    def should_stop(self, step: int) -> str | None:
        """Takes in what has finished meanwhile; why training should end, or None."""
        self._submit_saved()
        self._collect()
        reason = self._order()
        if reason is None and self.job.scorer is not None:
            reason = self.job.scorer.stop_reason(self.history)
        return reason

    def interruption(self) -> str | None:
        """Why somebody outside wants training to end, as was known a moment ago."""
        if time.monotonic() - self.asked_at > _ASK_SECONDS:
            self._order()
        return self.order

    def _order(self) -> str | None:
        """Why somebody outside wants training to end, if so; it stays so."""
        self.order = self.order or ray.get(self.control.stop_reason.remote())
        self.asked_at = time.monotonic()
        return self.order

    def finish_saving(self) -> None:
        """Returns once every checkpoint is written.

        Raises:
            CheckpointError: One could not be.
            StorageError: One could not be.
        """
        self.writer.wait()

    def finish(self, outcome: Outcome) -> Outcome:
        """Waits for the last checkpoint; unless told to stop, also for its score, and for MLflow.

        Returns:
            The outcome; stopped by SIGTERM where that came before all scores were there.
        """
        self.finish_saving()
        self._submit_saved()
        if outcome.stop_reason == "SIGTERM":
            return outcome
        self._collect()
        if self.pending:
            say(f"waiting for the scores of {len(self.pending)} checkpoint(s)")
        while self.pending:
            if self._order() is not None:
                return dataclasses.replace(outcome, stop_reason="SIGTERM")
            ray.wait([*self.pending.values()], timeout=_LISTEN_SECONDS)
            self._collect()
        self.chores.shutdown()
        deadline = time.monotonic() + storage.OUTAGE_SECONDS
        while self.tracked is not None and not self.tracked.flush(timeout_seconds=_LISTEN_SECONDS):
            if time.monotonic() > deadline or self._order() is not None:
                break
        return outcome

    def close(self) -> None:
        """Ends the threads and sends what is left to MLflow."""
        self.writer.close()
        self.chores.shutdown()
        if self.tracked is None:
            return
        try:
            if not storage.retry(self.tracked.close):
                say("MLflow stayed away: pictures that it should have got are lost; the metrics wait for the same command")
        except storage.StorageError as error:
            say(f"{error}; metrics that MLflow has not got by now are lost")

    def _submit_saved(self) -> None:
        while not self.saved.empty():
            step = self.saved.get()
            self.kept.add(step)
            if self.tracked is not None:
                self.tracked.set_tags({"iddpm.latest_checkpoint_uri": checkpoint.checkpoint_uri(self.job.run_uri, step)})
            self._submit(step)

    def _submit(self, step: int) -> None:
        if self.job.scorer is not None and self._is_due(step) and step not in self.pending and step not in self.logged:
            share = SCORE_GPU_SHARE if self.job.resources.num_gpus_per_worker else 0
            uri = checkpoint.checkpoint_uri(self.job.run_uri, step)
            self.pending[step] = _score.options(num_gpus=share).remote(self.job.scorer, uri)

    def _collect(self) -> None:
        for step in sorted(self.pending):
            reference = self.pending[step]
            ready, _ = ray.wait([reference], timeout=0)
            if not ready:
                continue
            del self.pending[step]
            try:
                score = ray.get(reference)
            except Exception as error:  # a score that failed must not end training; the end says which are missing
                say(f"the score of step {step} failed: {str(error).strip().splitlines()[-1]}")
                continue
            self._take_in(step, score)
        self._remove_unwanted()

    def _take_in(self, step: int, score: Mapping[str, Any]) -> None:
        scorer = self.job.scorer
        assert scorer is not None, "it has given this score"
        self.logged.add(step)
        self.history = sorted([*self.history, score], key=lambda item: int(item["step"]))
        metrics = scorer.metrics(score)
        say(f"scored step {step}: " + ", ".join(f"{name.rpartition('/')[2]} {value:.3f}" for name, value in metrics.items()))
        self._tell(score)
        self._show(score)

    def _tell(self, score: Mapping[str, Any]) -> None:
        scorer, tracked = self.job.scorer, self.tracked
        if scorer is not None and tracked is not None:
            tracked.log_metrics(scorer.metrics(score), int(score["step"]))

    def _show(self, score: Mapping[str, Any]) -> None:
        scorer, tracked, step = self.job.scorer, self.tracked, int(score["step"])
        if scorer is None or tracked is None:
            return

        def log_image() -> None:
            image = scorer.image(score)
            if image is not None:
                tracked.log_image("samples", image, step)

        self._later(f"the sample grid of step {step} is not in MLflow", log_image)

    def _remove_unwanted(self) -> None:
        """Removes the checkpoints that neither a resumed run nor the final choice can want."""
        scorer = self.job.scorer
        choice = scorer.keep(self.history) | set(self.pending) if scorer is not None else {step for step in self.kept if self._is_due(step)}
        unwanted = self.kept - choice - set(sorted(self.kept)[-NUM_LATEST:])
        if unwanted:
            self.kept -= unwanted
            self._later("some old checkpoints are still there", lambda: checkpoint.remove(self.job.run_uri, unwanted))

    def _later(self, otherwise: str, chore: Callable[[], None]) -> None:
        """Has something done that training neither waits for nor fails with."""

        def attempt() -> None:
            try:
                storage.retry(chore)
            except Exception as error:
                say(f"{otherwise}: {error}")

        self.chores.submit(attempt)


class _Progress:
    """One line every few seconds: step, loss, speed, time left."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.started: tuple[float, int] | None = None
        self.shown_at = -math.inf

    def show(self, step: int, loss: float, images_per_second: float) -> None:
        now = time.monotonic()
        left = "? left"
        if self.started is None:
            self.started = (now, step)  # the first interval holds the warm-up; time left counts from its end
        else:
            left = format_remaining(step - self.started[1], self.num_steps - self.started[1], now - self.started[0])
        if now - self.shown_at >= SECONDS_BETWEEN_LINES or step == self.num_steps:
            self.shown_at = now
            say(f"step {step:,}/{self.num_steps:,}  loss {loss:.4f}  {format_rate(images_per_second, 1, 'images')}  {left}")

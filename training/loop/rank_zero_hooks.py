"""Rank 0's hooks of the loop: save, score, log, show progress, and check for a reason to stop.

Training waits for none of them. Requests to a store and computations run in a thread or in another process, with retries through an
outage of the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import queue
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from training import storage
from training.checkpoints import averages, checkpoint
from training.config.errors import lines_of
from training.console import say
from training.distributed.ray_logs import memory_shortage
from training.distributed.ray_session import standstill
from training.loop.gauges import Gauge, Progress
from training.loop.interfaces import STOP_REQUESTED, Hooks, Job, Outcome, Scorer
from training.tracking.runs import NUM_WORKERS_TAG, TrackedRun, attach
from training.tracking.system_metrics import SystemMetrics

NUM_LATEST = 2
"""Checkpoints that are kept without regard to their score: the latest, and the one before, in case the latest is damaged."""
MAX_UNSCORED = 5
"""The largest number of checkpoints that are kept because their score failed: the latest ones. A later attempt scores them."""
_SCORE_ATTEMPTS = 2
_FAILURES_BEFORE_WARNING = 3
_SECONDS_BETWEEN_CHECKS = 1.0
_SECONDS_BETWEEN_CHECKS_AT_THE_END = 2.0
_SECONDS_TO_WAIT_FOR_ROOM = 600.0
"""A cluster that grows by itself has another machine by then."""
_LONGEST_SCORE_SECONDS = 12 * 3600.0
"""No score takes so long: it draws few images, in few steps."""

Score = Mapping[str, Any]


class RankZeroHooks:
    """Rank 0's side of a training run.

    Args:
        submit_score: Starts the scoring of the checkpoint at that URI in another process, and returns at once.
        is_stop_requested: Returns True once a stop is requested; takes milliseconds.
        scoring_obstacle: Returns why no score can start now, with the remedy, or None.
    """

    def __init__(
        self,
        job: Job,
        world_size: int,
        *,
        submit_score: Callable[[Scorer, str], Future[Score]],
        is_stop_requested: Callable[[], bool],
        scoring_obstacle: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._job = job
        self._scoring_obstacle = scoring_obstacle
        self._submit_score = submit_score
        self._read_stop_request = is_stop_requested
        self._is_stop_requested = False
        self._checked_at = -math.inf
        scores, self._saved_steps = storage.retry(self._read_run)
        self._writer = checkpoint.AsyncWriter(
            job.run_uri,
            first=self._before_checkpoint,
            retry_seconds=job.retry_seconds,
            required_step=job.experiment.evaluation.sampling.guidance_step,
        )
        self._newly_saved: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._tracked: TrackedRun | None = None
        self._system: SystemMetrics | None = None
        if job.tracking_run_id:
            self._tracked = attach(job.tracking_run_id, check=False, run_uri=job.run_uri)
            storage.retry(self._tracked.save_metrics)  # reads the record: if it is damaged, no checkpoint could be written
            self._tracked.set_tags({NUM_WORKERS_TAG: str(world_size)})  # fewer than asked for after a machine was lost
            self._system = SystemMetrics()
        self._gauge = Gauge(job.experiment, job.resources, world_size)
        self._progress = Progress(job.experiment.optim.num_steps)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="iddpm-background")
        self._pending: dict[int, Future[Score]] = {}
        self._failures: dict[int, int] = {}  # failed attempts by step
        self._failures_in_a_row = 0
        self._scores = {int(score["step"]): score for score in scores}
        # A score of a later step belongs to a damaged checkpoint, which was removed: that step is trained and scored again.
        self._scored_steps = {step for step in self._scores if step <= max(self._saved_steps, default=0)}
        for step in sorted(self._saved_steps - self._scored_steps):
            self._submit(step)
        obstacle = scoring_obstacle() if job.scorer is not None else None
        if obstacle:
            say(f"no checkpoint can be scored beside training: {obstacle}")
        for score in self._history():  # a killed process may not have logged them
            self._log_score(score)
        for score in self._history()[-1:]:
            self._log_image(score)

    def hooks(self) -> Hooks:
        """Return the functions for the loop."""
        return Hooks(log=self._log, save=self._save, should_stop=self._should_stop, interruption=self._interruption)

    def finish_saving(self) -> None:
        """Wait until every checkpoint is written."""
        self._writer.wait()

    def go_back_to(self, step: int) -> None:
        """Forget the checkpoints after `step`, which are removed, and let the metrics of the steps that follow replace the earlier ones."""
        self._saved_steps = {saved for saved in self._saved_steps if saved <= step}
        # The removed checkpoints were saved while training diverged. Their steps are trained, and scored, again.
        self._scored_steps = {scored for scored in self._scored_steps if scored <= step}
        self._pending = {scored: future for scored, future in self._pending.items() if scored <= step}
        self._failures = {failed: count for failed, count in self._failures.items() if failed <= step}
        if self._tracked is not None:
            self._tracked.abandon_metrics_after(step)

    def finish(self, outcome: Outcome) -> Outcome:
        """Wait for the last checkpoint; unless a stop is requested, also for its score and for MLflow.

        Returns:
            The outcome; its `stop_reason` is `STOP_REQUESTED` if a stop was requested before all scores were there. It has a `failure`
            if a score can't start, or does not end.
        """
        self.finish_saving()
        self._submit_saved()
        if outcome.stop_reason == STOP_REQUESTED:
            return outcome
        self._collect_scores()
        if self._pending:
            say(f"waiting for the scores of {len(self._pending)} checkpoint(s)")
        began = last_came = time.monotonic()
        while self._pending or self._submit_failed():
            if self._check_for_stop():
                return dataclasses.replace(outcome, stop_reason=STOP_REQUESTED)
            obstacle = self._scoring_obstacle() if time.monotonic() - began >= _SECONDS_TO_WAIT_FOR_ROOM else None
            if obstacle is None and time.monotonic() - last_came >= _LONGEST_SCORE_SECONDS:
                obstacle = f"{standstill('_score', _LONGEST_SCORE_SECONDS)}; kill that process"
            if obstacle:
                failure = f"{len(self._pending)} checkpoint(s) have no score: {obstacle}. The same command then scores them"
                return dataclasses.replace(outcome, failure=failure)
            if wait(self._pending.values(), timeout=_SECONDS_BETWEEN_CHECKS_AT_THE_END, return_when="FIRST_COMPLETED").done:
                last_came = time.monotonic()
            self._collect_scores()
        self._background.shutdown()
        deadline = time.monotonic() + storage.OUTAGE_SECONDS
        while self._tracked is not None and not self._tracked.flush(timeout_seconds=_SECONDS_BETWEEN_CHECKS_AT_THE_END):
            if time.monotonic() > deadline or self._check_for_stop():
                break
        return outcome

    def close(self) -> None:
        """End the threads and send the rest to MLflow, each of them also where another fails.

        Raises:
            Exception: The last checkpoint could not be written. While another exception ends training, it is only printed.
        """
        is_failing = sys.exception() is not None
        with contextlib.ExitStack() as ends:  # the last one is called first
            ends.callback(self._close_tracked)
            ends.callback(self._background.shutdown)
            try:
                self._writer.close()
            except Exception as error:
                if not is_failing:
                    raise
                say(f"the last checkpoint is not stored: {lines_of(error)[-1]}")

    def _close_tracked(self) -> None:
        if self._tracked is None:
            return
        try:
            if not storage.retry(self._tracked.close):
                say("MLflow does not answer; the metrics are in the run's directory, and the next step sends them")
        except storage.StorageError as error:
            say(f"{error}; the metrics of the last steps are not stored")

    def _read_run(self) -> tuple[Sequence[Score], set[int]]:
        scorer, run_uri = self._job.scorer, self._job.run_uri
        checkpoint.clean(run_uri)
        storage.delete_partial_files(averages.snapshots_uri(run_uri))
        return scorer.history(run_uri) if scorer is not None else (), set(checkpoint.steps(run_uri))

    # -- for the loop ----------------------------------------------------------------------------------------------------

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._tracked is not None:
            all_metrics = {**metrics, **self._gauge.read(metrics["images_per_second"])}
            system = self._system.read() if self._system is not None else {}
            self._tracked.log_metrics({f"train/{name}": value for name, value in all_metrics.items()} | system, step)
        self._progress.show(step, metrics["loss"], metrics["images_per_second"])

    def _save(self, step: int, files: Mapping[str, Any]) -> None:
        self._writer.save(step, files, lambda uri: self._newly_saved.put(step))

    def _before_checkpoint(self, step: int, files: Mapping[str, Any]) -> None:
        if self._is_due(step):
            averages.keep_snapshot(self._job.run_uri, step, files)
        if self._tracked is not None:  # so that a run that resumes here does not log earlier steps again
            self._tracked.save_metrics()

    def _is_due(self, step: int) -> bool:
        """Return True for a checkpoint that an uninterrupted run has too. One that was saved for a signal is neither scored nor chosen."""
        optim = self._job.experiment.optim
        return step % optim.checkpoint_interval == 0 or step == optim.num_steps

    def _should_stop(self, step: int) -> str | None:
        self._submit_saved()
        self._collect_scores()
        if self._check_for_stop():
            return STOP_REQUESTED
        return self._job.scorer.stop_reason(self._history()) if self._job.scorer is not None else None

    def _interruption(self) -> str | None:
        if time.monotonic() - self._checked_at > _SECONDS_BETWEEN_CHECKS:
            self._check_for_stop()
        return STOP_REQUESTED if self._is_stop_requested else None

    def _check_for_stop(self) -> bool:
        self._is_stop_requested = self._is_stop_requested or self._read_stop_request()
        self._checked_at = time.monotonic()
        return self._is_stop_requested

    # -- scores ----------------------------------------------------------------------------------------------------------

    def _history(self) -> list[Score]:
        return [self._scores[step] for step in sorted(self._scores)]

    def _submit_saved(self) -> None:
        while not self._newly_saved.empty():
            step = self._newly_saved.get()
            self._saved_steps.add(step)
            if self._tracked is not None:
                self._tracked.set_tags({"iddpm.latest_checkpoint_uri": checkpoint.checkpoint_uri(self._job.run_uri, step)})
            if self._is_due(step):
                self._submit_failed()
            self._submit(step)

    def _submit_failed(self) -> bool:
        """Submit the scores that failed once again; return True if one is pending now."""
        for step in [step for step, failures in self._failures.items() if failures < _SCORE_ATTEMPTS]:
            self._submit(step)
        return bool(self._pending)

    def _submit(self, step: int) -> None:
        if self._job.scorer is not None and self._is_due(step) and step not in self._pending and step not in self._scored_steps:
            self._pending[step] = self._submit_score(self._job.scorer, checkpoint.checkpoint_uri(self._job.run_uri, step))

    def _collect_scores(self) -> None:
        for step in sorted(step for step, future in self._pending.items() if future.done()):
            try:
                score = self._pending.pop(step).result()
            except Exception as error:  # a failed score must not end training; the result lists the missing ones
                say(f"the score of step {step} failed: {memory_shortage(error) or lines_of(error)[-1]}")
                self._add_failure(step)
            else:
                self._add_score(step, score)
        self._remove_unwanted()

    def _add_failure(self, step: int) -> None:
        """Keep the checkpoint for another attempt, at most `MAX_UNSCORED` of them; warn if every score fails."""
        self._failures[step] = self._failures.get(step, 0) + 1
        self._failures_in_a_row += 1
        for old in sorted(self._failures.keys() - self._pending.keys())[:-MAX_UNSCORED]:
            del self._failures[old]
            say(f"the checkpoint of step {old} is not kept for its score any longer: only the latest {MAX_UNSCORED} whose score failed are")
        if self._failures_in_a_row == _FAILURES_BEFORE_WARNING and not self._scores:
            say(
                f"there is no score yet, and the last {_FAILURES_BEFORE_WARNING} failed: without a score no checkpoint can be chosen at "
                "the end. Training goes on; to repair the cause, stop it and start it again, and it scores the checkpoints that are kept"
            )

    def _add_score(self, step: int, score: Score) -> None:
        self._failures.pop(step, None)
        self._failures_in_a_row = 0
        self._scores[step] = score
        self._scored_steps = {*self._scored_steps, step}
        try:
            metrics = self._log_score(score)
            say(f"scored step {step}: " + ", ".join(f"{name.rpartition('/')[2]} {value:.3f}" for name, value in metrics.items()))
            self._log_image(score)
        except Exception as error:  # the score counts all the same, and training goes on
            say(f"the score of step {step} is stored, but was not logged: {lines_of(error)[-1]}")

    def _log_score(self, score: Score) -> Mapping[str, float]:
        metrics = self._job.scorer.metrics(score) if self._job.scorer is not None else {}
        if self._tracked is not None:
            self._tracked.log_metrics(metrics, int(score["step"]))
        return metrics

    def _log_image(self, score: Score) -> None:
        scorer, tracked, step = self._job.scorer, self._tracked, int(score["step"])
        if scorer is None or tracked is None:
            return

        def log_image() -> None:
            image = scorer.image(score)
            if image is not None:
                tracked.log_image("samples", image, step)

        self._run_in_background(f"the sample grid of step {step} is not in MLflow", log_image)

    def _remove_unwanted(self) -> None:
        """Remove the checkpoints that neither a resumed run nor the final choice can need."""
        scorer, saved = self._job.scorer, self._saved_steps
        if scorer is not None:
            needed = scorer.keep(self._history()) | self._pending.keys() | self._failures.keys()
        else:
            needed = {step for step in saved if self._is_due(step)}
        unwanted = saved - needed - set(sorted(saved)[-NUM_LATEST:])
        if unwanted:
            self._saved_steps = saved - unwanted
            self._run_in_background("some old checkpoints are still there", lambda: checkpoint.remove(self._job.run_uri, unwanted))

    def _run_in_background(self, consequence: str, task: Callable[[], None]) -> None:
        """Run a task in the background; if it fails, print `consequence`, and training goes on."""

        def attempt() -> None:
            try:
                storage.retry(task)
            except Exception as error:
                say(f"{consequence}: {error}")

        self._background.submit(attempt)

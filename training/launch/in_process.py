"""Run the loop in this process, as one worker without Ray: for many small trainings on one machine, and for a debugger.

Nothing starts it again when it fails, and it waits for its scores; the same call resumes from the latest checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import torch

from training import storage
from training.distributed.signals import StopFlag, run_stoppable
from training.launch.worker import Control, require_possible, set_up_device, train_worker
from training.loop.interfaces import Job, Outcome, Scorer, TrainingError


def train(job: Job, *, stop: StopFlag | None = None) -> Outcome:
    """Train to the end, from the latest checkpoint of the run's directory if there is one.

    Args:
        job: Its resources have one worker.
        stop: Once it is set, a training that has begun saves a last checkpoint and ends; the outcome's `stop_reason` is `STOP_REQUESTED`.

    Raises:
        KeyboardInterrupt, SystemExit: The flag was set before training began, or Ctrl-C was pressed twice.
        TrainingError: Training is impossible with these settings, or roll-backs did not stop a divergence.
    """
    if job.resources.num_workers != 1:
        raise TrainingError(f"one process trains with resources.num_workers 1, got {job.resources.num_workers}")
    require_possible(job, trains_here=True, num_gpus=torch.cuda.device_count())
    flag, has_begun = stop or StopFlag(), threading.Event()
    control = Control(begin=has_begun.set, is_stop_requested=lambda: flag.is_set, submit_score=_score)

    def work() -> Outcome:
        num_threads = torch.get_num_threads()
        try:
            return train_worker(job, control, device=set_up_device(job, scores_elsewhere=False))
        finally:
            torch.set_num_threads(num_threads)

    outcome = run_stoppable(work, flag, on_stop=has_begun.is_set)
    if outcome.failure is not None:
        raise TrainingError(f"training stopped: {outcome.failure}")
    return outcome


def _score(scorer: Scorer, checkpoint_uri: str) -> Future[Mapping[str, Any]]:
    """Score a checkpoint while training waits; an error is the future's, as that of a score in another process."""
    future: Future[Mapping[str, Any]] = Future()
    try:
        future.set_result(storage.retry(lambda: scorer.score(checkpoint_uri)))
    except Exception as error:
        future.set_exception(error)
    return future

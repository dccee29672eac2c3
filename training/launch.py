"""Ray Train around the loop: workers, checkpoints in the run's directory, scores beside training, MLflow.

The run's directory is the truth: every attempt, by whatever number of workers, goes on from its latest complete
checkpoint. Ray is told of no checkpoint; it starts the workers, forms the process group and starts them again when
one is lost.
"""

from __future__ import annotations

import functools
import math
import os
import queue
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

from training import averages, checkpoint, storage
from training.config import Experiment, Resources
from training.data.loader import Loader
from training.gauges import Gauge, watch_system
from training.loop import MAX_ROLLBACKS, DivergedError, Hooks, Outcome, Trainer, TrainingError
from training.progress import format_rate, format_remaining, say
from training.ray_session import ray_session
from training.tracking import TrackedRun, attach

MAX_WORKER_FAILURES = 3
SECONDS_BETWEEN_LINES = 5.0
# A score shares a worker's GPU: with one of its own to wait for it might wait for ever, while training waits for it.
SCORE_GPU_SHARE = 0.25


class Scorer(Protocol):
    """Scores checkpoints beside training and says when enough is enough. Sent to other processes, so plain data."""

    def score(self, checkpoint_uri: str) -> Mapping[str, Any]:
        """Scores one checkpoint and keeps the score in the run's directory; a score that is kept is read, not redone."""

    def history(self, run_uri: str) -> Sequence[Mapping[str, Any]]:
        """The kept scores, by step."""

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        """Why training should stop, as a pure function of the scores; None while it should not."""

    def metrics(self, score: Mapping[str, Any]) -> Mapping[str, float]:
        """What of a score is logged, at the step of its checkpoint."""

    def image(self, score: Mapping[str, Any]) -> Any:
        """The sample grid of a score, uint8 HWC, or None."""

    def keep(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        """Steps whose checkpoints must not be removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every worker is told.

    Attributes:
        experiment: What to train.
        resources: With how many workers of which kind.
        data_uri: Data set with a `train` split.
        run_uri: The run's directory.
        tracking_run_id: The MLflow run; empty tracks nothing.
        scorer: Scores checkpoints beside training; None scores none and never stops early.
        control_name: Name of the actor that carries a request to stop.
    """

    experiment: Experiment
    resources: Resources
    data_uri: str
    run_uri: str
    tracking_run_id: str = ""
    scorer: Scorer | None = None
    control_name: str = field(default_factory=lambda: f"iddpm-control-{secrets.token_hex(4)}")


@ray.remote(num_cpus=0)
class _Control:
    """Carries a request to stop from the driver's signal handler to the workers."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def request_stop(self, reason: str) -> None:
        self.reason = reason

    def stop_reason(self) -> str | None:
        return self.reason


def train(job: Job, *, ray_address: str = "local") -> Outcome:
    """Trains to the end, from the latest checkpoint of the run's directory if there is one.

    Args:
        job: The run.
        ray_address: "local" starts Ray inside this process's machine; otherwise a cluster's address, or "auto".

    Raises:
        TrainingError: The workers failed more than `MAX_WORKER_FAILURES` times, or the run diverged for good.
    """
    # One more than the workers, so that a score finds a place beside training.
    num_cpus = max(os.cpu_count() or 1, job.resources.num_workers + 1)
    with ray_session(ray_address, num_cpus=num_cpus), tempfile.TemporaryDirectory(prefix="iddpm-ray-") as scratch:
        control = _Control.options(name=job.control_name, namespace="iddpm").remote()  # type: ignore[attr-defined]
        on_gpu = job.resources.num_gpus_per_worker > 0
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]  # Ray's stubs miss that what a worker returns is the result's
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=job.resources.collective_timeout_seconds),
            scaling_config=ScalingConfig(
                num_workers=_workers(job.resources),  # type: ignore[arg-type]  # a range is allowed
                use_gpu=on_gpu,
                resources_per_worker={"CPU": 1, "GPU": 1 - SCORE_GPU_SHARE} if on_gpu and job.scorer else None,
            ),
            run_config=RunConfig(
                name="train",
                # Nothing of ours goes through Ray's storage; on a cluster its own snapshot needs a place that all nodes see.
                storage_path=scratch if ray_address == "local" else storage.join(job.run_uri, "ray"),
                failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            ),
        )
        with _stop_on_sigterm(control):
            try:
                result = trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise TrainingError(_failure_message(error, job)) from error
    outcome: Outcome = result.return_value  # type: ignore[attr-defined]
    return outcome


def _workers(resources: Resources) -> int | tuple[int, int]:
    if 0 < resources.min_workers < resources.num_workers:
        return resources.min_workers, resources.num_workers
    return resources.num_workers


def _failure_message(error: Exception, job: Job) -> str:
    causes = getattr(error, "worker_failures", None) or {}
    told = "; ".join(f"worker {rank}: {str(cause).strip().splitlines()[-1]}" for rank, cause in sorted(causes.items()))
    return f"training stopped: {told or error}. The same command resumes from the latest checkpoint of {job.run_uri}"


@contextmanager
def _stop_on_sigterm(control: Any) -> Iterator[None]:
    """SIGTERM asks the workers for a last checkpoint; the request leaves from a thread, as the main one waits in Ray."""
    requested = threading.Event()
    finished = threading.Event()

    def forward() -> None:
        requested.wait()
        if not finished.is_set():
            control.request_stop.remote("SIGTERM")

    def handle(signum: int, frame: FrameType | None) -> None:
        requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handle)
    threading.Thread(target=forward, daemon=True).start()
    try:
        yield
    finally:
        finished.set()
        requested.set()
        signal.signal(signal.SIGTERM, previous)


# -- in a worker -------------------------------------------------------------------------------------------------------


def _worker(config: dict[str, Any]) -> Outcome:
    job: Job = config["job"]
    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    on_gpu = job.resources.num_gpus_per_worker > 0
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    torch.set_num_threads(job.resources.num_threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    loader = Loader(
        storage.join(job.data_uri, "train"),
        seed=job.experiment.seed,
        global_batch_size=job.experiment.optim.global_batch_size,
        cache_dir=job.resources.cache_dir or None,
        disk_budget_bytes=job.experiment.data.disk_budget_bytes or None,
        device=device if job.resources.resident_data else None,
    )
    side = _Beside(job, world_size) if rank == 0 else None
    hooks = side.hooks() if side is not None else Hooks()
    try:
        outcome = _train_with_rollbacks(
            lambda: Trainer(job.experiment, job.resources, loader, device=device, rank=rank, world_size=world_size, hooks=hooks),
            job.run_uri,
            rank,
            world_size,
            finish_saving=side.finish_saving if side is not None else lambda: None,
        )
        if side is not None:
            side.finish(outcome)
        return outcome
    finally:
        if side is not None:
            side.close()


def _train_with_rollbacks(
    make_trainer: Callable[[], Trainer], run_uri: str, rank: int, world_size: int, *, finish_saving: Callable[[], None]
) -> Outcome:
    """Trains; when the run diverges, goes back to the last good checkpoint with fresh draws, a few times."""
    rollbacks = 0
    while True:
        trainer = make_trainer()
        uri = _agree(checkpoint.latest(run_uri) if rank == 0 else None, world_size)
        if uri is not None:
            trainer.restore(functools.partial(checkpoint.load, uri))
            if rank == 0:
                say(f"resuming from step {trainer.step}")
        trainer.rollbacks = max(trainer.rollbacks, rollbacks)
        try:
            return trainer.train()
        except DivergedError as error:
            finish_saving()
            rollbacks = trainer.rollbacks + 1
            if rollbacks > MAX_ROLLBACKS:
                raise TrainingError(f"{error}; going back to the last checkpoint {MAX_ROLLBACKS} times did not help") from error
            if rank == 0:
                say(f"{error}; going back to the last good checkpoint ({rollbacks} of {MAX_ROLLBACKS})")


def _agree(value: Any, world_size: int) -> Any:
    """Rank 0's value on every rank."""
    if world_size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


@ray.remote(num_cpus=1, max_retries=2)
def _score(scorer: Scorer, checkpoint_uri: str) -> Mapping[str, Any]:
    os.nice(10)  # training has the right of way on a machine that both share
    torch.set_num_threads(1)
    return scorer.score(checkpoint_uri)


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


class _Beside:
    """What rank 0 does beside the loop: saves, scores, logs, shows progress, and asks whether to stop."""

    def __init__(self, job: Job, world_size: int) -> None:
        self.job = job
        checkpoint.clean(job.run_uri)
        self.writer = checkpoint.AsyncWriter(job.run_uri)
        self.snapshot_writer = checkpoint.AsyncWriter(averages.snapshots_uri(job.run_uri))
        self.tracked: TrackedRun | None = attach(job.tracking_run_id) if job.tracking_run_id else None
        self.gauge = Gauge(job.experiment, world_size)
        self.system = watch_system(job.tracking_run_id) if job.tracking_run_id else None
        self.progress = _Progress(job.experiment.optim.num_steps)
        self.saved: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.control: Any = ray.get_actor(job.control_name, namespace="iddpm")
        self.pending: dict[int, ray.ObjectRef[Any]] = {}
        self.history = list(job.scorer.history(job.run_uri)) if job.scorer else []
        self.logged = {int(score["step"]) for score in self.history}
        for step in checkpoint.steps(job.run_uri):
            if step not in self.logged:
                self._submit(step)

    def hooks(self) -> Hooks:
        return Hooks(log=self.log, save=self.save, should_stop=self.should_stop)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.tracked is not None:
            told = {**metrics, **self.gauge.read(metrics["images_per_second"])}
            self.tracked.log_metrics({f"train/{name}": value for name, value in told.items()}, step)
        self.progress.show(step, metrics["loss"], metrics["images_per_second"])

    def save(self, step: int, files: Mapping[str, Any]) -> None:
        self.writer.save(step, files, lambda uri: self.saved.put(step))
        snapshots = averages.snapshot_files(files)
        if snapshots:
            self.snapshot_writer.save(step, snapshots)

    def should_stop(self, step: int) -> str | None:
        self._submit_saved()
        self._collect(wait=False)
        reason: str | None = ray.get(self.control.stop_reason.remote())
        if reason is None and self.job.scorer is not None:
            reason = self.job.scorer.stop_reason(self.history)
        return reason

    def finish_saving(self) -> None:
        self.writer.wait()
        self.snapshot_writer.wait()

    def finish(self, outcome: Outcome) -> None:
        """Waits for the last checkpoint, and for its score unless training was told to end at once."""
        self.finish_saving()
        self._submit_saved()
        if outcome.stop_reason == "SIGTERM":
            return
        if self.pending:
            say(f"waiting for the scores of {len(self.pending)} checkpoint(s)")
        self._collect(wait=True)

    def close(self) -> None:
        if self.system is not None:
            self.system.finish()
        self.writer.close()
        self.snapshot_writer.close()
        if self.tracked is not None:
            self.tracked.flush()

    def _submit_saved(self) -> None:
        while not self.saved.empty():
            self._submit(self.saved.get())

    def _submit(self, step: int) -> None:
        if self.job.scorer is not None and step not in self.pending and step not in self.logged:
            share = SCORE_GPU_SHARE if self.job.resources.num_gpus_per_worker else 0
            uri = checkpoint.checkpoint_uri(self.job.run_uri, step)
            self.pending[step] = _score.options(num_gpus=share).remote(self.job.scorer, uri)

    def _collect(self, *, wait: bool) -> None:
        scorer = self.job.scorer
        if scorer is None:
            return
        for step in sorted(self.pending):
            reference = self.pending[step]
            ready, _ = ray.wait([reference], timeout=None if wait else 0)
            if not ready:
                continue
            del self.pending[step]
            try:
                score = ray.get(reference)
            except Exception as error:  # a score that failed must not end training; the end says which are missing
                say(f"the score of step {step} failed: {str(error).strip().splitlines()[-1]}")
                continue
            self.logged.add(step)
            self.history = sorted([*self.history, score], key=lambda item: int(item["step"]))
            metrics = scorer.metrics(score)
            say(f"scored step {step}: " + ", ".join(f"{name.rpartition('/')[2]} {value:.3f}" for name, value in metrics.items()))
            if self.tracked is not None:
                self.tracked.log_metrics(metrics, step)
                image = scorer.image(score)
                if image is not None:
                    self.tracked.log_image("samples", image, step)
        keep = scorer.keep(self.history) | set(self.pending)
        checkpoint.prune(self.job.run_uri, keep=keep | set(checkpoint.steps(self.job.run_uri)[-2:]))

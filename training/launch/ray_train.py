"""Ray Train around the loop: workers, checkpoints in the run's directory, scores beside training, MLflow.

The run's directory is the truth: every attempt, by whatever number of workers, goes on from its latest complete
checkpoint. Ray is told of no checkpoint; it starts the workers, forms the process group and starts them again when
one is lost.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import Experiment, Resources
from training.console import say
from training.data.loading.loader import Loader
from training.distributed.ranks import broadcast_object
from training.distributed.ray_session import ray_session
from training.loop.job import Job
from training.loop.rank_zero_hooks import SCORE_GPU_SHARE, RankZeroHooks
from training.loop.trainer import MAX_ROLLBACKS, DivergedError, Hooks, Outcome, Trainer, TrainingError
from training.tracking.tracked_run import flatten

MAX_WORKER_FAILURES = 3


@ray.remote(num_cpus=0)
class _Control:
    """Carries a request to stop from the driver's signal handler to the workers."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.has_begun = False

    def begin(self) -> None:
        """Workers train from now on, and will ask."""
        self.has_begun = True

    def request_stop(self, reason: str) -> bool:
        """Returns whether there is somebody to ask for it."""
        self.reason = reason
        return self.has_begun

    def stop_reason(self) -> str | None:
        return self.reason


def train(job: Job, *, ray_address: str = "local") -> Outcome:
    """Trains to the end, from the latest checkpoint of the run's directory if there is one.

    Args:
        job: The run.
        ray_address: "local" starts Ray inside this process's machine; otherwise a cluster's address, or "auto".

    Raises:
        TrainingError: It can't be done, the workers failed more than `MAX_WORKER_FAILURES` times without getting on,
            or the run diverged for good.
    """
    _require_possible(job, ray_address)
    # One more than the workers, so that a score finds a place beside training.
    num_cpus = max(os.cpu_count() or 1, job.resources.num_workers + 1)
    with ray_session(ray_address, num_cpus=num_cpus), tempfile.TemporaryDirectory(prefix="iddpm-ray-") as scratch:
        # RankZeroHooks the driver, with which it lives and dies: elsewhere it could be lost with a worker's machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        control = _Control.options(  # type: ignore[attr-defined]
            name=job.control_name, namespace="iddpm", scheduling_strategy=here
        ).remote()
        with _stop_on_sigterm(control) as requested:
            try:
                outcome = _fit(job, ray_address, scratch)
            except (SystemExit, KeyboardInterrupt):
                if not requested.is_set():
                    raise
                return Outcome(step=_saved_step(job), stop_reason="SIGTERM")
    if outcome.failure is not None:
        raise TrainingError(f"training stopped: {outcome.failure}")
    return outcome


def _fit(job: Job, ray_address: str, scratch: str) -> Outcome:
    """Has Ray train; its patience with failures counts anew as long as training gets on between them."""
    on_gpu = job.resources.num_gpus_per_worker > 0
    for attempt in itertools.count(1):
        before = _saved_step(job)
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
                name=f"train-{attempt}",
                # Nothing of ours goes through Ray's storage; on a cluster its own snapshot needs a place that all nodes see.
                storage_path=scratch if ray_address == "local" else storage.join(job.run_uri, "ray"),
                failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            ),
        )
        try:
            outcome: Outcome = trainer.fit().return_value  # type: ignore[attr-defined]
        except ray.train.TrainingFailedError as error:
            if _saved_step(job) <= before:
                raise TrainingError(_failure_message(error, job)) from error
            say(f"workers failed {MAX_WORKER_FAILURES + 1} times, but training got on meanwhile: they are started again")
        else:
            return outcome
    raise AssertionError("unreachable")


def _saved_step(job: Job) -> int:
    return max(storage.retry(lambda: checkpoint.steps(job.run_uri)), default=0)


def _require_possible(job: Job, ray_address: str) -> None:
    """Refuses before Ray starts what would fail in every worker, or wait for ever."""
    resources, batch_size = job.resources, job.experiment.optim.global_batch_size
    if batch_size < resources.num_workers:
        raise TrainingError(
            f"optim.global_batch_size {batch_size} is smaller than the {resources.num_workers} workers; use fewer workers or a larger batch"
        )
    if resources.num_gpus_per_worker and ray_address == "local" and not ray.is_initialized():
        fewest = resources.min_workers or resources.num_workers
        found = torch.cuda.device_count()
        if found < fewest:
            raise TrainingError(
                f"resources.num_gpus_per_worker is 1 for at least {fewest} workers, but this machine shows {found} GPUs; "
                "use fewer workers, or train on the processor with num_gpus_per_worker 0"
            )
    uri = storage.retry(lambda: checkpoint.latest(job.run_uri))
    if uri is not None:
        _require_same(job.experiment, uri)


def _require_same(experiment: Experiment, uri: str) -> None:
    """Refuses to go on with another experiment's checkpoint; a damaged one is dealt with by rank 0 (`checkpoint.clean`)."""
    try:
        found = json.loads(storage.retry(lambda: checkpoint.load_bytes(uri, checkpoint.EXPERIMENT)))
    except (checkpoint.CheckpointError, json.JSONDecodeError):
        return
    theirs, ours = flatten(found), flatten(experiment.to_dict())
    different = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if different:
        name = different[0]
        raise TrainingError(
            f"{uri} is a checkpoint of another experiment ({name} is {theirs.get(name)} there and {ours.get(name)} here"
            f"{f', and {len(different) - 1} more' if different[1:] else ''}); train in another directory"
        )


def _workers(resources: Resources) -> int | tuple[int, int]:
    if 0 < resources.min_workers < resources.num_workers:
        return resources.min_workers, resources.num_workers
    return resources.num_workers


def _failure_message(error: Exception, job: Job) -> str:
    causes = getattr(error, "worker_failures", None) or {}
    told = "; ".join(f"worker {rank}: {str(cause).strip().splitlines()[-1]}" for rank, cause in sorted(causes.items()))
    return f"training stopped: {told or error}. The same command resumes from the latest checkpoint of {job.run_uri}"


@contextmanager
def _stop_on_sigterm(control: Any) -> Iterator[threading.Event]:
    """SIGTERM asks the workers for a last checkpoint; the request leaves from a thread, as the main one waits in Ray.

    While no worker trains yet, Ray is told to give up, as by Ctrl-C. The event says that SIGTERM came.
    """
    requested = threading.Event()
    finished = threading.Event()

    def forward() -> None:
        requested.wait()
        if not finished.is_set() and not ray.get(control.request_stop.remote("SIGTERM")):
            os.kill(os.getpid(), signal.SIGINT)

    def handle(signum: int, frame: FrameType | None) -> None:
        requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    on_interrupt, on_term = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, handle)
    threading.Thread(target=forward, daemon=True).start()
    try:
        yield requested
    finally:
        finished.set()
        requested.set()
        signal.signal(signal.SIGTERM, on_term)
        signal.signal(signal.SIGINT, on_interrupt)  # Ray Train leaves its own, which asks a controller that is gone


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
        if job.scorer is not None and not job.resources.microbatch_size:
            # The microbatch that a trial finds fills the memory that there is, and scores need theirs.
            torch.cuda.set_per_process_memory_fraction(1 - SCORE_GPU_SHARE, device)
    loader = storage.retry(
        lambda: Loader(
            storage.join(job.data_uri, "train"),
            seed=job.experiment.seed,
            global_batch_size=job.experiment.optim.global_batch_size,
            cache_dir=job.resources.cache_dir or None,
            disk_budget_bytes=job.experiment.data.disk_budget_bytes or None,
            device=device if job.resources.resident_data else None,
        )
    )
    side = RankZeroHooks(job, world_size) if rank == 0 else None
    hooks = side.hooks() if side is not None else Hooks()
    try:
        outcome = _train_with_rollbacks(
            lambda: Trainer(job.experiment, job.resources, loader, device=device, rank=rank, world_size=world_size, hooks=hooks),
            job.run_uri,
            rank,
            world_size,
            finish_saving=side.finish_saving if side is not None else lambda: None,
        )
        if side is not None and outcome.failure is None:
            outcome = side.finish(outcome)
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
        trainer: Trainer | None = make_trainer()
        assert trainer is not None
        uri = broadcast_object(storage.retry(lambda: checkpoint.latest(run_uri)) if rank == 0 else None, world_size)
        if uri is not None:
            trainer.restore(functools.partial(_load_patiently, uri))
            if rank == 0:
                say(f"resuming from step {trainer.step}")
        trainer.rollbacks = max(trainer.rollbacks, rollbacks)
        try:
            outcome = trainer.train()
        except DivergedError as error:
            diverged = str(error)
        else:
            trainer.close()
            return outcome
        trainer.close()
        finish_saving()
        rollbacks = trainer.rollbacks + 1
        if rollbacks > MAX_ROLLBACKS:
            # Returned, not raised, since Ray would start the workers again to fail in the same way.
            failure = f"{diverged}; going back to the last good checkpoint {MAX_ROLLBACKS} times did not help"
            return Outcome(step=trainer.step, stop_reason=None, failure=failure)
        if rank == 0:
            say(f"{diverged}; going back to the last good checkpoint ({rollbacks} of {MAX_ROLLBACKS})")
        trainer = None  # a card need not hold two networks at once
        gc.collect()


def _load_patiently(uri: str, name: str) -> dict[str, Any]:
    return storage.retry(lambda: checkpoint.load(uri, name))

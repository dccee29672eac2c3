"""The work of one worker of a training, and the checks before one starts; the same under Ray Train and in one process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.experiment_file import WRONG_VERSION
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.run_keys import training_fields
from training.console import format_bytes, say
from training.data.format.manifest import read_manifest
from training.data.loading.loader import Loader
from training.distributed.arithmetic import require_fast
from training.distributed.cores import available_cores
from training.distributed.ranks import use_fast_kernels
from training.loop.interfaces import Hooks, Job, Outcome, Scorer, TrainingError
from training.loop.rank_zero_hooks import RankZeroHooks
from training.loop.rollback import train_with_rollbacks
from training.loop.trainer import Trainer, check_batch_size
from training.tracking.tracked_run import flatten

SCORE_MEMORY_SHARE = 0.25
"""Part of the memory of a worker's GPU for scores that another process takes on it."""
_SET_UP_TIMEOUT = timedelta(hours=12)
_SLOW_START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """Rank 0's line to the program that started it.

    Attributes:
        begin: Tells that the workers train from now on and read a request to stop.
        is_stop_requested: Returns True once a stop is requested; takes milliseconds.
        submit_score: Starts the scoring of the checkpoint at that URI, or scores it at once.
        scoring_obstacle: Returns why no score can start now, with the remedy, or None.
    """

    begin: Callable[[], None]
    is_stop_requested: Callable[[], bool]
    submit_score: Callable[[Scorer, str], Future[Mapping[str, Any]]]
    scoring_obstacle: Callable[[], str | None] = lambda: None


def train_worker(job: Job, control: Control, *, device: torch.device, rank: int = 0, world_size: int = 1) -> Outcome:
    """Train as one of the workers of a run, from its latest checkpoint to the end."""
    # Staging may take hours. The ranks wait for the slowest in this group, because the time-out of the loop's collectives is short.
    ready = dist.new_group(backend="gloo", timeout=_SET_UP_TIMEOUT) if world_size > 1 else None
    loader = Loader(
        storage.join(job.data_uri, "train"),
        seed=job.experiment.seed,
        global_batch_size=job.experiment.optim.global_batch_size,
        cache_dir=job.resources.cache_dir or None,
        disk_budget_bytes=job.experiment.data.disk_budget_bytes or None,
        device=device if job.resources.resident_data else None,
        retry_seconds=job.retry_seconds,
    )
    rank_zero = _rank_zero_hooks(job, world_size, control) if rank == 0 else None
    hooks = rank_zero.hooks() if rank_zero is not None else Hooks()
    try:
        if ready is not None:
            with _told_if_slow(rank):
                dist.barrier(ready)
        if rank == 0:
            control.begin()
        outcome = train_with_rollbacks(
            lambda: Trainer(job.experiment, job.resources, loader, device=device, rank=rank, world_size=world_size, hooks=hooks),
            job.run_uri,
            rank=rank,
            world_size=world_size,
            finish_saving=rank_zero.finish_saving if rank_zero is not None else lambda: None,
            on_rollback=rank_zero.go_back_to if rank_zero is not None else lambda step: None,
            retry_seconds=job.retry_seconds,
        )
        if rank_zero is not None and outcome.failure is None:
            outcome = rank_zero.finish(outcome)
        return outcome
    finally:
        loader.close()
        if rank_zero is not None:
            rank_zero.close()


@contextlib.contextmanager
def _told_if_slow(rank: int) -> Iterator[None]:
    """Say once that this worker waits for the others, if the block takes long: all of them read data, but one may hang."""
    message = f"worker {rank} is ready and has waited {_SLOW_START_SECONDS:.0f} s for the others; they may still read their data"
    alarm = threading.Timer(_SLOW_START_SECONDS, say, [message])
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def _rank_zero_hooks(job: Job, world_size: int, control: Control) -> RankZeroHooks:
    return RankZeroHooks(
        job,
        world_size,
        submit_score=control.submit_score,
        is_stop_requested=control.is_stop_requested,
        scoring_obstacle=control.scoring_obstacle,
    )


def set_up_device(job: Job, *, rank: int = 0, num_local_workers: int = 1, scores_elsewhere: bool) -> torch.device:
    """Set this process's threads, and return its device.

    Args:
        rank: The processor of rank 0 is timed where that decides whether a training may begin, so that the workers agree.
        num_local_workers: Workers on this machine, which share its cores.
        scores_elsewhere: Another process takes the scores, on the same GPU where there is one.

    Raises:
        UserError: Rank 0's processor is too slow for the precision; see `require_fast`.
    """
    torch.set_num_threads(job.resources.num_threads or max(1, available_cores() // num_local_workers))
    if not job.resources.num_gpus_per_worker:
        if rank == 0:
            _require_fast_processor(job)
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    use_fast_kernels()
    if job.scorer is not None and scores_elsewhere:
        # Scores need a part. A microbatch that is found by trial would fill the memory, and one that was set may, late in the training.
        torch.cuda.set_per_process_memory_fraction(1 - SCORE_MEMORY_SHARE, device)
    return device


def _require_fast_processor(job: Job) -> None:
    """Time the processor before the run's first checkpoint: no two timings are equal, and one must not end a training that has begun."""
    if job.resources.precision != "fp32" and storage.retry(lambda: checkpoint.latest(job.run_uri)) is None:
        require_fast(job.resources.precision, "cpu")


def require_possible(job: Job, *, trains_here: bool, num_gpus: int | None = None) -> None:
    """Check, before a worker starts, for settings that would fail in every worker or wait for ever.

    Args:
        trains_here: All workers run on this machine.
        num_gpus: GPUs that they can have; None where that is not known.

    Raises:
        UserError: The experiment's guide would not be stored, or this processor is too slow for the precision.
        TrainingError: The settings don't fit one another or the machine, or the run's checkpoints are of another experiment.
    """
    resources, experiment = job.resources, job.experiment
    check_batch_size(experiment, resources.num_workers)
    experiment.require_guide()
    fewest = resources.min_workers or resources.num_workers
    if not resources.num_gpus_per_worker and trains_here:
        _require_fast_processor(job)
    if resources.num_gpus_per_worker and num_gpus is not None and num_gpus < fewest:
        raise TrainingError(
            f"resources.num_gpus_per_worker is 1 for at least {fewest} workers, but this machine shows {num_gpus} GPUs; "
            "use fewer workers, or train on the processor with num_gpus_per_worker 0"
        )
    budget = experiment.data.disk_budget_bytes
    if resources.resident_data and budget:
        manifest = storage.retry(lambda: read_manifest(storage.join(job.data_uri, "train")))
        num_bytes = manifest.num_images * manifest.image_bytes
        if num_bytes > budget:
            raise TrainingError(
                f"resources.resident_data keeps the whole data set of {format_bytes(num_bytes)} in memory, but it is streamed, "
                f"as it is larger than data.disk_budget_bytes ({format_bytes(budget)}); raise the budget, or leave resident_data out"
            )
    uri = storage.retry(lambda: checkpoint.latest(job.run_uri))
    if uri is not None:
        _require_same(experiment, uri)


def _require_same(experiment: Experiment, uri: str) -> None:
    """Refuse to resume the checkpoint of another experiment or version. A damaged one passes: rank 0 removes it (`checkpoint.clean`)."""
    try:
        stored = storage.retry(lambda: checkpoint.load_bytes(uri, checkpoint.EXPERIMENT))
    except checkpoint.CheckpointError:
        return
    try:
        found = Experiment.from_json(stored)
    except UserError as error:  # its bytes are those that were written, so that nothing would remove it
        raise TrainingError(f"{storage.join(uri, checkpoint.EXPERIMENT)}: {error}; {WRONG_VERSION}") from error
    theirs, ours = flatten(training_fields(found)), flatten(training_fields(experiment))
    different = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if different:
        name = different[0]
        theirs, ours = flatten(found.every_field()), flatten(experiment.every_field())  # a default may be missing above
        raise TrainingError(
            f"{uri} is a checkpoint of another experiment ({name} is {theirs[name]} there and {ours[name]} here"
            f"{f', and {len(different) - 1} more' if different[1:] else ''}); train in another directory"
        )

"""Run the loop under Ray Train, which starts the workers, forms their process group, and starts them again when one is lost.

Every attempt, with any number of workers, resumes from the latest complete checkpoint in the run's directory. Ray knows nothing of
checkpoints.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import ray
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback, get_context
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from training import storage
from training.checkpoints import checkpoint
from training.config.errors import lines_of
from training.config.experiment import Resources
from training.console import say
from training.distributed.cores import available_cores
from training.distributed.ray_logs import logs_of_this_node, memory_shortage, store_logs, worker_log_stored
from training.distributed.ray_session import ray_session
from training.distributed.signals import StopFlag, run_stoppable
from training.launch.worker import Control, require_possible, set_up_device, train_worker
from training.loop.interfaces import Job, Outcome, Scorer, TrainingError

MAX_WORKER_FAILURES = 3
_SCORE_GPU_SHARE = 0.05
"""Part of a worker's GPU that Ray counts for a score. With a GPU of its own, a score might never start, and training would wait for it.

It is small, as Ray counts the workers that fit a node by dividing all its GPUs: 3 // 0.75 would be 4 workers; by 0.95 it is right up to 18.
"""
_CONTROL_SECONDS = 10.0
_STOP_ANSWER_SECONDS = 1.0


@ray.remote(num_cpus=0)
class _Control:
    """Carries a request to stop from the driver to rank 0."""

    def __init__(self) -> None:
        self._is_stop_requested = False
        self._has_begun = False

    def begin(self) -> None:
        """Record that the workers train from now on and read the request."""
        self._has_begun = True

    def request_stop(self) -> bool:
        """Request a stop; return True if the workers train already."""
        self._is_stop_requested = True
        return self._has_begun

    def is_stop_requested(self) -> bool:
        return self._is_stop_requested

    def node_id(self) -> str:
        """Return the id of the driver's node, on which this actor is."""
        return str(ray.get_runtime_context().get_node_id())


@ray.remote(num_cpus=1, max_retries=2)
def _score(scorer: Scorer, checkpoint_uri: str) -> Mapping[str, Any]:
    _lower_priority()
    torch.set_num_threads(1)
    return storage.retry(lambda: scorer.score(checkpoint_uri))


@functools.cache  # `nice` adds up, and Ray runs many scores in one process
def _lower_priority() -> None:
    """Give training the processor first, where both share a machine."""
    os.nice(10)


def train(job: Job, *, ray_address: str = "local", stop: StopFlag | None = None) -> Outcome:
    """Train to the end, from the latest checkpoint of the run's directory if there is one.

    Args:
        ray_address: "local" starts Ray on this machine; "auto" or an address joins a running cluster.
        stop: Once it is set, workers that train save a last checkpoint and end; the outcome's `stop_reason` is `STOP_REQUESTED`.

    Raises:
        KeyboardInterrupt, SystemExit: The flag was set while no worker trained yet, or Ctrl-C was pressed twice.
        TrainingError: Training is impossible with these settings, the workers failed more than `MAX_WORKER_FAILURES` times
            without progress, or roll-backs did not stop a divergence.
    """
    with tempfile.TemporaryDirectory(prefix="iddpm-ray-", ignore_cleanup_errors=True) as scratch:
        outcome = run_stoppable(
            lambda: _train(job, ray_address, scratch), stop or StopFlag(), on_stop=lambda: _request_stop(job), grace_seconds=0.0
        )
    if outcome.failure is not None:
        raise TrainingError(f"training stopped: {outcome.failure}")
    return outcome


def _train(job: Job, ray_address: str, scratch: str) -> Outcome:
    is_local = ray_address == "local"
    require_possible(job, trains_here=is_local, num_gpus=torch.cuda.device_count() if is_local and not ray.is_initialized() else None)
    # One CPU more than the workers, so that a score can run beside training.
    num_cpus = max(available_cores(), job.resources.num_workers + 1)
    with ray_session(ray_address, num_cpus=num_cpus):
        # On the driver's node: on another it could be lost with a worker's machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        control = _Control.options(  # type: ignore[attr-defined]
            name=job.control_name, namespace="iddpm", scheduling_strategy=here
        ).remote()
        try:
            return _fit(job, scratch)
        finally:
            ray.kill(control)
            store_logs(logs_of_this_node(), job.run_uri)


def _request_stop(job: Job) -> bool:
    """Request a last checkpoint from rank 0; return False if no worker trains yet."""
    try:
        return bool(ray.is_initialized() and ray.get(_control_of(job).request_stop.remote(), timeout=_CONTROL_SECONDS))
    except (ValueError, ray.exceptions.RayError):
        return False


def _control_of(job: Job) -> Any:
    return ray.get_actor(job.control_name, namespace="iddpm")


def _fit(job: Job, scratch: str) -> Outcome:
    """Train with Ray, which itself starts lost workers again up to `MAX_WORKER_FAILURES` times.

    When Ray gives up, training is started again if there is a checkpoint since its last start, and if the workers found no room yet.
    If they died as they started, or Ray Train's controller was lost, it is started again `MAX_WORKER_FAILURES` times.
    """
    resources, on_gpu = job.resources, job.resources.num_gpus_per_worker > 0
    attempt = losses = 0
    while True:
        attempt += 1
        before = _saved_step(job)
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]  # Ray's stubs miss that what a worker returns is the result's
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=resources.collective_timeout_seconds),
            scaling_config=scaling(resources, has_scorer=job.scorer is not None),
            run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the class of Ray Train V1
                name=f"train-{attempt}",
                # Checkpoints and scores go to S3 by `training.checkpoints`. Ray itself keeps an empty list here, on its controller's node.
                storage_path=scratch,
                # Ray would start workers that die as they start again for ever.
                failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES, controller_failure_limit=0),  # type: ignore[call-arg]
                logging_config=LoggingConfig(log_level="WARNING"),  # its files in S3 keep all lines
                callbacks=[_Failures()],  # type: ignore[list-item]  # as above
            ),
        )
        try:
            return trainer.fit().return_value  # type: ignore[attr-defined,no-any-return]
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            if isinstance(_cause(error), WorkerGroupStartupTimeoutError):
                say(f"no room for {resources.min_workers or resources.num_workers} worker(s) yet on the Ray cluster; waiting for it")
            elif _saved_step(job) > before:
                losses = 0
                say(f"training was lost, but there is a new checkpoint, from which it is started again: {_reason(error)}")
            elif losses < MAX_WORKER_FAILURES and _is_loss(error):
                losses += 1
                say(f"{_reason(error)}; starting the training again ({losses} of {MAX_WORKER_FAILURES})")
            else:
                raise TrainingError(_failure_message(error, job, before)) from error
        _free_reservations()


def scaling(resources: Resources, *, has_scorer: bool) -> ScalingConfig:
    """Return what Ray Train reserves for the workers, and on which nodes."""
    on_gpu, is_elastic = resources.num_gpus_per_worker > 0, 0 < resources.min_workers < resources.num_workers
    return ScalingConfig(  # type: ignore[call-arg]  # mypy sees the class of Ray Train V1
        num_workers=(resources.min_workers, resources.num_workers) if is_elastic else resources.num_workers,  # type: ignore[arg-type]  # a range is allowed
        use_gpu=on_gpu,
        resources_per_worker={"CPU": 1, "GPU": 1 - _SCORE_GPU_SHARE} if on_gpu and has_scorer else None,
        placement_strategy="SPREAD",  # over all nodes that were asked for; Ray would fill one first, and leave others idle
        elastic_resize_monitor_interval_s=math.inf,  # to add workers, Ray would kill those that train, without a checkpoint
    )


def _free_reservations() -> None:
    """Remove the placement groups of this process's trainings, while none of them runs.

    Ray does it, unless it killed its own cleaner too, for instance when memory was short. Then a score would never find a free processor.
    """
    job_id = ray.get_runtime_context().get_job_id()  # the end of the ids of what the job has made
    for name, group in placement_group_table().items():
        if name.endswith(job_id) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _saved_step(job: Job) -> int:
    return max(storage.retry(lambda: checkpoint.steps(job.run_uri)), default=0)


def _failure_message(error: Exception, job: Job, saved_step: int) -> str:
    then = f"resumes from step {saved_step:,} of" if saved_step else "begins anew in"
    return f"training stopped: {_reason(error)}. The same command {then} {job.run_uri}"


def _reason(error: Exception) -> str:
    """Return why Ray gave a training up, in one line."""
    if shortage := memory_shortage(error):
        return shortage
    cause = _cause(error)
    if isinstance(cause, WorkerGroupStartupFailedError):  # Ray puts a traceback before the reason
        return f"a worker died as it started: {lines_of(cause)[-1].rstrip('.')}"
    if isinstance(cause, ray.exceptions.ActorDiedError):
        return "the process that leads the workers (Ray's TrainController) was killed or crashed; Ray's lines before this one say why"
    return _reasons(getattr(error, "worker_failures", None) or {}) or lines_of(cause)[0].rstrip(".")


def _reasons(causes: Mapping[int, Exception]) -> str:
    """Return why each of the workers of these ranks failed, in one line."""
    return "; ".join(f"worker {rank}: {_reason_of_worker(cause)}" for rank, cause in sorted(causes.items()))


def _reason_of_worker(cause: Exception) -> str:
    cause = getattr(cause, "health_check_failure", cause)
    if shortage := memory_shortage(cause):
        return shortage
    if isinstance(cause, ray.exceptions.ActorDiedError):
        return "its process was killed or crashed"
    if isinstance(cause, ray.exceptions.ActorUnavailableError):
        return "its process does not answer"
    return lines_of(cause)[-1]  # of an error in the training, the last line of its traceback


def _is_loss(error: Exception) -> bool:
    """Return True if Ray lost workers as they started, or lost its controller for another reason than memory.

    Neither speaks against the training.
    """
    return isinstance(_cause(error), WorkerGroupStartupFailedError) or (
        isinstance(error, ray.exceptions.RayError) and not memory_shortage(error)
    )


def _cause(error: Exception) -> Exception:
    """Return the error of Ray Train's controller, which leads the workers; another error is its own cause."""
    return getattr(error, "controller_failure", error)


# -- in Ray Train's controller, the process that leads the workers -------------------------------------------------------


class _Failures(UserCallback):
    """Prints each failure after which Ray starts the workers again, which only Ray's own log names otherwise."""

    def __init__(self) -> None:
        self._count = 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self._count += 1
        if self._count <= MAX_WORKER_FAILURES:  # else Ray gives up, and the driver tells why
            say(f"{_reasons(worker_exceptions)}; starting the workers again ({self._count} of {MAX_WORKER_FAILURES})")


# -- in a worker -------------------------------------------------------------------------------------------------------


def _worker(config: dict[str, Any]) -> Outcome:
    job: Job = config["job"]
    context = get_context()
    with worker_log_stored(job.run_uri, context.get_world_rank()):
        drivers_node_id = ray.get(_control_of(job).node_id.remote())
        try:
            rank, world_size = context.get_world_rank(), context.get_world_size()
            device = set_up_device(job, rank=rank, num_local_workers=context.get_local_world_size(), scores_elsewhere=True)
            return train_worker(job, _control(job, world_size), device=device, rank=rank, world_size=world_size)
        finally:
            if context.get_local_rank() == 0 and ray.get_runtime_context().get_node_id() != drivers_node_id:
                store_logs(logs_of_this_node(), job.run_uri)  # the driver stores those of its own node


def _control(job: Job, world_size: int) -> Control:
    actor = _control_of(job)

    def submit_score(scorer: Scorer, checkpoint_uri: str) -> Future[Mapping[str, Any]]:
        gpu_share = _SCORE_GPU_SHARE if job.resources.num_gpus_per_worker else 0
        future: Future[Mapping[str, Any]] = _score.options(num_gpus=gpu_share).remote(scorer, checkpoint_uri).future()
        return future

    def is_stop_requested() -> bool:
        try:
            return bool(ray.get(actor.is_stop_requested.remote(), timeout=_STOP_ANSWER_SECONDS))
        except ray.exceptions.GetTimeoutError:  # the other ranks wait for this one, and it asks again soon
            return False

    return Control(
        begin=lambda: ray.get(actor.begin.remote()),
        is_stop_requested=is_stop_requested,
        submit_score=submit_score,
        scoring_obstacle=lambda: scoring_obstacle(world_size),
    )


def scoring_obstacle(world_size: int) -> str | None:
    """Return why no score can start while these workers train, or None.

    It is no reason to refuse the training: a standing cluster may grow by itself, and nothing in Ray says for sure whether it does.
    """
    num_cpus = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    if num_cpus >= world_size + 1:
        return None
    return (
        f"the Ray cluster has {num_cpus:g} CPUs, and {world_size} workers take all of them; "
        f"train with fewer (num_workers), or give the cluster {world_size + 1} CPUs"
    )

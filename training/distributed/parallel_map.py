"""Independent pieces of work, in this process or as Ray tasks: the same function either way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from training.distributed.ray_session import ray_session

_GPU_SHARE = 0.75
"""Of its GPU that a task holds: no two fit one, and the step that handed it out may hold the rest for work of its own."""

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def spread(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], *, num_workers: int, num_gpus_per_worker: int = 0
) -> Iterator[_Result]:
    """The result of each job, in order of completion.

    No more than `num_workers` jobs are in flight, so that stopping early loses little and a shared cluster isn't flooded.

    Args:
        function: Importable by name; it must be harmless to run twice, because a lost worker's job runs again.
        jobs: Picklable pieces of work.
        num_workers: 1 runs in this process; more use the Ray cluster that this process has joined, the one that
            `RAY_ADDRESS` names, or a local one that ends with the work.
        num_gpus_per_worker: 1 gives each of the Ray tasks a GPU of its own; this process uses what it sees.

    Raises:
        Exception: What the function raised, as it raised it; the other jobs are cancelled.
    """
    if num_workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return

    with ray_session(os.environ.get("RAY_ADDRESS") or "local", num_cpus=num_workers):
        yield from _on_ray(function, jobs, num_workers, num_gpus_per_worker)


def _on_ray(function: Callable[[_Job], _Result], jobs: Sequence[_Job], num_workers: int, num_gpus_per_worker: int) -> Iterator[_Result]:
    import ray

    remote = ray.remote(function).options(num_cpus=1, num_gpus=num_gpus_per_worker * _GPU_SHARE, max_retries=3)
    waiting = iter(jobs)
    # The range comes first: zip stops there, where the jobs' iterator would have given one away already.
    running = [remote.remote(job) for _, job in zip(range(num_workers), waiting, strict=False)]
    try:
        while running:
            done, running = ray.wait(running, num_returns=1)
            for job in waiting:
                running.append(remote.remote(job))
                break
            try:
                result: _Result = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            yield result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)

"""Apply a function to independent jobs, in this process or as Ray tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from training.distributed.ray_session import ray_session

_GPU_FRACTION = 0.75
"""Part of a GPU that a task reserves: two tasks never share a GPU, and the step that started them can use the rest."""

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def parallel_map(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], *, num_workers: int, num_gpus_per_worker: int = 0
) -> Iterator[_Result]:
    """Yield the result of each job, in order of completion.

    At most `num_workers` jobs are in flight, so that an early stop loses little and a shared cluster isn't flooded.

    Args:
        function: A function that Ray can import by name. It must be harmless to run twice, because the job of a lost worker runs again.
        jobs: Picklable jobs.
        num_workers: 1 runs in this process; more use the Ray cluster that this process has joined, the one that
            `RAY_ADDRESS` names, or a local one that ends with the work.
        num_gpus_per_worker: 1 gives each Ray task a GPU of its own; this process uses those that it sees.

    Raises:
        Exception: The exception of the function; the other jobs are cancelled.
    """
    if num_workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    import ray

    with ray_session(os.environ.get("RAY_ADDRESS") or "local", num_cpus=num_workers):
        remote = ray.remote(function).options(num_cpus=1, num_gpus=num_gpus_per_worker * _GPU_FRACTION, max_retries=3)
        waiting = iter(jobs)
        # The range comes first: with the jobs first, zip would take one job too many from the iterator.
        running = [remote.remote(job) for _, job in zip(range(num_workers), waiting, strict=False)]
        try:
            while running:
                done, running = ray.wait(running, num_returns=1)
                running += [remote.remote(job) for _, job in zip(range(1), waiting, strict=False)]
                try:
                    result: _Result = ray.get(done[0])
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                yield result
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

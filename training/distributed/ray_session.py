"""Join a Ray cluster, or start a local one that ends with the work and that nobody joins without its token."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from training.console import format_duration, say
from training.distributed.ray_logs import MemoryShortageError, hide_noise, memory_shortage

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Each line of a worker is one line of the driver: progress must not be folded away, nor coloured.
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Ray would change the workers' directory to one of its own, and the meaning of relative paths with it.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray's own default starts a task that was killed for its node's memory again for ever.
    "RAY_task_oom_retries": "3",
}

_LONGEST_TEMP_DIR = 35
"""Ray puts sockets under TMPDIR, at paths 70 characters longer; the system allows 107 in all."""

_SLOW_START_SECONDS = 180.0
"""Ray's limit of 30 s holds for some parts of its start. It waits for the others without a limit, and without a message."""

_SECONDS_FOR_LAST_LINES = 1.0
"""Ray looks for new workers every 0.5 s and for new lines every 0.1 s. Lines that it has not passed on when the session ends are lost."""

_SECONDS_FOR_SHORT_TASKS = 1.0
"""Time for tasks to end by themselves before they are cancelled."""

_LONGEST_TASK_SECONDS = 7 * 86400.0
"""No task of an evaluation or of data takes so long. The longest of the paper's is a twentieth of 50,000 images of 256x256, each by 4,000
steps: less than 4 days of a small GPU (L4)."""


class StandstillError(RuntimeError):
    """A process of Ray neither ends nor gives a result; one line with the remedy."""


def standstill(function: str, longest_seconds: float) -> str:
    """Return why the results of a function on Ray are waited for no longer.

    Ray starts work again if its process has ended. It waits without end for a process that is stopped, or hangs in a system call.

    Args:
        function: Its name.
        longest_seconds: Time that no result takes; it has passed since the last one.
    """
    return f"none has come for {format_duration(longest_seconds)}: a process (ray::{function}) stands still, or Ray has no room for it"


def set_defaults() -> None:
    """Set our defaults of environment variables that the user has not set; Ray reads some of them at its first import."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def ray_session(address: str = "local", *, num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray inside the block; inside another session, use that one.

    A local cluster ends with the thread that started it: Linux kills a child when its parent thread ends.

    Args:
        address: "local" starts a cluster on this machine; "auto" or an address joins a running one.
        num_cpus: Tasks of one CPU that a local cluster runs at once; None takes the machine's cores.
    """
    set_defaults()
    if address == "local" and "ray" not in sys.modules:
        # Ray's own choice, but without its warning. Ray reads the mode at its import, so it must not be set later.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        yield
        return
    hide_noise()
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if not in_main_thread:
        logging.getLogger("ray._private.worker").addFilter(_is_not_about_sigterm)
    if address == "local":
        # A token that lives as long as this process: no other user of the machine can join, and no file is written.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        _start_local(num_cpus)
    else:
        ray.init(address=address, logging_level=logging.WARNING)
    if in_main_thread and on_sigterm not in (signal.SIG_DFL, None):
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler raises at any point of the program
    try:
        yield
    finally:
        try:
            time.sleep(_SECONDS_FOR_LAST_LINES)
        finally:
            ray.shutdown()


def _is_not_about_sigterm(record: logging.LogRecord) -> bool:
    return "SIGTERM handler is not set" not in record.getMessage()


def _start_local(num_cpus: int | None) -> None:
    """Start Ray on this machine, with up to three attempts: Ray's fixed limit of 30 s can be too short on a busy machine."""
    # Nobody drains this machine. A training would start one process more, with seconds of imports, to watch for it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    temp_dir = None if len(tempfile.gettempdir()) <= _LONGEST_TEMP_DIR else "/tmp/ray"

    def tell() -> None:
        logs = f"{temp_dir or f'{tempfile.gettempdir()}/ray'}/session_latest/logs"
        say(
            f"Ray has not started for {format_duration(_SLOW_START_SECONDS)}; if it does not soon, stop this, see its logs in {logs}, "
            "and check memory, disk and the limits of `ulimit -a`"
        )

    slow = threading.Timer(_SLOW_START_SECONDS, tell)
    slow.daemon = True
    slow.start()
    try:
        _try_to_start(num_cpus, temp_dir)
    finally:
        slow.cancel()


def _try_to_start(num_cpus: int | None, temp_dir: str | None) -> None:
    import ray

    for attempts_left in (2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                logging_level=logging.WARNING,
                job_config=_job_config(),
                _node_ip_address="127.0.0.1",
                _temp_dir=temp_dir,
            )
        except Exception as error:
            if not attempts_left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
        else:
            return


def _job_config() -> Any:
    """Return a configuration by which Ray leaves the working directory off its workers' path.

    Ray would put it first, so that a `training.py` or an `evaluation` package of the user would be imported in place of ours.
    """
    from ray.job_config import JobConfig

    class WithoutWorkingDirectory(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:  # Ray asks this before it adds the directory, and for nothing else
            return True

    return WithoutWorkingDirectory()


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
        num_workers: 1 runs in this process; more use the Ray cluster that this process has joined, the one that
            `RAY_ADDRESS` names, or a local one that ends with the work.
        num_gpus_per_worker: 1 gives each Ray task a GPU of its own; this process uses those that it sees.

    Raises:
        Exception: The exception of the function; the other jobs are cancelled.
        MemoryShortageError: Ray killed a task for its node's memory.
        StandstillError: No task ended for a week.
    """
    if num_workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    with ray_session(os.environ.get("RAY_ADDRESS") or "local", num_cpus=num_workers):
        tasks = parallel_tasks(
            function, jobs, num_workers=num_workers, num_gpus_per_worker=num_gpus_per_worker, longest_seconds=_LONGEST_TASK_SECONDS
        )
        with contextlib.closing(tasks):
            for _, result in tasks:
                if isinstance(result, Exception):
                    raise result
                yield result


def parallel_tasks(
    function: Callable[[_Job], _Result],
    jobs: Sequence[_Job],
    *,
    num_workers: int,
    num_gpus_per_worker: int = 0,
    grace_seconds: float = 0.0,
    longest_seconds: float | None = None,
) -> Generator[tuple[_Job, _Result | Exception]]:
    """Run each job as a task of the Ray cluster that this process has joined; yield it with its result or its error, as they end.

    A process of Ray runs one task after the other, so it imports once. The other arguments are those of `parallel_map`.

    Args:
        grace_seconds: When the caller gives up, running tasks get an interrupt like Ctrl-C's, and this long to end before they are killed.
        longest_seconds: Time that no task takes; None waits without a limit.

    Raises:
        StandstillError: No task ended for so long; Ray kills those that run.
    """
    import ray

    name = getattr(function, "__name__", "")
    remote: Any = ray.remote(_run_interruptibly).options(
        name=name,
        num_cpus=1,
        num_gpus=num_gpus_per_worker * _GPU_FRACTION,
        max_retries=3,
        scheduling_strategy="SPREAD",  # over all nodes that were asked for; Ray would fill one first, and leave others idle
    )
    waiting = iter(jobs)
    running: dict[Future[_Result], tuple[_Job, Any]] = {}

    def fill() -> None:
        for job in itertools.islice(waiting, num_workers - len(running)):
            reference = remote.remote(function, job)
            running[reference.future()] = job, reference

    try:
        fill()
        while running:
            # Python waits, and not Ray, which would turn the exit status of a signal into 1.
            ended = wait(running, timeout=longest_seconds, return_when="FIRST_COMPLETED").done
            if longest_seconds is not None and not ended:
                reason = standstill(name, longest_seconds)
                raise StandstillError(f"{len(running)} task(s) have no result: {reason}; look at the disks, network and GPUs of its node")
            done = next(iter(ended))
            job, _ = running.pop(done)
            fill()
            error = done.exception()
            if error is None:
                yield job, done.result()
            elif isinstance(error, ray.exceptions.RayTaskError):
                yield job, error.cause
            elif isinstance(error, ray.exceptions.RayError):  # its worker was lost more often than Ray tries
                shortage = memory_shortage(error, "the resources of its stage")
                yield job, MemoryShortageError(shortage) if shortage else error
            else:
                raise error
    finally:
        unfinished = set(running)
        try:
            # Ray (2.60) ends this process if a task is cancelled while its result comes in, as that of a short one soon does.
            unfinished = wait(running, timeout=_SECONDS_FOR_SHORT_TASKS).not_done
            if unfinished and grace_seconds:
                for future in unfinished:
                    ray.cancel(running[future][1])
                unfinished = wait(unfinished, timeout=grace_seconds).not_done
        finally:
            for future in unfinished:
                ray.cancel(running[future][1], force=True)


def _run_interruptibly(function: Callable[[_Job], _Result], job: _Job) -> _Result:
    """Run a job so that `ray.cancel` can interrupt it: that calls Python's handler of SIGINT, which a background program ignores."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return function(job)

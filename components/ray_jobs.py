"""A step on a Ray cluster that stands, handed over through its dashboard: one job for one call, followed to its end.

For a process that is on none of the cluster's nodes, such as the pod of a pipeline's step. The cluster's own pods need the
project's image, and the credentials and addresses that steps have: nothing secret is sent along.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from components.cluster_call import Call, call_of
from components.cluster_steps import STEPS
from components.rayjob import DEFAULT_PACE, STOPPED_EXIT_CODE, Pace
from components.rayjob_spec import RUN_URI_ANNOTATION, rayjob_name
from training import storage
from training.config import ConfigError
from training.progress import format_duration, say

T = TypeVar("T")

_LIVE = ("PENDING", "RUNNING")
_SERVER_ERROR = re.compile(r"status code 5\d\d")
_PATIENCE_SECONDS = 900.0
_SECONDS_BETWEEN_TRIES = 5.0
_CHARACTERS_PER_SECOND = 100_000


class RayJobsError(RuntimeError):
    """A standing cluster can't be reached, or the step did not end well there; one line that says why and what helps."""


def run_on_dashboard(step: str, arguments: Mapping[str, Any], address: str, *, pace: Pace = DEFAULT_PACE) -> Any:
    """Runs a step on the cluster with that dashboard, or follows a job that is at it.

    SIGTERM stops the job before anything else and raises SystemExit(143).

    Args:
        step: One of `components.cluster_steps.STEPS`.
        arguments: Its arguments, by name.
        address: The dashboard's, like "http://raycluster-head-svc:8265".
        pace: How often to look.

    Returns:
        What the step returns.

    Raises:
        ConfigError: The preset, an override or the data set does not fit.
        RayJobsError: The cluster can't be reached, or the step did not end well.
    """
    call = call_of(step, arguments)
    if STEPS[step].drives and call.is_done():
        say(f"{call.key} is done already")
        return call.answer()
    client = _connect(address)
    name = rayjob_name(call.key)
    with _stopped_on_sigterm(client) as hold:
        _attach_or_submit(client, name, call, hold)
        _follow(client, hold.job, pace)
    if not call.is_done():
        raise RayJobsError(
            f"Ray job {hold.job} succeeded but {call.result_uri} is not there; does the cluster write to the same S3 as this step?"
        )
    say(f"{call.key} is done")
    return call.answer()


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RayJobsError(f"no Ray dashboard answers at {address}: {_line(error)}; is it the head's port 8265, seen from here?") from error
    except ValueError as error:
        raise ConfigError(f"ray_address {address!r}: {_line(error)}") from error


def _attach_or_submit(client: Any, name: str, call: Call, hold: _Hold) -> None:
    """Finds the job that is at the call already, or submits one; a job's name ends in the number of its try.

    Ray takes a name anew once its job is deleted, and then mistakes the end of the old job for that of the new one.
    """
    tries = _patiently(lambda: _tries(client, name))
    for number, status in tries.items():
        if status in _LIVE:
            say(f"Ray job {name}-{number} is there already and {status}; following it")
            hold.job = f"{name}-{number}"
            return
    if not STEPS[call.step].drives:
        storage.delete(call.result_uri)  # of an earlier call: this one may find something else
    call.write()
    hold.job = f"{name}-{max(tries, default=0) + 1}"  # before it is on its way, so that SIGTERM finds it
    _patiently(lambda: _submit(client, hold.job, call))
    say(f"Ray job {hold.job} is handed to {client.get_address()}")


def _tries(client: Any, name: str) -> dict[int, str]:
    """The jobs of that name: number of the try -> status."""
    jobs = {job.submission_id or "": str(job.status.value) for job in client.list_jobs()}
    numbers = {job.removeprefix(f"{name}-"): status for job, status in jobs.items() if job.startswith(f"{name}-")}
    return {int(number): status for number, status in numbers.items() if number.isdecimal()}


def _submit(client: Any, job: str, call: Call) -> None:
    try:
        client.submit_job(entrypoint=shlex.join(call.driver), submission_id=job, metadata={RUN_URI_ANNOTATION: call.directory_uri})
    except RuntimeError as error:
        if _status(client, job):  # somebody was faster, or the answer to an earlier try was lost
            return
        if _SERVER_ERROR.search(str(error)):  # a cluster that has just come up has no agent yet
            raise
        raise RayJobsError(f"Ray refuses job {job}: {_line(error)}") from error


def _follow(client: Any, name: str, pace: Pace) -> None:
    log = _Log(client, name)
    while True:
        status = _patiently(lambda: _status(client, name))
        if status not in _LIVE:
            break
        log.show()
        pace.pause()
    log.show(at_once=True)  # its last lines stand above the reason
    if status == "SUCCEEDED":
        return
    if not status:
        raise RayJobsError(f"Ray job {name} is gone: the cluster was started anew, or the job deleted; the same command goes on")
    message = _line(_patiently(lambda: client.get_job_info(name).message or ""))
    raise RayJobsError(
        f"Ray job {name} ended as {status}: {message[:400]}; its last lines say why, and the same command goes on from there"
    )


class _Log:
    """The driver's log, copied to standard output; best effort, as the run does not depend on it."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = name
        self._shown = 0
        self._next_look = 0.0

    def show(self, *, at_once: bool = False) -> None:
        """Shows what is new. The dashboard gives the whole log each time, so a long one is asked for less often."""
        if time.monotonic() < self._next_look and not at_once:
            return
        with contextlib.suppress(RuntimeError, OSError):
            text = self._client.get_job_logs(self._name) or ""
            sys.stdout.write(text[self._shown :])
            sys.stdout.flush()
            self._shown = max(self._shown, len(text))
        self._next_look = time.monotonic() + self._shown / _CHARACTERS_PER_SECOND


def _status(client: Any, name: str) -> str:
    """The job's status in Ray's words; empty where there is no such job."""
    try:
        return str(client.get_job_status(name).value)
    except RuntimeError as error:
        if "404" in str(error):
            return ""
        raise


def _patiently(ask: Callable[[], T]) -> T:
    """Asks again while the cluster does not answer, for a while: a training runs for days."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except RayJobsError:
            raise
        except (RuntimeError, OSError) as error:
            if time.monotonic() > deadline:
                raise RayJobsError(
                    f"the Ray cluster has not answered for {format_duration(_PATIENCE_SECONDS)}: {_line(error)}; its job may go on"
                ) from error
            time.sleep(_SECONDS_BETWEEN_TRIES)


@dataclass
class _Hold:
    """The job that SIGTERM stops."""

    job: str = ""


@contextmanager
def _stopped_on_sigterm(client: Any) -> Iterator[_Hold]:
    hold = _Hold()

    def handle(signum: int, frame: FrameType | None) -> None:
        if hold.job:
            with contextlib.suppress(RuntimeError, OSError):
                client.stop_job(hold.job)  # first: a pod of a terminated pipeline has about a second left
        raise SystemExit(STOPPED_EXIT_CODE)

    if threading.current_thread() is not threading.main_thread():
        yield hold
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield hold
    finally:
        signal.signal(signal.SIGTERM, previous)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:400]

"""A step on a Ray cluster that stands, handed over through its dashboard: one job for one call, followed to its end.

For a process that is on none of the cluster's nodes, such as the pod of a pipeline's step. The cluster's own pods need the
project's image, and the credentials and addresses that steps have: nothing secret is sent along.
"""

from __future__ import annotations

import contextlib
import os
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

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from components.cluster.rayjob_spec import RAY_SECRET, RUN_URI_ANNOTATION, rayjob_name
from components.launch.call import Call, call_of
from components.launch.rayjob import DEFAULT_PACE, Pace
from components.launch.step import Step
from training import storage
from training.config.errors import UserError
from training.console import format_duration, say
from training.distributed.signals import STOPPED_EXIT_CODE

T = TypeVar("T")

_LIVE = ("PENDING", "RUNNING")
_PASSING = (408, 425, 429)
"""Refusals that a later try may find gone, beside the server's own errors."""
_TIMEOUT_SECONDS = (10.0, 30.0)
"""To connect, and without a byte of the answer."""
_SECONDS_TO_STOP = 3.0
_PATIENCE_SECONDS = 900.0
_SECONDS_BETWEEN_TRIES = 5.0
_CHARACTERS_PER_SECOND = 100_000
_LOOKS_FOR_LAST_LINES = 3


class RayJobsError(RuntimeError):
    """A standing cluster can't be reached, or the step did not end well there; one line that says why and what helps."""


class _RefusalError(RuntimeError):
    """The dashboard answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"it answered {status}: {_line(text) or 'nothing more'}")
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether a later try may help: a cluster that has just come up has no agent yet, a proxy has no head."""
        return self.status >= 500 or self.status in _PASSING


class _Dashboard(JobSubmissionClient):
    """Ray's client, which would wait for ever for an answer, and says what it was told in words only."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, timeout=_TIMEOUT_SECONDS, **options)
        except AuthenticationError:
            raise RayJobsError(
                f"the Ray dashboard at {self.get_address()} refuses this step's token, or misses one; the step takes RAY_AUTH_MODE=token "
                f"and RAY_AUTH_TOKEN from its environment, in a pipeline from Secret {RAY_SECRET} (k8s/README.md)"
            ) from None

    def _raise_error(self, r: Any) -> None:
        raise _RefusalError(r.status_code, r.text)


def run_on_dashboard(step: Step, arguments: Mapping[str, Any], address: str, *, pace: Pace = DEFAULT_PACE) -> Any:
    """Runs a step on the cluster with that dashboard, or follows a job that is at it.

    SIGTERM stops the job before anything else and raises SystemExit(143).

    Args:
        step: The step.
        arguments: Its arguments, by name.
        address: The dashboard's, like "http://raycluster-head-svc:8265".
        pace: How often to look.

    Returns:
        What the step returns.

    Raises:
        UserError: The preset, an override or the data set does not fit.
        RayJobsError: The cluster can't be reached, or the step did not end well.
    """
    call = call_of(step, arguments)
    if step.run_files and call.is_done():
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


def _connect(address: str) -> _Dashboard:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if os.environ.get(name, address) != address:
            raise UserError(f"{name} is set, and Ray would take it in place of ray_address {address}; unset it where this step runs")
    try:
        return _Dashboard(address)
    except RayJobsError:
        raise
    except (ValueError, KeyError) as error:  # of the address, or of what answers: a page in place of JSON
        raise UserError(f"at ray_address {address!r} is no Ray dashboard, like http://HEAD:8265: {_line(error)}") from error
    except (RuntimeError, OSError) as error:
        raise RayJobsError(f"no Ray dashboard answers at {address}: {_line(error)}; is it the head's port 8265, seen from here?") from error


def _attach_or_submit(client: _Dashboard, name: str, call: Call, hold: _Hold) -> None:
    """Finds the job that is at the call already, or submits one; a job's name ends in the number of its try.

    Ray takes a name anew once its job is deleted, and then mistakes the end of the old job for that of the new one.
    """
    tries = _patiently(lambda: _tries(client, name))
    for number, status in tries.items():
        if status in _LIVE:
            say(f"Ray job {name}-{number} is there already and {status}; following it")
            hold.job = f"{name}-{number}"
            return
    if not call.step.run_files:
        storage.delete(call.result_uri)  # of an earlier call: this one may find something else
    call.write()
    hold.job = f"{name}-{max(tries, default=0) + 1}"  # before it is on its way, so that SIGTERM finds it
    _patiently(lambda: _submit(client, hold.job, call))
    say(f"Ray job {hold.job} is handed to {client.get_address()}")


def _tries(client: _Dashboard, name: str) -> dict[int, str]:
    """The jobs of that name: number of the try -> status."""
    jobs = {job.submission_id or "": str(job.status.value) for job in client.list_jobs()}
    numbers = {job.removeprefix(f"{name}-"): status for job, status in jobs.items() if job.startswith(f"{name}-")}
    return {int(number): status for number, status in numbers.items() if number.isdecimal()}


def _submit(client: _Dashboard, job: str, call: Call) -> None:
    try:
        client.submit_job(entrypoint=shlex.join(call.driver), submission_id=job, metadata={RUN_URI_ANNOTATION: call.directory_uri})
    except _RefusalError:
        if not _status(client, job):  # else somebody was faster, or the answer to an earlier try was lost
            raise


def _follow(client: _Dashboard, name: str, pace: Pace) -> None:
    log = _Log(client, name)
    while True:
        status = _patiently(lambda: _status(client, name))
        if status not in _LIVE:
            break
        log.show()
        pace.pause()
    log.show_the_rest()  # its last lines stand above the reason
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

    def __init__(self, client: _Dashboard, name: str) -> None:
        self._client = client
        self._name = name
        self._shown = 0
        self._next_look = 0.0

    def show(self) -> None:
        """Shows what is new. The dashboard gives the whole log each time, so a long one is asked for less often."""
        if time.monotonic() >= self._next_look:
            self._look()
            self._next_look = time.monotonic() + self._shown / _CHARACTERS_PER_SECOND

    def show_the_rest(self) -> None:
        """Shows what is new, and looks again where the dashboard does not give it."""
        for _ in range(_LOOKS_FOR_LAST_LINES):
            if self._look():
                return
            time.sleep(1.0)

    def _look(self) -> bool:
        try:
            text = self._client.get_job_logs(self._name) or ""
        except (RuntimeError, OSError):
            return False
        sys.stdout.write(text[self._shown :])
        sys.stdout.flush()
        self._shown = max(self._shown, len(text))
        return True


def _status(client: _Dashboard, name: str) -> str:
    """The job's status in Ray's words; empty where there is no such job."""
    try:
        return str(client.get_job_status(name).value)
    except _RefusalError as error:
        if error.status == 404:
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
            if isinstance(error, _RefusalError) and not error.may_pass:
                raise RayJobsError(f"the Ray dashboard refuses: {error}") from error
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
def _stopped_on_sigterm(client: _Dashboard) -> Iterator[_Hold]:
    hold = _Hold()

    def handle(signum: int, frame: FrameType | None) -> None:
        if hold.job:  # first: a pod of a terminated pipeline has about a second left, and whoever does not answer gets no more
            stopper = threading.Thread(target=_stop, args=(client, hold.job), daemon=True)
            stopper.start()
            stopper.join(_SECONDS_TO_STOP)
        raise SystemExit(STOPPED_EXIT_CODE)

    if threading.current_thread() is not threading.main_thread():
        yield hold
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield hold
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(client: _Dashboard, job: str) -> None:
    """Stops a job, and asks again while there is none of the name: it may be on its way."""
    deadline = time.monotonic() + _SECONDS_TO_STOP
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError, OSError):
            client.stop_job(job)
            return
        time.sleep(0.1)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:400]

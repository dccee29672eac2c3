"""Run a step on a standing Ray cluster through its dashboard: submit one job for one call, and follow it to its end.

For a process that is on none of the cluster's nodes, such as the pod of a pipeline's step. The cluster's own pods need the
project's image, and the credentials and addresses that steps have: nothing secret is sent along.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from components.cluster.connection import KubernetesError, current_namespace
from components.cluster.kubernetes_api import QuickRequests
from components.cluster.names import OWNER_LABEL, RAY_SECRET, RUN_URI_ANNOTATION
from components.launch.call import Call, call_of
from components.launch.rayjob.follow import DEFAULT_PACE, Pace
from components.launch.rayjob.manifest import rayjob_name
from components.launch.rayjob.status import is_lost_driver
from components.launch.repeat import LostError
from components.launch.signalled import is_run_over
from components.launch.step import Step
from training import storage
from training.config.errors import UserError, in_one_line
from training.console import format_duration, say
from training.distributed.signals import StopFlag, run_stoppable, stop_flag
from training.storage.retry import retry

T = TypeVar("T")

_LIVE = ("PENDING", "RUNNING")
_TRANSIENT = (408, 425, 429)
"""HTTP statuses that may pass, beside the server's own errors (5xx)."""
_TIMEOUT_SECONDS = (10.0, 30.0)
"""Timeouts of connecting, and of waiting for the next byte of an answer."""
_SECONDS_TO_STOP = 3.0
_PATIENCE_SECONDS = 900.0
_SECONDS_BETWEEN_TRIES = 5.0
_CHARACTERS_PER_SECOND = 100_000
_TRIES_FOR_LAST_LINES = 3
_LONGEST = 400
"""Characters of a message of Ray."""


class RayJobsError(RuntimeError):
    """A standing cluster can't be reached, or the step failed there; one line with the reason and the remedy."""


class _RefusalError(RuntimeError):
    """The dashboard answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"it answered {status}: {in_one_line(text, _LONGEST) or 'nothing more'}")
        self.status = status


class _Dashboard(JobSubmissionClient):
    """Ray's client with a timeout for each request, and with the HTTP status in its errors."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, timeout=_TIMEOUT_SECONDS, **options)
        except AuthenticationError:
            raise RayJobsError(
                f"the Ray dashboard at {self.get_address()} refuses this step's token, or requires one; the step takes RAY_AUTH_MODE=token "
                f"and RAY_AUTH_TOKEN from its environment, in a pipeline from Secret {RAY_SECRET} (k8s/README.md)"
            ) from None

    def _raise_error(self, r: Any) -> None:
        raise _RefusalError(r.status_code, r.text)


@dataclass
class _Job:
    """The job that is followed.

    Attributes:
        name: Its name in Ray; empty before there is one.
        is_own: True if this launcher, or an earlier try of the same step, submitted it. Only such a job is stopped by a signal.
    """

    name: str = ""
    is_own: bool = False


def run_on_dashboard(step: Step, arguments: Mapping[str, Any], address: str, *, pace: Pace = DEFAULT_PACE) -> Any:
    """Run a step on the cluster with that dashboard, or follow a job that runs it already; return what the step returns.

    SIGTERM and Ctrl-C stop the job before anything else, unless another run submitted it or this run goes on; see `_stop_own`.

    Raises:
        UserError: The experiment or the data set does not fit.
        RayJobsError: The cluster refuses, or the step failed.
        LostError: The job was lost or the cluster does not answer, and another try may succeed.
    """
    workflow = _workflow()
    owner = workflow or uuid.uuid4().hex
    # In a pipeline a call belongs to the run, so a result that is there is that of an earlier try. Elsewhere that of an earlier call may
    # be out of date: only a training's is taken.
    call = call_of(step, arguments, scope=workflow)
    if (step.run_files or workflow) and call.is_done():
        say(f"{call.key} is done already")
        return storage.retry(call.result)
    client, job = _connect(address), _Job()

    def follow() -> None:
        while True:
            _attach_or_submit(client, rayjob_name(call.key), call, job, stop, owner)
            _follow(client, job, pace)
            if job.is_own or call.is_done():
                return
            say(f"Ray job {job.name} of another run has ended without this run's result, which goes on with its own")

    with stop_flag() as stop:
        run_stoppable(follow, stop, on_stop=lambda: _stop_own(client, job, workflow), grace_seconds=0.0)
    if not storage.retry(call.is_done):
        raise RayJobsError(
            f"Ray job {job.name} succeeded but {call.result_uri} is not there; does the cluster write to the same S3 as this step?"
        )
    say(f"{call.key} is done")
    return storage.retry(call.result)


def _connect(address: str) -> _Dashboard:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if os.environ.get(name, address) != address:
            raise UserError(f"{name} is set, and Ray would take it in place of ray_address {address}; unset it where this step runs")
    try:
        return _Dashboard(address)
    except RayJobsError:
        raise
    except (ValueError, KeyError) as error:  # a malformed address, or an answer that is not JSON
        raise UserError(f"ray_address {address!r} is no Ray dashboard, like http://HEAD:8265: {in_one_line(error, _LONGEST)}") from error
    except (RuntimeError, OSError) as error:
        reason = in_one_line(error, _LONGEST)
        failure = LostError if _may_pass(error) else RayJobsError  # a head that is being started again does not answer for a minute
        raise failure(f"no Ray dashboard answers at {address}: {reason}; is it the head's port 8265, seen from here?") from error


def _attach_or_submit(client: _Dashboard, name: str, call: Call, job: _Job, stop: StopFlag, owner: str) -> None:
    """Find the job that runs the call already, or submit one; a job's name ends in the number of its try.

    So no name is used twice: Ray would mistake the end of a deleted job for the end of the new one.
    """
    tries = _retry(lambda: _tries(client, name))
    for number, (status, submitter) in tries.items():
        if status in _LIVE:
            say(f"Ray job {name}-{number} is there already and {status}; following it")
            job.name, job.is_own = f"{name}-{number}", submitter == owner
            return
    if not call.step.run_files and not os.environ.get("KFP_POD_NAME"):
        storage.delete(call.result_uri)  # the result of an earlier call, which may differ
    call.write()
    job.name, job.is_own = f"{name}-{max(tries, default=0) + 1}", True  # before it exists, so that a stop finds it
    stop.raise_if_set()
    job.is_own = _retry(lambda: _submit(client, job.name, call, owner))
    say(f"Ray job {job.name} is submitted to {client.get_address()}")


def _workflow() -> str:
    """Return the pipeline run's Workflow, whose name is the beginning of the pod's; empty outside a pipeline."""
    return re.split(r"-(?:retry-)?system-container-impl-", os.environ.get("KFP_POD_NAME", ""))[0]


def _tries(client: _Dashboard, name: str) -> dict[int, tuple[str, str]]:
    """Return the jobs of that name: number of the try -> (status, owner)."""
    jobs = {job.submission_id or "": job for job in client.list_jobs()}
    numbers = {job.removeprefix(f"{name}-"): found for job, found in jobs.items() if job.startswith(f"{name}-")}
    return {
        int(number): (str(found.status.value), (found.metadata or {}).get(OWNER_LABEL, ""))
        for number, found in numbers.items()
        if number.isdecimal()
    }


def _submit(client: _Dashboard, job: str, call: Call, owner: str) -> bool:
    """Submit a job; return False if another launcher was faster and submitted it."""
    metadata = {RUN_URI_ANNOTATION: call.directory_uri, OWNER_LABEL: owner}
    try:
        client.submit_job(entrypoint=shlex.join(call.driver), submission_id=job, metadata=metadata)
    except _RefusalError:
        if not _status(client, job):
            raise
        # Another launcher was faster, or the answer to an earlier request was lost.
        return bool((client.get_job_info(job).metadata or {}).get(OWNER_LABEL) == owner)
    return True


def _follow(client: _Dashboard, job: _Job, pace: Pace) -> None:
    """Follow a job until it has succeeded, or another run that owns it has stopped it.

    Raises:
        LostError: It is gone, its driver was killed, or the driver says that a later try may succeed.
        RayJobsError: It failed otherwise.
    """
    name = job.name
    log = _Log(client, name, pace)
    while True:
        status = _retry(lambda: _status(client, name))
        if status not in _LIVE:
            break
        log.show()
        pace.pause()
    log.show_the_rest()  # its last lines stand above the reason
    if status == "SUCCEEDED" or (status == "STOPPED" and not job.is_own):
        return
    if not status:
        raise LostError(f"Ray job {name} is gone: the cluster was restarted, or the job was deleted")
    message = in_one_line(_retry(lambda: client.get_job_info(name).message or ""))
    failure = f"Ray job {name} ended as {status}: {in_one_line(message, _LONGEST)}; its last lines say why"
    if is_lost_driver(message):
        raise LostError(failure)
    raise RayJobsError(f"{failure}, and the same command goes on from there")


class _Log:
    """The driver's log, copied to standard output; best effort, as the run does not depend on it."""

    def __init__(self, client: _Dashboard, name: str, pace: Pace) -> None:
        self._client, self._name, self._pace = client, name, pace
        self._shown = 0
        self._next_look = 0.0

    def show(self) -> None:
        """Show what is new. The dashboard gives the whole log each time, so a long one is read less often."""
        if self._pace.clock() >= self._next_look:
            self._look()
            self._next_look = self._pace.clock() + self._shown / _CHARACTERS_PER_SECOND

    def show_the_rest(self) -> None:
        """Show what is new, and try again where the dashboard does not give it."""
        for _ in range(_TRIES_FOR_LAST_LINES):
            if self._look():
                return
            self._pace.sleep(1.0)

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
    """Return the job's status, as Ray names it; empty where there is no such job."""
    try:
        return str(client.get_job_status(name).value)
    except _RefusalError as error:
        if error.status == 404:
            return ""
        raise


def _retry(request: Callable[[], T]) -> T:
    """Repeat a request while the cluster does not answer, up to a limit: a training runs for days."""
    try:
        return retry(request, seconds=_PATIENCE_SECONDS, pause_seconds=_SECONDS_BETWEEN_TRIES, is_transient=_may_pass)
    except RayJobsError:
        raise
    except (RuntimeError, OSError) as error:
        if not _may_pass(error):
            raise RayJobsError(f"the Ray dashboard refuses: {error}") from error
        patience = format_duration(_PATIENCE_SECONDS)
        raise LostError(f"the Ray cluster has not answered for {patience}: {in_one_line(error, _LONGEST)}; its job may go on") from error


def _may_pass(error: BaseException) -> bool:
    """Return True if a later try may help: a new cluster may have no agent yet, and a proxy no head."""
    if isinstance(error, _RefusalError):
        return error.status >= 500 or error.status in _TRANSIENT
    return isinstance(error, (RuntimeError, OSError)) and not isinstance(error, RayJobsError)


def _stop_own(client: _Dashboard, job: _Job, workflow: str) -> bool:
    """Stop the job that this run submitted, unless the run goes on without this pod, as where its node is drained.

    If the API does not say whether it goes on, the job is stopped: nothing else would end it, and a retry resumes its training.
    """
    if job.is_own:
        if workflow and _goes_on(workflow):
            say(f"this pod is stopped, but its run is not cancelled: Ray job {job.name} goes on, and the step's next try follows it")
            return False
        # No retries: a pod of a terminated pipeline has about a second left.
        stopper = threading.Thread(target=_stop, args=(client, job.name), daemon=True)
        stopper.start()
        stopper.join(_SECONDS_TO_STOP)
    return False


def _goes_on(workflow: str) -> bool:
    try:
        return is_run_over(QuickRequests(current_namespace()), workflow) is False
    except KubernetesError:  # no service account
        return False


def _stop(client: _Dashboard, job: str) -> None:
    """Stop a job; try again while there is none of that name, as its submission may be on its way."""
    deadline = time.monotonic() + _SECONDS_TO_STOP
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError, OSError):
            client.stop_job(job)
            return
        time.sleep(0.1)

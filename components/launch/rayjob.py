"""One run on KubeRay, from a small pod that starts it, watches it and, told to stop, ends it.

A run has one RayJob name, so that the API server itself keeps two launchers from starting it twice: the second finds
the first one's job and watches that. A job that failed is deleted, its pods waited for, and created again; training
then goes on from its checkpoints. Whether a run is done is read from the run's directory by the caller, not from logs.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.rayjob_spec import OWNER_LABEL, RUN_LABEL, RUN_URI_ANNOTATION, RayJob, RayJobSpecError
from components.launch.rayjob_logs import LogFollower
from components.launch.rayjob_manifest import render
from components.launch.rayjob_rules import violations
from components.launch.rayjob_status import Status, failure_message, is_live, pod_troubles, read_status
from training.console import format_duration, say
from training.distributed.signals import STOPPED_EXIT_CODE

_SECONDS_TO_DELETE = 5.0


class RayJobError(RuntimeError):
    """The run did not end well on the cluster; one line that says why and what helps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How often to look, and how long to wait.

    Attributes:
        poll_seconds: Between two looks at the job, give or take a fifth.
        teardown_seconds: How long the pods of an earlier job may take to go.
        slack_seconds: How long KubeRay may take to see the job, and after the job's own deadline to act on it.
    """

    poll_seconds: float = 5.0
    teardown_seconds: float = 600.0
    slack_seconds: float = 600.0

    def pause(self) -> None:
        """Waits for about `poll_seconds`, so that many launchers don't ask in step."""
        time.sleep(self.poll_seconds * random.uniform(0.8, 1.2))


DEFAULT_PACE = Pace()


def run_rayjob(job: RayJob, api: KubernetesApi, *, is_done: Callable[[], bool], pace: Pace = DEFAULT_PACE) -> None:
    """Starts a job, or finds it running, and returns once it succeeded.

    SIGTERM sends one DELETE before anything else and raises SystemExit(143); likewise Ctrl-C. A job that another
    Workflow started is watched, but never ended from here.

    Args:
        job: The job.
        api: The cluster.
        is_done: Whether the run left its result; a job that succeeded but whose result is gone is started again.
        pace: How often to look.

    Raises:
        RayJobError: It failed, was deleted, outlived its deadline, or KubeRay does not see it.
        RayJobSpecError: KubeRay would refuse it.
        KubernetesError: The API refuses, or is away for too long; a job that was started goes on.
    """
    manifest = render(job)
    broken = violations(manifest)
    if broken:
        raise RayJobSpecError(f"KubeRay would refuse RayJob {job.name}: {'; '.join(broken)}")
    with _deleted_on_sigterm(job.name, api.prepared_delete(job.name)) as hold:
        running = _attach_or_create(job, manifest, api, is_done, pace, hold)
        _watch(job, running["metadata"]["uid"], api, pace)
        hold.mine = False  # it ended well: KubeRay clears it away, its log stays readable until then


# -- SIGTERM -----------------------------------------------------------------------------------------------------------


@dataclass
class _Hold:
    """Whether the job of this name may be ended from here, and whether its creation is on its way."""

    mine: bool = False
    being_created: bool = False


@contextmanager
def _deleted_on_sigterm(name: str, delete: Callable[[], int]) -> Iterator[_Hold]:
    hold = _Hold()
    told = threading.Event()

    def handle(signum: int, frame: FrameType | None) -> None:
        if hold.mine:
            delete()  # first: a pod of a terminated pipeline has about a second left
        told.set()
        raise SystemExit(STOPPED_EXIT_CODE)

    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, handle) if in_main_thread else None
    try:
        yield hold
    except KeyboardInterrupt:
        told.set()
        raise
    finally:
        if told.is_set() and hold.mine:
            _delete_for_certain(name, delete, may_still_arrive=hold.being_created)
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _delete_for_certain(name: str, delete: Callable[[], int], *, may_still_arrive: bool) -> None:
    """Again, while there is time: a create that was on its way may arrive after the first DELETE."""
    deadline = time.monotonic() + _SECONDS_TO_DELETE
    while True:
        status = delete()
        if status == 200 or (status == 404 and not may_still_arrive):
            say("told to stop: the RayJob is deleted; the same command goes on from the latest checkpoint")
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if status != 404:
        say(f"RayJob {name} could not be deleted (the API answered {status or 'nothing'}); 'kubectl delete rayjob {name}' does it")


# -- one job for a run -------------------------------------------------------------------------------------------------


def _attach_or_create(
    job: RayJob, manifest: dict[str, Any], api: KubernetesApi, is_done: Callable[[], bool], pace: Pace, hold: _Hold
) -> dict[str, Any]:
    while True:
        found = api.rayjob(job.name)
        if found is None:
            _wait_for_pods_to_go(job, api, pace)
            hold.mine = hold.being_created = True
            created = api.create_rayjob(manifest)
            hold.being_created = False
            if created is not None:
                say(f"RayJob {job.name} is created in namespace {job.namespace}: {job.num_worker_pods} worker pod(s)")
                return created
            hold.mine = False
            pace.pause()
            continue  # somebody was faster; look again at what there is
        _require_same_run(job, found)
        if not found["metadata"].get("deletionTimestamp"):
            status = read_status(found)
            if not status.failed and not (status.succeeded and not is_done()):
                hold.mine = found["metadata"]["labels"].get(OWNER_LABEL) == (job.owner.uid if job.owner else None)
                say(f"RayJob {job.name} is there already and {status.words}; following it")
                return found
            say(f"RayJob {job.name} of an earlier try {'failed' if status.failed else 'has lost its result'}; starting it again")
            api.delete_rayjob(job.name, found["metadata"]["uid"])
        _wait_until_gone(job, found["metadata"]["uid"], api, pace)


def _require_same_run(job: RayJob, found: dict[str, Any]) -> None:
    labels, annotations = found["metadata"].get("labels") or {}, found["metadata"].get("annotations") or {}
    if labels.get(RUN_LABEL) != job.name:
        raise RayJobError(f"a RayJob {job.name} exists that this project did not make; rename or delete it")
    if annotations.get(RUN_URI_ANNOTATION) != job.run_uri:
        raise RayJobError(
            f"RayJob {job.name} works in {annotations.get(RUN_URI_ANNOTATION)}, not in {job.run_uri}; "
            f"wait for it, or delete it with 'kubectl -n {job.namespace} delete rayjob {job.name}'"
        )


def _wait_until_gone(job: RayJob, uid: str, api: KubernetesApi, pace: Pace) -> None:
    deadline = time.monotonic() + pace.teardown_seconds
    while True:
        found = api.rayjob(job.name)
        if found is None or found["metadata"]["uid"] != uid:
            return
        if time.monotonic() > deadline:
            raise RayJobError(
                f"RayJob {job.name} is still being deleted after {format_duration(pace.teardown_seconds)}; is KubeRay's operator running?"
            )
        pace.pause()


def _wait_for_pods_to_go(job: RayJob, api: KubernetesApi, pace: Pace) -> None:
    """Two drivers would write the same checkpoints, and a deleted job's pods outlive it by their grace period."""
    deadline = time.monotonic() + pace.teardown_seconds
    said = False
    while True:
        live = [pod["metadata"]["name"] for pod in api.pods(f"{RUN_LABEL}={job.name}") if is_live(pod)]
        if not live:
            return
        if not said:
            say(f"waiting for {len(live)} pod(s) of the last try to go")
            said = True
        if time.monotonic() > deadline:
            raise RayJobError(
                f"{len(live)} pod(s) of an earlier RayJob {job.name} are still there after {format_duration(pace.teardown_seconds)}: "
                f"{', '.join(live[:3])}; delete them, by force where their node is gone"
            )
        pace.pause()


# -- watching ----------------------------------------------------------------------------------------------------------


def _watch(job: RayJob, uid: str, api: KubernetesApi, pace: Pace) -> None:
    selector = f"{RUN_LABEL}={job.name}"
    logs = LogFollower(api, selector)
    said = ""
    troubles: list[str] = []
    began: float | None = None
    try:
        while True:
            found = api.rayjob(job.name)
            if found is None or found["metadata"]["uid"] != uid:
                raise RayJobError(
                    f"RayJob {job.name} was {'deleted' if found is None else 'replaced'} while it ran; "
                    "the same command goes on from the latest checkpoint"
                )
            status = read_status(found)
            if status.words != said:
                said = status.words
                _tell(job, status)
            if status.deployment in ("Running", "Complete", "Failed"):
                logs.start()
            if status.succeeded:
                return
            if status.failed:
                logs.finish()  # its last lines stand above the reason
                raise RayJobError(failure_message(job.name, status, troubles))
            troubles = _new_troubles(troubles, pod_troubles(api.pods(selector)))
            if status.deployment in ("Suspended", "Suspending"):
                began = None  # KubeRay, too, counts anew once the queue lets it go on
            else:
                began = began if began is not None else time.monotonic()
                _require_in_time(job, uid, status, time.monotonic() - began, api, pace)
            pace.pause()
    finally:
        logs.finish()


def _require_in_time(job: RayJob, uid: str, status: Status, seconds: float, api: KubernetesApi, pace: Pace) -> None:
    """Ends a job on which nobody works any more: KubeRay's operator would have ended it, or at least looked at it."""
    operator = "is KubeRay's operator running ('kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator')?"
    if status.deployment == "" and seconds > pace.slack_seconds:
        api.delete_rayjob(job.name, uid)
        raise RayJobError(f"KubeRay has not looked at RayJob {job.name} for {format_duration(seconds)}, and it is deleted; {operator}")
    if seconds > job.active_deadline_seconds + pace.slack_seconds:
        api.delete_rayjob(job.name, uid)
        raise RayJobError(
            f"RayJob {job.name} outlived its deadline of {format_duration(job.active_deadline_seconds)} and is deleted; {operator} "
            "The same command goes on from the latest checkpoint"
        )


def _tell(job: RayJob, status: Status) -> None:
    say(f"RayJob {job.name} {status.words}")
    if status.deployment == "Running" and status.dashboard_url:
        service = status.dashboard_url.partition(".")[0]
        say(f"dashboard: {status.dashboard_url} (kubectl -n {job.namespace} port-forward svc/{service} 8265)")


def _new_troubles(before: list[str], now: list[str]) -> list[str]:
    for trouble in now:
        if trouble not in before:
            say(f"  {trouble}")
    return now or before

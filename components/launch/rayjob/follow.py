"""Follow one run on KubeRay, from a small pod that starts its RayJob, follows it and ends it when the run is cancelled.

A run has one RayJob name, so the API server prevents two launchers from starting it twice: the second one finds the
first one's job and follows it. A job that was lost is deleted and, once its pods are gone, created again; training resumes from
its checkpoints. The run's directory, not the log, tells the caller that a run is done.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.cluster.kubernetes_api import KubernetesApi, QuickRequests
from components.cluster.names import LAUNCH_LABEL, OWNER_LABEL, RUN_LABEL, RUN_URI_ANNOTATION
from components.launch.rayjob.logs import LogFollower
from components.launch.rayjob.manifest import RayJob, render
from components.launch.rayjob.status import Status, failure_message, is_live, pod_troubles, read_status, refused_pods, remedy_of
from components.launch.repeat import MAX_LOSSES, LostError, repeat_lost
from components.launch.signalled import is_run_over
from training.console import format_duration, say
from training.distributed.signals import StopFlag, run_stoppable, stop_flag

_SECONDS_TO_DELETE = 5.0
_TEARDOWN_SECONDS = 600.0
"""Time that the pods of an earlier job may take to end."""
_SLACK_SECONDS = 600.0
"""Time that KubeRay may take to see a job, and to act on it after the job's own deadline."""


class RayJobError(RuntimeError):
    """The run failed on the cluster; one line with the reason and the remedy."""


class _RayJobLostError(LostError):
    """The job is lost: KubeRay gave it up, its pods died, or the run that owns it ended it. The run goes on on a new RayJob."""


class _ReplacedError(Exception):
    """Another launcher has started the run again; its job is followed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """The interval between two looks at a job, and the clock.

    A job is looked at often when its state is new. A state that has lasted is looked at rarely, because the end of the driver's log
    ends the wait. So a training of days costs the API server half a request a minute.

    Attributes:
        poll_seconds: Between two looks at a job whose state is new, give or take a fifth.
        max_poll_seconds: The longest interval.
        clock: Returns seconds; tests pass their own.
    """

    poll_seconds: float = 5.0
    max_poll_seconds: float = 300.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def pause(self, *, unchanged_seconds: float = 0.0, is_due: Callable[[], bool] = lambda: False) -> None:
        """Wait, a little at random, so that many launchers don't send their requests together.

        Args:
            unchanged_seconds: How long the state has been the same.
            is_due: Returns True if there is something to see; then the wait ends.
        """
        seconds = max(self.poll_seconds, min(self.max_poll_seconds, unchanged_seconds / 5)) * random.uniform(0.8, 1.2)
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0 and not is_due():
            self.sleep(min(left, self.poll_seconds * 1.2))


DEFAULT_PACE = Pace()


def run_rayjob(
    job: RayJob,
    api: KubernetesApi,
    *,
    is_done: Callable[[], bool],
    prepare: Callable[[], None] = lambda: None,
    progress: Callable[[], int] = lambda: 0,
    pace: Pace = DEFAULT_PACE,
) -> None:
    """Start a job, or find it running, and return once it succeeded.

    SIGTERM and Ctrl-C end the job only if the run is over: see `_is_over`. A job that another Workflow or another person started is
    followed, and deleted only once it has failed, or has succeeded without the result.

    Args:
        is_done: Returns True if the run left its result; a job that succeeded but whose result is gone is started again.
        prepare: Stores what the job reads; called before it is created, and not where a job is there already.
        progress: Returns the step of the last checkpoint. A lost job is started again up to `MAX_LOSSES` times without progress.

    Raises:
        RayJobError: It failed, was deleted, was lost too often, or KubeRay does not see it or did not end it at its deadline.
        KubernetesError: The API refuses, or is away for too long; a job that was started goes on.
    """
    ownership, quick = _Ownership(), QuickRequests(api.namespace)

    def end_if_over() -> bool:
        if ownership.uid and _is_over(job, quick):
            quick.delete_rayjob(job.name, ownership.uid)  # at once: a pod of a terminated pipeline has about a second left
            ownership.is_over = True
        return False

    def follow() -> None:
        while True:
            running = _attach_or_create(job, api, prepare, is_done, pace, ownership, stop)
            try:
                _watch(job, running["metadata"]["uid"], api, is_done, pace, is_own=bool(ownership.uid))
            except _ReplacedError:
                continue
            uid, ownership.uid = ownership.uid, ""
            if uid and is_done():
                api.delete_rayjob(job.name, uid)  # its GPUs would idle until KubeRay does it
            if uid or is_done():
                return
            # Such as a tuning with fewer trials: our own job finds those that are recorded.
            say(f"RayJob {job.name} of another run has succeeded without this run's result, which goes on with its own")

    def follow_all() -> None:
        try:
            repeat_lost(follow, progress, is_lost=lambda error: isinstance(error, _RayJobLostError), sleep=pace.sleep)
        except _RayJobLostError as error:
            raise RayJobError(f"{error}; it was lost {MAX_LOSSES} times without a new checkpoint, and is given up") from error

    with stop_flag() as stop:
        try:
            run_stoppable(follow_all, stop, on_stop=end_if_over, grace_seconds=0.0)
        finally:
            if stop.is_set and ownership.is_being_created and _is_over(job, quick):
                ownership.uid, ownership.is_over = _uid_of_created(job, quick), True
            if stop.is_set and ownership.uid:
                if ownership.is_over:
                    _delete_for_certain(job.name, lambda: quick.delete_rayjob(job.name, ownership.uid))
                else:
                    say(f"this pod is stopped, but its run is not cancelled: RayJob {job.name} goes on, and the step's next try follows it")


# -- SIGTERM -----------------------------------------------------------------------------------------------------------


@dataclass
class _Ownership:
    """The job that this launcher may end.

    Attributes:
        uid: Its uid; empty while there is none.
        is_being_created: True while the request that creates it is on its way.
        is_over: True once the run is known to be cancelled or at its end.
    """

    uid: str = ""
    is_being_created: bool = False
    is_over: bool = False


def _is_over(job: RayJob, quick: QuickRequests) -> bool:
    """Return True if a signal means that nobody wants the run any more.

    If the API does not answer in time, the job goes on, and the reaper ends it where the Workflow is over. A job that no Workflow owns
    was started by the person who sends the signal.
    """
    return job.owner is None or bool(is_run_over(quick, job.owner.name, job.owner.uid))


def _uid_of_created(job: RayJob, quick: QuickRequests) -> str:
    """Return the uid of a job whose creation may still arrive; empty for another launcher's job."""
    deadline = time.monotonic() + _SECONDS_TO_DELETE
    while time.monotonic() < deadline:
        status, found = quick.rayjob(job.name)
        if status == 200:
            metadata = found["metadata"]
            return str(metadata["uid"]) if (metadata.get("labels") or {}).get(LAUNCH_LABEL) == job.launch else ""
        time.sleep(0.1)
    return ""


def _delete_for_certain(name: str, delete: Callable[[], int]) -> None:
    """Delete again until it succeeds or time is over: the API may have been away."""
    deadline = time.monotonic() + _SECONDS_TO_DELETE
    while True:
        status = delete()
        if status in (200, 404):
            say("stopped: the RayJob is deleted; the same command goes on from the latest checkpoint")
            return
        if time.monotonic() > deadline:
            say(f"RayJob {name} could not be deleted (the API answered {status or 'nothing'}); 'kubectl delete rayjob {name}' does it")
            return
        time.sleep(0.1)


# -- one job for a run -------------------------------------------------------------------------------------------------


def _attach_or_create(
    job: RayJob,
    api: KubernetesApi,
    prepare: Callable[[], None],
    is_done: Callable[[], bool],
    pace: Pace,
    ownership: _Ownership,
    stop: StopFlag,
) -> dict[str, Any]:
    while True:
        found = api.rayjob(job.name)
        if found is None:
            if created := _create(job, api, prepare, pace, ownership, stop):
                return created
            pace.pause()
            continue  # another launcher was faster; look again
        _require_same_run(job, found)
        labels, uid = found["metadata"].get("labels") or {}, found["metadata"]["uid"]
        if not found["metadata"].get("deletionTimestamp"):
            status = read_status(found)
            if not status.failed and not (status.succeeded and not is_done()):
                is_own = labels.get(LAUNCH_LABEL) == job.launch or (job.owner is not None and labels.get(OWNER_LABEL) == job.owner.uid)
                ownership.uid = uid if is_own else ""
                say(f"RayJob {job.name} is there already and {status.summary}; following it")
                return found
            say(f"RayJob {job.name} of an earlier try {'failed' if status.failed else 'has lost its result'}; starting it again")
            api.delete_rayjob(job.name, uid)
        _wait_until_gone(job, uid, api, pace)


def _create(
    job: RayJob, api: KubernetesApi, prepare: Callable[[], None], pace: Pace, ownership: _Ownership, stop: StopFlag
) -> dict[str, Any] | None:
    """Create the job once there are no pods of an earlier one; return None if another launcher was faster."""
    problem = api.queue_problem(job.resources.queue) if job.resources.queue else ""
    if problem:
        raise RayJobError(problem)
    _wait_for_pods_to_go(job, api, pace)
    prepare()
    ownership.is_being_created = True  # before it exists, so that a stop finds it
    stop.raise_if_set()
    created = api.create_rayjob(render(job))
    ownership.uid = created["metadata"]["uid"] if created else ""
    ownership.is_being_created = False
    if created:
        say(f"RayJob {job.name} is created in namespace {job.namespace}: {job.num_worker_pods} worker pod(s)")
    return created


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
    deadline = pace.clock() + _TEARDOWN_SECONDS
    while True:
        found = api.rayjob(job.name)
        if found is None or found["metadata"]["uid"] != uid:
            return
        if pace.clock() > deadline:
            raise RayJobError(
                f"RayJob {job.name} is still being deleted after {format_duration(_TEARDOWN_SECONDS)}; is KubeRay's operator running?"
            )
        pace.pause()


def _wait_for_pods_to_go(job: RayJob, api: KubernetesApi, pace: Pace) -> None:
    """Wait for the pods of a deleted job, which outlive it by their grace period: two drivers would write the same checkpoints."""
    deadline = pace.clock() + _TEARDOWN_SECONDS
    reported = False
    while True:
        live = [pod["metadata"]["name"] for pod in api.pods(f"{RUN_LABEL}={job.name}") if is_live(pod)]
        if not live:
            return
        if not reported:
            say(f"waiting for {len(live)} pod(s) of the last try to go")
            reported = True
        if pace.clock() > deadline:
            raise RayJobError(
                f"{len(live)} pod(s) of an earlier RayJob {job.name} are still there after {format_duration(_TEARDOWN_SECONDS)}: "
                f"{', '.join(live[:3])}; delete them, by force where their node is gone"
            )
        pace.pause()


# -- watching ----------------------------------------------------------------------------------------------------------


def _watch(job: RayJob, uid: str, api: KubernetesApi, is_done: Callable[[], bool], pace: Pace, *, is_own: bool) -> None:
    selector = f"{RUN_LABEL}={job.name}"
    logs = LogFollower(api, selector)
    summary, changed, has_dashboard = "", pace.clock(), False
    troubles: list[str] = []
    began: float | None = None
    try:
        while True:
            found = _find_watched(job, uid, api, is_done, is_own=is_own)
            if found is None:
                return
            status = read_status(found)
            if status.summary != summary:
                summary, changed = status.summary, pace.clock()
                say(f"RayJob {job.name} {summary}")
            if status.deployment == "Running" and status.dashboard_url and not has_dashboard:
                has_dashboard = True
                service = status.dashboard_url.partition(".")[0]
                say(f"dashboard: {status.dashboard_url} (kubectl -n {job.namespace} port-forward svc/{service} 8265)")
            if status.deployment in ("Running", "Complete", "Failed"):
                logs.start()
            if status.succeeded or status.failed:
                logs.finish(job_has_ended=True)  # its last lines stand above the reason
            if status.succeeded:
                return
            if status.failed:
                raise _failure(job, status, troubles)
            waits = status.deployment in ("Suspended", "Suspending")
            present = api.queue_reasons(uid) if waits else [*refused_pods(found), *pod_troubles(api.pods(selector))]
            troubles = _new_troubles(troubles, present)
            if waits:
                began = None  # KubeRay, too, starts its deadline again once the queue admits the job
            else:
                began = began if began is not None else pace.clock()
                _require_in_time(job, found, pace.clock() - began, api, is_own=is_own)
            pace.pause(unchanged_seconds=pace.clock() - changed, is_due=logs.has_ended)
            if logs.has_ended():
                logs.forget_end()
                changed = pace.clock()
    finally:
        logs.finish(job_has_ended=False)


def _find_watched(job: RayJob, uid: str, api: KubernetesApi, is_done: Callable[[], bool], *, is_own: bool) -> dict[str, Any] | None:
    """Return the job of that uid. None: the run is done, and another run that follows the job too has deleted or replaced it.

    Raises:
        RayJobError, _RayJobLostError: It was deleted while it ran: this launcher's own job, or that of another run.
        _ReplacedError: Another job has its name.
    """
    found = api.rayjob(job.name)
    if found is not None and found["metadata"]["uid"] == uid:
        return found
    if is_done():
        return None
    if found is not None:
        raise _ReplacedError
    if is_own:
        raise RayJobError(f"RayJob {job.name} was deleted while it ran; the same command goes on from the latest checkpoint")
    raise _RayJobLostError(f"RayJob {job.name} of another run was deleted, as where that run was cancelled")


def _failure(job: RayJob, status: Status, troubles: list[str]) -> Exception:
    message = failure_message(job.name, status, troubles)
    if not status.is_lost:
        return RayJobError(f"{message}; {remedy_of(status)}")
    # The remedy of AppFailed says that the step failed. It did not: its driver was killed, or asks for another try.
    return _RayJobLostError(message if status.reason == "AppFailed" else f"{message}; {remedy_of(status)}")


def _require_in_time(job: RayJob, found: dict[str, Any], seconds: float, api: KubernetesApi, *, is_own: bool) -> None:
    """Give up a job that KubeRay's operator should have noticed or ended by now, and delete it if it is this launcher's own.

    The deadline is the found job's: another run may have asked for a longer one than `job`. A job of this launcher that outlived its
    deadline counts as lost, like one that KubeRay ended at its deadline.
    """
    deadline = found["spec"].get("activeDeadlineSeconds") or job.resources.rayjob.active_deadline_seconds
    is_unseen = read_status(found).deployment == "" and seconds > _SLACK_SECONDS
    if not is_unseen and seconds <= deadline + _SLACK_SECONDS:
        return
    if is_own:
        api.delete_rayjob(job.name, found["metadata"]["uid"])
    end = "it is deleted" if is_own else "it is left to the run that made it"
    operator = "is KubeRay's operator running ('kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator')?"
    if is_unseen:
        raise RayJobError(f"KubeRay has not looked at RayJob {job.name} for {format_duration(seconds)}, and {end}; {operator}")
    message = f"RayJob {job.name} outlived its deadline of {format_duration(deadline)}, and {end}; {operator}"
    if is_own:
        raise _RayJobLostError(message)
    raise RayJobError(f"{message} The same command goes on from the latest checkpoint")


def _new_troubles(before: list[str], now: list[str]) -> list[str]:
    for trouble in now:
        if trouble not in before:
            say(f"  {trouble}")
    return now or before

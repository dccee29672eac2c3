"""The status of a RayJob: its progress, and the reason and remedy of a failure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.launch.call import TRY_AGAIN
from training.config.errors import in_one_line

_RESUMES = "the same command goes on from the latest checkpoint"

_REMEDIES = {
    "SubmissionFailed": f"its head was lost, or its submitter died more than once; {_RESUMES}",
    "DeadlineExceeded": f"it ran into its deadline; {_RESUMES}, and a longer one (rayjob: active_deadline_seconds) lets it run through",
    "PreRunningDeadlineExceeded": "its pods did not come up in time; ask for less, for other nodes, or wait longer before giving up",
    "AppFailed": f"the step itself failed, its last lines say why; once that is fixed {_RESUMES}",
    "JobDeploymentStatusTransitionGracePeriodExceeded": f"Ray ended the job but its cluster did not answer to the end; {_RESUMES}",
    "JobStatusCheckTimeoutExceeded": f"Ray's head did not answer, as when it runs out of memory; give the head more memory, and {_RESUMES}",
    "ValidationFailed": "KubeRay refuses the manifest; is its operator 1.7 or later?",
}
_SUMMARIES = {
    "": "is not yet seen by KubeRay",
    "Suspended": "waits in the queue until there is room for all its pods",
    "Initializing": "is starting its cluster",
    "Waiting": "waits to be submitted",
}
_LOST = ("SubmissionFailed", "DeadlineExceeded", "JobDeploymentStatusTransitionGracePeriodExceeded", "JobStatusCheckTimeoutExceeded")
"""Reasons that say nothing against the run itself."""
_LOST_DRIVER = re.compile(
    rf"Job entrypoint command failed with exit code (-9|137|{TRY_AGAIN})\b"
    r"|Submitter completed but Ray job not found"
    r"|(Job supervisor actor died|Unexpected error occurred)\b.*\bnode\b.*\b(died|dead|preempted)\b",
    re.I,
)
"""The beginning of Ray's or KubeRay's message on a job whose driver was killed, or asks for another try. After the exit code comes the end
of the driver's own log, which may speak of anything, such as a node that died."""
_POD_NAME = re.compile(r'\bpods? "[^"]*"')
"""A pod that was refused has a new name in each try, so that its message would be new each time."""
_STARTING = ("PodInitializing", "ContainerCreating")
"""Kubernetes' words for a container that starts as it should."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The status of a RayJob.

    Attributes:
        deployment: `jobDeploymentStatus`, the state in KubeRay; "" before KubeRay has looked at it.
        job: `jobStatus`, Ray's status of the driver; "" before there is one.
        reason: KubeRay's name of a failure.
        dashboard_url: Address of the cluster's dashboard inside Kubernetes.
    """

    deployment: str
    job: str
    reason: str
    message: str
    dashboard_url: str

    @property
    def succeeded(self) -> bool:
        """True if it ended well. "Complete" alone is not enough: a stopped job is complete as well."""
        return self.deployment == "Complete" and self.job == "SUCCEEDED"

    @property
    def failed(self) -> bool:
        """True if it ended, but not well."""
        return self.deployment in ("Failed", "ValidationFailed") or (self.deployment == "Complete" and self.job != "SUCCEEDED")

    @property
    def is_lost(self) -> bool:
        """True if it failed for a reason that another try may not meet. "Failed" alone is no proof that its pods are gone."""
        return self.deployment == "Failed" and (self.reason in _LOST or is_lost_driver(self.message))

    @property
    def summary(self) -> str:
        """The state in words, for a progress line."""
        if self.deployment in _SUMMARIES:
            return _SUMMARIES[self.deployment]
        return f"is {self.deployment} ({self.job})" if self.job else f"is {self.deployment}"


def is_lost_driver(message: str) -> bool:
    """Return True if Ray's message about a failed job says that its driver was killed, or that a later try may succeed."""
    return bool(_LOST_DRIVER.match(message))


def read_status(manifest: Mapping[str, Any]) -> Status:
    """Read the status of a RayJob's manifest."""
    status = manifest.get("status") or {}
    return Status(
        deployment=status.get("jobDeploymentStatus") or "",
        job=status.get("jobStatus") or "",
        reason=status.get("reason") or "",
        message=in_one_line(status.get("message") or ""),
        dashboard_url=status.get("dashboardURL") or "",
    )


def failure_message(name: str, status: Status, troubles: Sequence[str] = ()) -> str:
    """Return the reason of a failure, in one line."""
    what = f"ended as {status.job or 'unknown'}" if status.deployment == "Complete" else f"failed ({status.reason or status.deployment})"
    message = f": {status.message[:400]}" if status.message else ""
    trouble = f"; seen: {'; '.join(troubles)}" if troubles else ""
    return f"RayJob {name} {what}{message}{trouble}"


def remedy_of(status: Status) -> str:
    """Return the remedy of a failure."""
    if status.deployment == "Complete":
        return f"somebody stopped it by hand; {_RESUMES}"
    return _REMEDIES.get(status.reason or status.deployment, _RESUMES)


def pod_troubles(pods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the problems that keep pods from running, each once: no node fits, no image, no Secret, out of memory, refused by the node."""
    return list(dict.fromkeys(trouble for pod in pods for trouble in _troubles_of(pod)))


def _troubles_of(pod: Mapping[str, Any]) -> Iterator[str]:
    status, role = pod.get("status") or {}, _role(pod)
    if status.get("phase") == "Failed" and status.get("reason"):  # by the kubelet, such as "Evicted"
        yield f"{role}: {_reason(status)}"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield f"no node for {role}: {in_one_line(condition.get('message') or condition.get('reason') or '', 200)}"
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in _STARTING:
            yield f"{role}: {_reason(waiting)}"
        for state in (container.get("state"), container.get("lastState")):
            if ((state or {}).get("terminated") or {}).get("reason") == "OOMKilled":
                yield f"{role}: out of memory; give it more"


def _reason(status: Mapping[str, Any]) -> str:
    message = in_one_line(status.get("message") or "", 200)
    return f"{status['reason']}: {message}" if message else str(status["reason"])


def refused_pods(rayjob: Mapping[str, Any]) -> list[str]:
    """Return why the API server refuses pods of a RayJob's cluster: a quota, a LimitRange, an admission webhook. Such pods do not exist."""
    conditions = ((rayjob.get("status") or {}).get("rayClusterStatus") or {}).get("conditions") or ()
    messages = (
        in_one_line(each.get("message") or each.get("reason") or "")
        for each in conditions
        if each.get("type") == "ReplicaFailure" and each.get("status") == "True"
    )
    return [f"pods are refused: {_POD_NAME.sub('a pod', message)[:300]}" for message in messages]


def is_live(pod: Mapping[str, Any]) -> bool:
    """Return True if a pod may still run something; a pod being deleted may, until it is gone."""
    return ((pod.get("status") or {}).get("phase") or "Pending") not in ("Succeeded", "Failed")


def _role(pod: Mapping[str, Any]) -> str:
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get("ray.io/node-type") or "submitter")

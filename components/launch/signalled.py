"""Tell what a signal to a launcher means: its run is over, or only its pod has to go."""

from __future__ import annotations

from components.cluster.kubernetes_api import QuickRequests
from components.cluster.workflows import has_ended


def is_run_over(quick: QuickRequests, workflow: str, uid: str = "") -> bool | None:
    """Return True if nobody wants a pipeline's run any more, and None if the API does not answer in time.

    The Workflow says so: a pod is stopped in the same way when its run is cancelled and when its node is drained.

    Args:
        workflow: Name of the run's Workflow.
        uid: Its uid; empty if it is not known, as names of Workflows do not come again.
    """
    status, found = quick.workflow(workflow)
    if status == 404:
        return True
    if status != 200:
        return None
    return (bool(uid) and found["metadata"]["uid"] != uid) or has_ended(found)

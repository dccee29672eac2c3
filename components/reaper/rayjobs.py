"""Ends RayJobs that outlived the run of a pipeline that started them.

A launcher that is told to stop deletes its RayJob itself, and Kubernetes deletes it with the Workflow that owns it. Between
the two lies a launcher that was killed without a word, in a run that was terminated: its Workflow stands for days, for its
logs, and the RayJob would hold its GPUs until its own deadline.
"""

from __future__ import annotations

from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.rayjob_spec import MANAGED_BY
from components.cluster.workflows import ENDED, phase_of
from components.launch.rayjob_options import workflow_of
from components.launch.rayjob_status import read_status
from training.console import say


def reap(api: KubernetesApi) -> list[str]:
    """Deletes every RayJob of ours that is not at its end while its Workflow is; returns their names."""
    reaped = []
    for rayjob in api.rayjobs(MANAGED_BY):
        name, uid, owner = rayjob["metadata"]["name"], rayjob["metadata"]["uid"], workflow_of(rayjob)
        status = read_status(rayjob)
        if owner is None or status.succeeded or status.failed or rayjob["metadata"].get("deletionTimestamp"):
            continue
        workflow = api.workflow(owner.name)
        if workflow is None or workflow["metadata"]["uid"] != owner.uid:
            continue  # what it owned is on its way out already
        phase = phase_of(workflow)
        if phase in ENDED:
            api.delete_rayjob(name, uid)
            say(f"RayJob {name} is deleted: its Workflow {owner.name} has ended ({phase}), and it has not")
            reaped.append(name)
    return reaped

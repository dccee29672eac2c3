"""Delete RayJobs that outlived the pipeline run that started them.

A launcher deletes its RayJob itself when its run is cancelled, and Kubernetes deletes it with the Workflow that owns it. Neither
happens if the launcher was killed at once, or had no answer about its Workflow in time: the Workflow stays for its logs, and the RayJob
would occupy its GPUs until its own deadline.
"""

from __future__ import annotations

from typing import Any

from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.names import MANAGED_BY
from components.cluster.workflows import RUNNING, has_ended, owner_of, phase_of
from components.launch.rayjob.status import read_status
from training.console import say


def delete_finished_rayjobs(api: KubernetesApi) -> list[str]:
    """Delete every RayJob of this project that has not ended although its Workflow has; return their names.

    The Workflows that run are listed once, for all RayJobs. Only one that is not among them is read by its name.
    """
    live = [each for each in api.rayjobs(MANAGED_BY) if owner_of(each) is not None and _goes_on(each)]
    running = {each["metadata"]["uid"] for each in api.workflows(RUNNING) if not has_ended(each)} if live else set()
    deleted = []
    for rayjob in live:
        name, owner = rayjob["metadata"]["name"], owner_of(rayjob)
        if owner is None or owner.uid in running:
            continue
        workflow = api.workflow(owner.name)
        if workflow is None or workflow["metadata"]["uid"] != owner.uid:
            continue  # Kubernetes deletes what a deleted Workflow owned
        if has_ended(workflow):
            api.delete_rayjob(name, rayjob["metadata"]["uid"])
            say(f"RayJob {name} is deleted: its Workflow {owner.name} has ended or is cancelled ({phase_of(workflow)}), and it goes on")
            deleted.append(name)
    return deleted


def _goes_on(rayjob: dict[str, Any]) -> bool:
    status = read_status(rayjob)
    return not (status.succeeded or status.failed or rayjob["metadata"].get("deletionTimestamp"))

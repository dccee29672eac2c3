"""Ends RayJobs that outlived the run of a pipeline that started them: `python -m components.rayjob_reaper`, every few minutes.

A launcher that is told to stop deletes its RayJob itself, and Kubernetes deletes it with the Workflow that owns it. Between
the two lies a launcher that was killed without a word, in a run that was terminated: its Workflow stands for days, for its
logs, and the RayJob would hold its GPUs until its own deadline.
"""

from __future__ import annotations

import sys

from components.kubernetes_api import KubernetesApi, KubernetesError, current_namespace
from components.rayjob_options import workflow_of
from components.rayjob_spec import MANAGED_BY
from components.rayjob_status import read_status
from training.progress import say

_ENDED = ("Succeeded", "Failed", "Error")
"""Phases of a Workflow whose steps are over."""


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
        phase = (workflow.get("status") or {}).get("phase", "")
        if phase in _ENDED:
            api.delete_rayjob(name, uid)
            say(f"RayJob {name} is deleted: its Workflow {owner.name} has ended ({phase}), and it has not")
            reaped.append(name)
    return reaped


def main() -> int:
    """Reaps once; the exit code says whether the cluster let it."""
    try:
        reap(KubernetesApi(current_namespace(), patience_seconds=60.0))
    except KubernetesError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Close MLflow runs whose pipeline's run has ended, and send MLflow what it lacks of them.

A step closes its MLflow run itself, or the pipeline's last step does. A step that is killed at once can't, and while MLflow is away
nothing can: MLflow would show the run as running for ever.

A run is closed only if this cluster worked on it: a Workflow with the run's pipeline id was found here once, and a tag on the run
records that. So the run of a laptop, or of another cluster with the same MLflow, is never touched.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from components.cluster.failures import in_one_sentence, step_errors
from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import ENDED, is_cancelled, phase_of
from components.steps.close import ERROR_TAG
from components.steps.mlflow_sync import update_open_run, update_runs_behind
from training.console import say
from training.storage.errors import StorageError
from training.tracking.runs import PIPELINE_RUN_TAG, OpenRun, close_open_run, open_runs, set_tag

if TYPE_CHECKING:
    from training.tracking.tracked_run import Status

WORKFLOW_TAG = "iddpm.workflow"
"""Tag of an MLflow run: the pipeline's run that it was last seen with, the cluster, and the Workflow."""
STORAGE_ROOT_VARIABLE = "IDDPM_STORAGE_ROOT_URI"


def close_finished_runs(api: KubernetesApi) -> list[str]:
    """Close every run whose Workflow has ended or is gone, and send MLflow what it lacks of the runs' directories.

    Returns:
        Keys of the runs that were closed.

    Raises:
        KubernetesError: The cluster does not answer, or refuses.
        TrackingError: MLflow can't be reached, or refuses.
    """
    closed = []
    for run in open_runs(PIPELINE_RUN_TAG):
        end = _end_of(run, api)
        if end is None:
            continue
        status, reason, error = end
        update_open_run(run)
        if close_open_run(run, PIPELINE_RUN_TAG, status):
            say(f"run {run.key} was left open in MLflow; it is closed as {status}: {reason}")
            closed.append(run.key)
            if error:
                set_tag(run.run_id, ERROR_TAG, error)
    storage_root_uri = os.environ.get(STORAGE_ROOT_VARIABLE, "")
    if storage_root_uri:
        try:
            for run_uri in update_runs_behind(storage_root_uri):
                say(f"MLflow has all of {run_uri} now")
        except StorageError as error:
            say(str(error))
    return closed


def _end_of(run: OpenRun, api: KubernetesApi) -> tuple[Status, str, str] | None:
    """Return the status with which a run ends, the reason, and the errors of its steps; None if it goes on, or does not belong here."""
    pipeline_run_id = run.tags[PIPELINE_RUN_TAG]
    seen_here = f"{pipeline_run_id} {api.identity} "
    seen = run.tags.get(WORKFLOW_TAG, "")
    workflows = api.workflows(f"pipeline/runid={pipeline_run_id}")
    if not workflows:
        return ("KILLED", f"its Workflow {seen.removeprefix(seen_here)} is gone", "") if seen.startswith(seen_here) else None
    phases = {phase_of(workflow) for workflow in workflows}
    name = workflows[0]["metadata"]["name"]
    if phases <= set(ENDED):
        if any(is_cancelled(workflow) for workflow in workflows):
            return "KILLED", f"its Workflow {name} was cancelled", ""
        reason = f"its Workflow {name} has ended ({', '.join(sorted(phases))})"
        if phases == {"Succeeded"}:
            return "FINISHED", reason, ""
        errors = {step: text for workflow in workflows for step, text in step_errors(workflow, lambda pod: "").items()}
        return "FAILED", reason, in_one_sentence(errors)
    if not seen.startswith(seen_here):
        set_tag(run.run_id, WORKFLOW_TAG, f"{seen_here}{name}")
    return None

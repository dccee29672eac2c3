"""Closes MLflow runs that outlived the run of a pipeline that worked on them.

A step closes its run itself, or the pipeline's last step does. When a pipeline's run is terminated, KFP runs no last step, and
a step that is killed at once says nothing: its MLflow run would be shown as running for ever.

Only what is known to have been worked on here is closed. A run that carries a pipeline's id belongs here once a Workflow of
that id is seen, which is noted on it; so that of a laptop, or of another cluster with the same MLflow, is never touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import ENDED, phase_of
from components.steps.train import PIPELINE_RUN_TAG
from training.console import say
from training.tracking.open_runs import OpenRun, close, mark, open_runs

if TYPE_CHECKING:
    from training.tracking.tracked_run import Status

SEEN_TAG = "iddpm.workflow"
"""Of an MLflow run: the pipeline's run that it was last seen with, where, and its Workflow."""


def close_left_behind(api: KubernetesApi) -> list[str]:
    """Closes every run whose Workflow has ended or is gone.

    Returns:
        Keys of the runs that were closed.

    Raises:
        KubernetesError: The cluster does not answer, or does not let it.
        TrackingError: MLflow can't be reached, or refuses.
    """
    closed = []
    for run in open_runs(PIPELINE_RUN_TAG):
        became = _what_became(run, api)
        if became is None:
            continue
        status, why = became
        if close(run, PIPELINE_RUN_TAG, status):
            say(f"run {run.key} was left open in MLflow; it is closed as {status}: {why}")
            closed.append(run.key)
    return closed


def _what_became(run: OpenRun, api: KubernetesApi) -> tuple[Status, str] | None:
    """How a run is to be closed, and why; None if it is not, as far as can be known here."""
    pipeline_run_id = run.tags[PIPELINE_RUN_TAG]
    seen_here = f"{pipeline_run_id} {api.identity} "
    seen = run.tags.get(SEEN_TAG, "")
    workflows = api.workflows(f"pipeline/runid={pipeline_run_id}")
    if not workflows:
        return ("KILLED", f"its Workflow {seen.removeprefix(seen_here)} is gone") if seen.startswith(seen_here) else None
    phases = {phase_of(workflow) for workflow in workflows}
    name = _name(workflows[0])
    if phases <= set(ENDED):
        return "FINISHED" if phases == {"Succeeded"} else "KILLED", f"its Workflow {name} has ended ({', '.join(sorted(phases))})"
    if not seen.startswith(seen_here):
        mark(run, SEEN_TAG, f"{seen_here}{name}")
    return None


def _name(workflow: dict[str, Any]) -> str:
    return str(workflow["metadata"]["name"])

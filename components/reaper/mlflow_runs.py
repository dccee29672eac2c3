"""Close MLflow runs whose pipeline's run has ended, and send MLflow what it lacks of them.

A step closes its MLflow run itself, or the pipeline's last step does. A step that is killed at once can't, and while MLflow is away
nothing can: MLflow would show the run as running for ever.

A run is closed only if this cluster worked on it: a Workflow with the run's pipeline id was found here once, and a tag on the run
records that. So the run of a laptop, or of another cluster with the same MLflow, is never touched.

The work grows with the runs that are open, not with those that MLflow and KFP have: KFP is not asked, MLflow is asked for open runs
and for the latest ones, and the cluster for the Workflow of each pipeline's run that is open.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from components.ablations.close import update_ablation
from components.cluster.failures import in_one_sentence, step_errors
from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import ENDED, STORED_LABEL, is_cancelled, phase_of, pipeline_of
from components.steps.close import tag_error
from components.steps.mlflow_sync import read_marks, update_mlflow, update_open_run
from components.steps.run_messages import End
from components.steps.runs import storage_root_of
from training.config.errors import UserError
from training.console import say
from training.storage.errors import StorageError
from training.tracking.client import answers
from training.tracking.references import ABLATION_URI_TAG
from training.tracking.runs import ERROR_TAG, PIPELINE_RUN_TAG, RUN_URI_TAG, FoundRun, close_open_run, latest_runs, open_runs, set_tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.tracking.tracked_run import Status

WORKFLOW_TAG = "iddpm.workflow"
"""Tag of an MLflow run: the pipeline's run that it was last seen with, the cluster, and the Workflow."""
TAGGED_LABEL = "iddpm/tagged"
"""Label of a failed Workflow whose error MLflow has; KFP's Retry takes it away."""
_NUM_LATEST = 200
"""The runs whose storage roots are searched for what MLflow lacks."""
_IDS_PER_REQUEST = 50
"""Ids in one selector of Workflows, which is a part of the request's address."""


class _Seen(NamedTuple):
    """The fields of a Workflow that decide how a run ends; the whole Workflow may have 1 MB."""

    name: str
    phase: str
    is_cancelled: bool
    errors: dict[str, str]


def close_finished_runs(api: KubernetesApi) -> list[str]:
    """Close every run whose Workflow has ended or is gone, and send MLflow what it lacks of the runs' directories.

    Returns:
        Keys of the runs that were closed.

    Raises:
        KubernetesError: The cluster does not answer, or refuses.
    """
    runs = open_runs(PIPELINE_RUN_TAG)
    send_what_mlflow_lacks([*runs, *latest_runs(_NUM_LATEST)])  # first, as it also closes runs
    workflows = _workflows_of(api, sorted({run.tags[PIPELINE_RUN_TAG] for run in runs}))
    closed = []
    for run in runs:
        end = _end_of(run, workflows[run.tags[PIPELINE_RUN_TAG]], api.identity)
        if end is None:
            continue
        status, reason, error = end
        update_open_run(run)
        if close_open_run(run, PIPELINE_RUN_TAG, status):
            say(f"run {run.key} was left open in MLflow; it is closed as {status}: {reason}")
            closed.append(run.key)
            if error:
                set_tag(run.run_id, ERROR_TAG, error)
    return closed


def tag_failed_runs(api: KubernetesApi) -> None:
    """Tag the MLflow runs of failed Workflows with the error where no exit task has; a finished training shows so what failed after it.

    Raises:
        KubernetesError: The cluster does not answer, or refuses.
        TrackingError: MLflow can't be reached.
    """
    for workflow in api.workflows(f"workflows.argoproj.io/phase in (Failed,Error),!{TAGGED_LABEL}"):
        if not pipeline_of(workflow).startswith("iddpm-"):
            continue
        metadata = workflow["metadata"]
        if not is_cancelled(workflow):
            tag_error(End(succeeded=False, errors=step_errors(workflow, api.log_tail)), metadata["labels"]["pipeline/runid"], replace=False)
        if STORED_LABEL in metadata["labels"]:
            api.label_workflow(metadata["name"], TAGGED_LABEL)


def send_what_mlflow_lacks(runs: Sequence[FoundRun]) -> None:
    """Send what MLflow lacks of runs and sweeps that are marked below the storage roots of these runs."""
    roots = {storage_root_of(uri) for run in runs if (uri := run.tags.get(RUN_URI_TAG) or run.tags.get(ABLATION_URI_TAG))}
    for root in sorted(roots):
        try:
            marks = read_marks(root)
        except StorageError as error:  # such as a bucket of another team
            say(str(error))
            continue
        for mark in marks:
            try:
                if not _send_marked(mark) and not answers():
                    return  # each further mark would wait for MLflow too; one that it refuses, as another team's run, stops no other
            except (UserError, StorageError) as error:  # what it names is damaged: the other marks have their turn
                say(f"{error}; MLflow may lack something of {mark.get('ablation_uri') or mark.get('run_uri')}")


def _send_marked(mark: Mapping[str, str]) -> bool:
    """Send MLflow what it lacks; return False if it does not take it."""
    if "ablation_uri" in mark:
        is_sent = update_ablation(mark["ablation_uri"], cancelled="cancelled" in mark)
    else:
        is_sent = update_mlflow(mark["run_uri"], mark["run_id"])
    if is_sent:
        say(f"MLflow has all of {mark.get('ablation_uri') or mark['run_uri']} now")
    return is_sent


def _workflows_of(api: KubernetesApi, pipeline_run_ids: Sequence[str]) -> dict[str, list[_Seen]]:
    """Return the Workflows of each pipeline's run; none for a run of another cluster, or a Workflow that is gone."""
    found: dict[str, list[_Seen]] = defaultdict(list)
    for start in range(0, len(pipeline_run_ids), _IDS_PER_REQUEST):
        ids = ",".join(pipeline_run_ids[start : start + _IDS_PER_REQUEST])
        for workflow in api.workflows(f"pipeline/runid in ({ids})"):
            phase = phase_of(workflow)
            errors = step_errors(workflow, api.log_tail) if phase in ENDED else {}
            seen = _Seen(workflow["metadata"]["name"], phase, is_cancelled(workflow), errors)
            found[workflow["metadata"]["labels"]["pipeline/runid"]].append(seen)
    return found


def _end_of(run: FoundRun, workflows: Sequence[_Seen], cluster: str) -> tuple[Status, str, str] | None:
    """Return the status with which a run ends, the reason, and the errors of its steps; None if it goes on, or does not belong here."""
    seen_here = f"{run.tags[PIPELINE_RUN_TAG]} {cluster} "
    seen = run.tags.get(WORKFLOW_TAG, "")
    if not workflows:
        return ("KILLED", f"its Workflow {seen.removeprefix(seen_here)} is gone", "") if seen.startswith(seen_here) else None
    phases, name = {each.phase for each in workflows}, workflows[0].name
    if phases <= set(ENDED):
        if any(each.is_cancelled for each in workflows):
            return "KILLED", f"its Workflow {name} was cancelled", ""
        reason = f"its Workflow {name} has ended ({', '.join(sorted(phases))})"
        if phases == {"Succeeded"}:
            return "FINISHED", reason, ""
        errors = {step: text for each in workflows for step, text in each.errors.items()}
        return "FAILED", reason, in_one_sentence(errors)
    if not seen.startswith(seen_here):
        set_tag(run.run_id, WORKFLOW_TAG, f"{seen_here}{name}")
    return None

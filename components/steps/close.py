"""The last step of a training pipeline, which always runs: it closes MLflow runs that were left open, and tells of a failure.

A step closes its MLflow run itself where it can. A step whose process was killed, or whose node was lost, could not, and MLflow
would show the run as running for ever.

The state that KFP passes is not enough: it is RUNNING both for a cancelled run and for one that its deadline ended, and it has no
error. So the Workflow is read: it knows each step that failed, also one that was killed before it could write anything.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from components.cluster.failures import in_one_sentence, step_errors
from components.steps.mlflow_sync import update_mlflow, update_open_run
from components.steps.run_messages import End, tell_end, training_numbers
from components.steps.runs import identify
from evaluation.records.run_directory import RESULT
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.redaction import without_secrets
from training.console import say
from training.tracking.client import TrackingError
from training.tracking.runs import (
    ERROR_TAG,
    PIPELINE_RUN_TAG,
    RUN_URI_TAG,
    STEP_TAG,
    TRAIN_STEP,
    FoundRun,
    close_open_run,
    is_training,
    open_runs,
    set_tag,
)

if TYPE_CHECKING:
    from training.tracking.tracked_run import Status

FAILURES_VARIABLE = "IDDPM_LOCAL_FAILURES"
"""A file, on a laptop, with the error of each step that failed, as a JSON object; it is there if one did."""
_CANCELLED = ("CANCELED", "CANCELLED")
_SUCCEEDED = ("COMPLETE", "SUCCEEDED")
_LONGEST_TAG = 4000


def finish_training(state: str, pipeline_run_id: str, experiment: Experiment, data_uri: str, storage_root_uri: str) -> str:
    """Close the MLflow run of a training that this pipeline's run left open.

    Args:
        state: The state that KFP gives the pipeline's last step.
        pipeline_run_id: The pipeline's run. MLflow runs that another pipeline run has resumed stay open.
        data_uri: The data set; empty is its default place.

    Returns:
        The run's directory; empty if there is no data set, or one that does not fit, and so no run.
    """
    end = end_of_run(state, pipeline_run_id)
    close_runs(end, pipeline_run_id)
    if not end.succeeded:
        tell_end(end, pipeline_run_id, storage_root_uri, name=experiment.name)
    uri = find_data(experiment, data_uri, storage_root_uri)
    if not uri:
        return ""
    try:
        run_uri = identify(experiment, uri, storage_root_uri, pipeline_run_id=pipeline_run_id).uri
    except UserError:
        if end.succeeded:
            raise
        return ""  # the data set does not fit the experiment, which an earlier step has said: there is no run
    update_mlflow(run_uri)
    if end.succeeded:
        tell_end(end, pipeline_run_id, storage_root_uri, name=experiment.name, numbers=training_numbers(run_uri))
    return run_uri


def finish_unread(state: str, pipeline_run_id: str, storage_root_uri: str, *, name: str) -> str:
    """Close and tell the end of a run whose experiment can't be read: the first step failed of an error in the form, or S3 is away.

    Returns:
        An empty URI.
    """
    end = end_of_run(state, pipeline_run_id)
    close_runs(end, pipeline_run_id)
    tell_end(end, pipeline_run_id, storage_root_uri, name=name)
    return ""


def end_of_run(state: str, pipeline_run_id: str) -> End:
    """Return how a pipeline's run ended: on a cluster by its Workflow, on a laptop by the last step's state and a file of errors."""
    if state in _SUCCEEDED or not os.environ.get("KFP_POD_NAME"):
        return End(state in _SUCCEEDED, state in _CANCELLED, _local_failures())
    from components.cluster.connection import KubernetesError, current_namespace
    from components.cluster.kubernetes_api import KubernetesApi
    from components.cluster.workflows import is_cancelled, last_start

    try:
        api = KubernetesApi(current_namespace(), patience_seconds=60.0)
        workflows = list(api.workflows(f"pipeline/runid={pipeline_run_id}"))
    except KubernetesError as error:
        say(f"{error}; a run that was cancelled is closed as failed")
        return End(succeeded=False)
    since = max(map(last_start, workflows), default="")
    if state in _CANCELLED or any(is_cancelled(workflow) for workflow in workflows):
        return End(succeeded=False, cancelled=True, since=since)
    errors = {step: text for each in workflows for step, text in step_errors(each, api.log_tail).items()}
    return End(succeeded=False, errors=errors, since=since)


def _local_failures() -> dict[str, str]:
    path = Path(os.environ.get(FAILURES_VARIABLE, os.devnull))
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    errors: dict[str, str] = json.loads(text) if text else {}
    return {step: without_secrets(error) for step, error in errors.items()}


def close_runs(end: End, pipeline_run_id: str) -> None:
    """Close the MLflow runs that a pipeline's run left open: killed or failed, or finished where the training left its result.

    A later step than training, a trial, a sweep or a tuning that left its run open has failed, unless all steps have succeeded and only
    MLflow did not hear of it. A failed run gets the errors as a tag. If MLflow does not answer, the reaper closes the runs later.
    """
    unfinished: Status = "KILLED" if end.cancelled else "FAILED"
    try:
        for run in open_runs(PIPELINE_RUN_TAG, pipeline_run_id):
            update_open_run(run)
            is_over = end.succeeded or run.tags.get(STEP_TAG, TRAIN_STEP) == TRAIN_STEP
            has_finished = (is_over and _has_result(run)) or (end.succeeded and not is_training(run.tags))
            status: Status = "FINISHED" if has_finished else unfinished
            if close_open_run(run, PIPELINE_RUN_TAG, status):
                say(f"run {run.key} was left open in MLflow; it is closed as {status}")
        tag_error(end, pipeline_run_id)
    except TrackingError as error:
        say(f"{error}; the reaper closes what this pipeline's run left open in MLflow")


def tag_error(end: End, pipeline_run_id: str, *, replace: bool = True) -> None:
    """Tag the failed runs, and a training that finished before a later step failed; remove the error of an earlier try.

    Args:
        end: The end.
        pipeline_run_id: The pipeline's run.
        replace: True replaces a tag that is there already.
    """
    error = in_one_sentence(end.errors)[:_LONGEST_TAG]
    finished = open_runs(PIPELINE_RUN_TAG, pipeline_run_id, status="FINISHED")
    failed = open_runs(PIPELINE_RUN_TAG, pipeline_run_id, status="FAILED") if error else []
    is_single = len(finished) + len(failed) == 1  # a sweep's good trials have nothing to do with the bad one
    for run in [*failed, *(finished if is_single or not error else [])]:
        if run.tags.get(ERROR_TAG, "") != error and (replace or not run.tags.get(ERROR_TAG)):
            set_tag(run.run_id, ERROR_TAG, error)


def _has_result(run: FoundRun) -> bool:
    """Return True if the run's directory has the result of a finished training."""
    run_uri = run.tags.get(RUN_URI_TAG, "")
    return bool(run_uri) and storage.exists(storage.join(run_uri, RESULT))


def find_data(experiment: Experiment, data_uri: str, storage_root_uri: str) -> str:
    """Return the URI of an experiment's data set: `data_uri`, or else its default place; empty if nothing is there."""
    from training.data.format.manifest import MANIFEST
    from training.data.splits import default_data_uri

    uri = data_uri or default_data_uri(experiment.data, storage_root_uri)
    return uri if storage.exists(storage.join(uri, "train", MANIFEST)) else ""

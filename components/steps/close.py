"""The last step of a training pipeline, which always runs: it closes MLflow runs that were left open.

A step closes its MLflow run itself where it can. A step whose process was killed, or whose node was lost, could not, and MLflow
would show the run as running for ever.

The state that KFP passes is not enough: it is RUNNING both for a cancelled run and for one that its deadline ended. So the Workflow
is read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from components.steps.mlflow_sync import update_mlflow, update_open_run
from components.steps.runs import RESULT, identify
from training import storage
from training.config.experiment import Experiment
from training.console import say
from training.tracking.client import TrackingError
from training.tracking.runs import PIPELINE_RUN_TAG, RUN_URI_TAG, OpenRun, close_open_run, open_runs

if TYPE_CHECKING:
    from training.tracking.tracked_run import Status

_CANCELLED = ("CANCELED", "CANCELLED")


def finish_training(state: str, pipeline_run_id: str, experiment: Experiment, data_uri: str, storage_root_uri: str) -> str:
    """Close the MLflow run of a training that this pipeline's run left open.

    Args:
        state: The state that KFP gives the pipeline's last step.
        pipeline_run_id: The pipeline's run. MLflow runs that another pipeline run has resumed stay open.
        experiment: The experiment.
        data_uri: The data set; empty is its default place.
        storage_root_uri: Where everything is stored.

    Returns:
        The run's directory; empty if there is no data set, and so no run.
    """
    close_runs(state, pipeline_run_id)
    uri = find_data(experiment, data_uri, storage_root_uri)
    if not uri:
        return ""
    run_uri = identify(experiment, uri, storage_root_uri).uri
    update_mlflow(run_uri)
    return run_uri


def close_runs(state: str, pipeline_run_id: str) -> None:
    """Close the MLflow runs that a pipeline's run left open: finished where the result is there, else killed or failed.

    If MLflow does not answer, the reaper closes them later.
    """
    try:
        runs = open_runs(PIPELINE_RUN_TAG, pipeline_run_id)
        unfinished: Status = "KILLED" if runs and _is_cancelled(state, pipeline_run_id) else "FAILED"
        for run in runs:
            update_open_run(run)
            status: Status = "FINISHED" if _has_result(run) else unfinished
            if close_open_run(run, PIPELINE_RUN_TAG, status):
                say(f"run {run.key} was left open in MLflow; it is closed as {status}")
    except TrackingError as error:
        say(f"{error}; the reaper closes what this pipeline's run left open in MLflow")


def _has_result(run: OpenRun) -> bool:
    """Return True if the run's directory has the result of a finished training."""
    run_uri = run.tags.get(RUN_URI_TAG, "")
    return bool(run_uri) and storage.exists(storage.join(run_uri, RESULT))


def find_data(experiment: Experiment, data_uri: str, storage_root_uri: str) -> str:
    """Return the URI of an experiment's data set: `data_uri`, or else its default place; empty if nothing is there."""
    from training.data.splits import default_data_uri

    uri = data_uri or default_data_uri(experiment.data, storage_root_uri)
    return uri if storage.exists(storage.join(uri, "train", "manifest.json")) else ""


def _is_cancelled(state: str, pipeline_run_id: str) -> bool:
    if state in _CANCELLED or not os.environ.get("KFP_POD_NAME"):  # a pipeline on a laptop has no Workflow
        return state in _CANCELLED
    from components.cluster.connection import KubernetesError, current_namespace
    from components.cluster.kubernetes_api import KubernetesApi
    from components.cluster.workflows import is_cancelled

    try:
        workflows = KubernetesApi(current_namespace(), patience_seconds=60.0).workflows(f"pipeline/runid={pipeline_run_id}")
    except KubernetesError as error:
        say(f"{error}; a run that was cancelled is closed as failed")
        return False
    return any(is_cancelled(workflow) for workflow in workflows)

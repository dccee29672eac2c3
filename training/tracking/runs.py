"""One MLflow run for one experiment, found or made by its run key, whoever is cut off and comes back.

Everything is addressed by run id through `MlflowClient`; MLflow's "active run" of the process, which ends runs behind
one's back, is not used. A step is never logged twice: what the server has is asked first. Logging never waits for the
server and never ends training (`training.tracking.outbox`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from training import storage
from training.tracking.client import TrackingError as TrackingError
from training.tracking.client import connect, insist, tracking_uri
from training.tracking.metric_points import kept_metrics_uri
from training.tracking.tracked_run import PARENT_TAG, Status
from training.tracking.tracked_run import TrackedRun as TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY_TAG = "iddpm.run_key"


class Whereabouts(NamedTuple):
    """Where a run is found: the name of its experiment, and its page."""

    experiment_name: str
    url: str


def open_run(
    *,
    run_key: str,
    experiment_name: str,
    run_name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    parent_run_id: str | None = None,
) -> TrackedRun:
    """The run of that key, marked as running: found where there is one, else made.

    Args:
        run_key: Identity of the run (`training.config.run_keys.run_key`).
        experiment_name: MLflow experiment that it belongs to; made where there is none.
        run_name: What people see.
        tags: Set on the run, new or not.
        params: Nested mappings become dotted names. What a run already has stays; see `TrackedRun.log_params`.
        parent_run_id: The run that this one is a part of; None takes the one that KFP injects as `MLFLOW_RUN_ID`.

    Raises:
        TrackingError: MLflow can't be reached, or refuses.
    """
    client = connect()
    parent_run_id = parent_run_id or os.environ.get("MLFLOW_RUN_ID")
    all_tags = {RUN_KEY_TAG: run_key, **tags, **({PARENT_TAG: parent_run_id} if parent_run_id else {})}

    def find_or_create() -> Run:
        experiment_id = _experiment_id(client, experiment_name)
        run = _find(client, experiment_id, run_key)
        if run is not None:
            client.update_run(run.info.run_id, status="RUNNING")
            return run
        created = client.create_run(experiment_id, run_name=run_name, tags=all_tags)
        first = _find(client, experiment_id, run_key) or created
        if first.info.run_id != created.info.run_id:  # somebody else made one at the same moment; all take the oldest
            client.delete_run(created.info.run_id)
        return first

    run = insist(find_or_create)
    tracked = TrackedRun(client, str(run.info.run_id))
    tracked.set_tags(all_tags)
    tracked.log_params(params)
    return tracked


def attach(run_id: str, *, unseen: bool = False, kept_metrics_uri: str | None = None) -> TrackedRun:
    """A run that exists, from another process than the one that opened it.

    Args:
        run_id: MLflow's name of the run.
        unseen: Take its existence on trust: what must not fail, such as a worker that starts again, may come while
            MLflow is away.
        kept_metrics_uri: See `TrackedRun`.

    Raises:
        TrackingError: There is no such run, or MLflow can't be reached.
    """
    client = connect()
    if not unseen:
        insist(lambda: client.get_run(run_id))
    return TrackedRun(client, run_id, kept_metrics_uri=kept_metrics_uri)


def deliver_kept_metrics(run_id: str, run_uri: str) -> None:
    """Sends the metrics that MLflow was not there to take when the training ended, if there are any.

    Args:
        run_id: MLflow's name of the run.
        run_uri: The training run's directory.

    Raises:
        TrackingError: MLflow can't be reached, or there is no such run.
        StorageError: The file of those metrics can't be read.
    """
    uri = kept_metrics_uri(run_uri)
    if storage.exists(uri) and not attach(run_id, kept_metrics_uri=uri).close():
        raise TrackingError(
            f"MLflow at {tracking_uri()} does not answer; {uri} keeps the metrics that it lacks, and the same command sends them"
        )


def close_left_open(
    experiment_name: str, tags: Mapping[str, str], status_of: Callable[[Mapping[str, str]], Status]
) -> list[tuple[str, Status]]:
    """Closes those of our runs that are still marked as running although nobody works on them.

    Args:
        experiment_name: MLflow experiment.
        tags: What a run must have, all of it, to be meant.
        status_of: What became of a run, told from its tags.

    Returns:
        Of each run that was closed its key, and what it was closed as.

    Raises:
        TrackingError: MLflow can't be reached, or refuses.
    """
    client = connect()
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())

    def close() -> list[tuple[str, Status]]:
        experiment = client.get_experiment_by_name(experiment_name)
        if experiment is None:
            return []
        closed = []
        for run in client.search_runs([experiment.experiment_id], filter_string=f"{wanted} and attributes.status = 'RUNNING'"):
            if RUN_KEY_TAG in run.data.tags:  # KFP's own plugin gives its runs some of our tags, and closes them itself
                status = status_of(run.data.tags)
                client.set_terminated(run.info.run_id, status)
                closed.append((run.data.tags[RUN_KEY_TAG], status))
        return closed

    return insist(close)


def tags_of(run_id: str) -> dict[str, str]:
    """The tags of a run.

    Raises:
        TrackingError: There is no such run, or MLflow can't be reached.
    """
    client = connect()
    return dict(insist(lambda: client.get_run(run_id)).data.tags)


def whereabouts(run_id: str) -> Whereabouts | None:
    """Where a run is; None where this MLflow has no such run.

    Raises:
        TrackingError: MLflow can't be reached.
    """
    from mlflow.exceptions import MlflowException

    client = connect()

    def find() -> Whereabouts | None:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return Whereabouts(client.get_experiment(run.info.experiment_id).name, TrackedRun(client, run_id).url)

    return insist(find)


def _experiment_id(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # somebody else made it at the same moment
    if experiment is None or experiment.lifecycle_stage != "active":
        raise TrackingError(f"MLflow's experiment {name!r} is deleted; restore it there, or use another name")
    return str(experiment.experiment_id)


def _find(client: MlflowClient, experiment_id: str, run_key: str) -> Run | None:
    if "'" in run_key:
        raise TrackingError(f"{run_key!r} is not a run key: it holds a quote")
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{RUN_KEY_TAG}` = '{run_key}'",
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        max_results=1,
    )
    return runs[0] if runs else None

"""Find or make the one MLflow run of an experiment, by its run key, and find the runs that were left open.

Each function raises `TrackingError` where MLflow can't be reached or refuses.

Everything is addressed by run id through `MlflowClient`. MLflow's "active run" is not used: MLflow may end it without a request.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from training.tracking.client import TrackingError as TrackingError
from training.tracking.client import connect, none_if_missing, request, tracking_uri, wait_for_mlflow
from training.tracking.tracked_run import PARENT_TAG, Status
from training.tracking.tracked_run import TrackedRun as TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY_TAG = "iddpm.run_key"
PIPELINE_RUN_TAG = "kfp.pipeline_run_id"
"""Tag of an MLflow run: the pipeline's run that works on it. The name is the one that KFP's own MLflow plugin uses."""
RUN_URI_TAG = "iddpm.run_uri"
NUM_WORKERS_TAG = "iddpm.num_workers"
"""Tag of a training: its workers, each with a card, or with cores."""
STEP_TAG = "iddpm.step"
"""Tag of a training: the step of its pipeline that works on it, or did last; a run without it is of the step `train`."""
TRAIN_STEP = "train"
PRUNED_TAG = "iddpm.pruned"
"""Tag of a training that a tuning gave up: why. It is removed when the training is resumed."""
TRIAL_TAG = "iddpm.trial"
"""Tag of a sweep's trial, and of a training that is one: the trial's label."""
ERROR_TAG = "iddpm.error"
"""Tag of a failed MLflow run: the failed steps of its pipeline, and their last errors."""
IS_OURS = f"tags.`{RUN_KEY_TAG}` LIKE '_%'"
"""The condition of a search that finds this project's runs; those of KFP's own plugin have no key."""
_PAGE = 500
_KEY = re.compile(r"([^/]+-)?[0-9a-f]{10}(-[0-9]+)?")
"""A run's key, or its end. A training that was done again (`iddpm retry --from train`) has a number after the digits."""
_NEW_RUN_SECONDS = 30.0
"""Once a run is this old, another process that wanted to create it as well has found it: requests take far less, and the clocks that set
start times differ by some seconds only. So a run that is opened again, the common case, costs no wait."""
_SETTLE_SECONDS = 0.2
"""The least wait for a run that another process is creating. The wait is four times what our own requests took. If MLflow answers within
milliseconds, that is less than the other process may pause between two lines."""


class RunLocation(NamedTuple):
    """The name of a run's experiment, and the address of its page."""

    experiment_name: str
    url: str


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run of this project, as MLflow has it.

    Attributes:
        run_id: MLflow's id.
        tags: All of its tags.
    """

    run_id: str
    key: str
    tags: dict[str, str]


def open_run(
    *,
    run_key: str,
    experiment_name: str,
    run_name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    parent_run_id: str = "",
) -> TrackedRun:
    """Find the run of that key, or make it, and mark it as running.

    Args:
        run_key: Identity of the run (`training.config.run_keys.run_key`).
        experiment_name: MLflow experiment that it belongs to; made where there is none.
        run_name: The name that people see.
        tags: Set on the run, new or not. An empty one is removed: MLflow's UI would show its name.
        params: Nested mappings become dotted names. A value that a run already has stays; see `TrackedRun.log_params`.
        parent_run_id: The run below which MLflow shows it; empty leaves its place as it is, at first at the top.
    """
    wait_for_mlflow()
    client = connect()
    given = {RUN_KEY_TAG: run_key, PARENT_TAG: parent_run_id, **tags}
    all_tags = {tag: value for tag, value in given.items() if value}

    def find_or_create() -> Run:
        began = time.monotonic()
        experiment_id = _experiment_id(client, experiment_name)
        run = _find(client, experiment_id, run_key)
        created = None
        if run is None:
            run = created = client.create_run(experiment_id, run_name=run_name, tags=all_tags)
        # Processes that open it at the same moment all take the oldest run. The creator's clock sets the start time, so an older run
        # than the one found may still arrive, for about as long as our own requests took.
        settle_seconds = max(_SETTLE_SECONDS, 4 * (time.monotonic() - began))
        while time.time() * 1000 - run.info.start_time < _NEW_RUN_SECONDS * 1000:
            time.sleep(settle_seconds)
            oldest = _find(client, experiment_id, run_key) or run
            if oldest.info.run_id == run.info.run_id:
                break
            run = oldest
        if created is not None and run.info.run_id != created.info.run_id:
            client.delete_run(created.info.run_id)
        client.update_run(run.info.run_id, status="RUNNING")
        for tag in (tags.keys() - all_tags.keys()) & run.data.tags.keys():
            client.delete_tag(run.info.run_id, tag)
        return run

    run = request(find_or_create)
    tracked = TrackedRun(client, str(run.info.run_id))
    tracked.set_tags(all_tags)
    tracked.log_params(params)
    return tracked


def attach(run_id: str, *, check: bool = True, run_uri: str | None = None) -> TrackedRun:
    """Return a run that exists, in another process than the one that opened it.

    Args:
        check: Ask MLflow whether it exists. A worker that starts again while MLflow is away must not fail, so it does not ask.
        run_uri: See `TrackedRun`.
    """
    client = connect()
    if check:
        request(lambda: client.get_run(run_id))
    return TrackedRun(client, run_id, run_uri=run_uri)


def open_runs(tag: str, value: str = "", *, status: str = "RUNNING") -> list[FoundRun]:
    """Return the runs of this project, in all experiments, that have that tag and that status.

    Args:
        tag: A tag that is not empty on the run.
        value: Its value; empty allows any.
        status: The status; empty allows any.
    """
    has_tag = f"tags.`{tag}` = '{value}'" if value else f"tags.`{tag}` LIKE '_%'"
    return _search(f"attributes.status = '{status}' and {has_tag}" if status else has_tag)


def find_trainings(*, key: str = "", pipeline_run_id: str = "") -> list[FoundRun]:
    """Return trainings, the latest first: those with a run key, or those that a pipeline's run was the last to work on.

    Args:
        key: A whole run key, or its end. The ten digits alone also find the trainings that were done again, whose keys go on after them.
    """
    if not re.fullmatch(r"[\w.-]+", key or pipeline_run_id):
        raise TrackingError(f"{key or pipeline_run_id!r} is no run key, no end of one, and no id of a pipeline's run")
    condition = f"tags.`{PIPELINE_RUN_TAG}` = '{pipeline_run_id}'" if pipeline_run_id else f"tags.`{RUN_KEY_TAG}` LIKE '%{key}%'"
    wanted = re.compile(rf"(.*-)?{re.escape(key)}" + (r"(-[0-9]+)?" if re.fullmatch(r"[0-9a-f]{10}", key) else ""))
    return [run for run in _search(condition) if is_training(run.tags) and (not key or wanted.fullmatch(run.tags[RUN_KEY_TAG]))]


def is_run_key(word: str) -> bool:
    """Return True for a run key, and for its end from the ten digits on, as `iddpm runs` lists it; no id of MLflow or KFP is one."""
    return _KEY.fullmatch(word) is not None


def find_training(key: str) -> FoundRun:
    """Return the training of a run key, or of its last digits; raise TrackingError if MLflow knows none."""
    found = find_trainings(key=key)
    if not found:
        raise TrackingError(f"MLflow knows no training {key}; `iddpm runs` lists them")
    return found[0]


def is_training(tags: Mapping[str, str]) -> bool:
    """Return True for the tags of a training's run; a sweep's trial names the directory of its training too."""
    return tags.get(RUN_URI_TAG, "").rstrip("/").endswith(f"/{tags[RUN_KEY_TAG]}")


def latest_runs(count: int) -> list[FoundRun]:
    """Return the runs of this project that were started last, in all experiments, open or not."""
    return _search("", count=count)


def _search(condition: str, *, count: int | None = None) -> list[FoundRun]:
    """Return the runs of this project that meet a condition, the latest first; only they leave the server."""
    client = connect()

    def find() -> list[FoundRun]:
        found = (run for page in run_pages(client, condition, experiment_ids(client), size=count or _PAGE) for run in page)
        return [FoundRun(run.info.run_id, run.data.tags[RUN_KEY_TAG], dict(run.data.tags)) for run in itertools.islice(found, count)]

    return request(find)


def set_tag(run_id: str, tag: str, value: str) -> None:
    """Set a tag of a run, and wait for it."""
    client = connect()
    request(lambda: client.set_tag(run_id, tag, value))


def close_open_run(run: FoundRun, tag: str, status: Status) -> bool:
    """Close a run, unless another process has closed it or taken it over; return True if this call closed it.

    Args:
        run: The run, as it was found.
        tag: The tag that names the process that works on it.
    """
    client = connect()

    def end() -> bool:
        now = client.get_run(run.run_id)
        if now.info.status != "RUNNING" or now.data.tags.get(tag) != run.tags[tag]:
            return False
        client.set_terminated(run.run_id, status)
        return True

    return request(end)


def open_again(run_id: str, step: str, pipeline_run_id: str = "") -> None:
    """Mark a run as running again for a step of a pipeline's run, or of none (empty); the error of an earlier try goes."""
    client = connect()
    # An empty id is set too: the end of the pipeline that trained the run must not end this step.
    tags = {STEP_TAG: step, PIPELINE_RUN_TAG: pipeline_run_id}

    def mark() -> None:
        if client.get_run(run_id).data.tags.get(ERROR_TAG):
            client.set_tag(run_id, ERROR_TAG, "")
        for tag, value in tags.items():  # before the status: the reaper takes a run that is open for that of its tags
            client.set_tag(run_id, tag, value)
        client.update_run(run_id, status="RUNNING")

    request(mark)


def end_if_running(run_id: str, status: Status, step: str, *, seconds: float | None = None) -> None:
    """End a run that is marked as running and that this step works on; leave any other as it is.

    Args:
        status: Its status then.
        seconds: See `training.tracking.client.request`.
    """
    client = connect()

    def end() -> None:
        run = client.get_run(run_id)
        if run.info.status == "RUNNING" and run.data.tags.get(STEP_TAG, TRAIN_STEP) == step:
            client.set_terminated(run_id, status)

    request(end, seconds=seconds)


def tags_of(run_id: str) -> dict[str, str]:
    """Return the tags of a run; raise TrackingError if there is no such run, or MLflow can't be reached."""
    client = connect()
    run = request(lambda: none_if_missing(lambda: client.get_run(run_id)))
    if run is None:
        raise TrackingError(f"MLflow at {tracking_uri()} has no run {run_id!r}; `iddpm runs` lists the trainings")
    return dict(run.data.tags)


def is_complete(run_id: str, metrics: Set[str]) -> bool:
    """Return True if a run is finished and has metrics of those names."""
    client = connect()
    run = request(lambda: client.get_run(run_id))
    return run.info.status == "FINISHED" and metrics <= run.data.metrics.keys()


def locate(run_id: str) -> RunLocation | None:
    """Return where a run is; None if this MLflow has no such run, or somebody deleted it."""
    client = connect()

    def find() -> RunLocation | None:
        run = none_if_missing(lambda: client.get_run(run_id))
        if run is None or run.info.lifecycle_stage != "active":
            return None
        return RunLocation(client.get_experiment(run.info.experiment_id).name, TrackedRun(client, run_id).url)

    return request(find)


def _experiment_id(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process made it at the same moment
    if experiment is None or experiment.lifecycle_stage != "active":
        raise TrackingError(f"MLflow's experiment {name!r} is deleted; restore it there, or use another name")
    return str(experiment.experiment_id)


def _find(client: MlflowClient, experiment_id: str, run_key: str) -> Run | None:
    if "'" in run_key:
        raise TrackingError(f"{run_key!r} is not a run key: it contains a quote")
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{RUN_KEY_TAG}` = '{run_key}'",
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


def run_pages(client: MlflowClient, condition: str, experiments: Sequence[str], *, size: int) -> Iterator[Sequence[Run]]:
    """Yield pages of this project's runs in those experiments that meet a condition (empty: all), the latest first."""
    if experiments:
        wanted = f"{IS_OURS} and {condition}" if condition else IS_OURS
        search = {"experiment_ids": experiments, "filter_string": wanted, "order_by": ["attributes.start_time DESC"]}
        yield from _pages(client.search_runs, size=size, **search)


def experiment_ids(client: MlflowClient, **arguments: Any) -> list[str]:
    """Return the ids of all experiments that a search with these arguments finds."""
    return [each.experiment_id for each in all_pages(client.search_experiments, **arguments)]


def all_pages(search: Callable[..., Any], **arguments: Any) -> list[Any]:
    """Return the results of all pages of one of the client's searches."""
    return [each for page in _pages(search, size=_PAGE, **arguments) for each in page]


def _pages(search: Callable[..., Any], *, size: int, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**arguments, max_results=size, page_token=token)
        yield page
        token = page.token
        if not token:
            return

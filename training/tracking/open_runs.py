"""Runs of ours that MLflow shows as running, of all experiments: for whoever looks after those that nobody works on any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.tracking.client import connect, insist
from training.tracking.runs import RUN_KEY_TAG

if TYPE_CHECKING:
    from training.tracking.tracked_run import Status

_PAGE = 500


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is marked as running.

    Attributes:
        run_id: MLflow's.
        key: Ours.
        tags: All of its tags.
    """

    run_id: str
    key: str
    tags: dict[str, str]


def open_runs(tag: str) -> list[OpenRun]:
    """Those of our runs that are marked as running and whose tag of that name is not empty.

    Raises:
        TrackingError: MLflow can't be reached, or refuses.
    """
    client = connect()

    def find() -> list[OpenRun]:
        experiments = [each.experiment_id for each in _every(client.search_experiments)]
        if not experiments:
            return []
        running = _every(client.search_runs, experiment_ids=experiments, filter_string="attributes.status = 'RUNNING'")
        found = [OpenRun(run.info.run_id, run.data.tags.get(RUN_KEY_TAG, ""), dict(run.data.tags)) for run in running]
        return [run for run in found if run.key and run.tags.get(tag)]

    return insist(find)


def mark(run: OpenRun, tag: str, value: str) -> None:
    """Sets a tag of a run.

    Raises:
        TrackingError: MLflow can't be reached, or refuses.
    """
    client = connect()
    insist(lambda: client.set_tag(run.run_id, tag, value))


def close(run: OpenRun, tag: str, status: Status) -> bool:
    """Closes a run, unless it was closed or taken over by somebody else since it was found.

    Args:
        run: The run, as it was found.
        tag: Says who works on it.
        status: What became of it.

    Returns:
        Whether it is closed now.

    Raises:
        TrackingError: MLflow can't be reached, or refuses.
    """
    client = connect()

    def end() -> bool:
        now = client.get_run(run.run_id)
        if now.info.status != "RUNNING" or now.data.tags.get(tag) != run.tags[tag]:
            return False
        client.set_terminated(run.run_id, status)
        return True

    return insist(end)


def _every(ask: Callable[..., Any], **arguments: Any) -> list[Any]:
    """All pages of a list."""
    found: list[Any] = []
    token = None
    while True:
        page = ask(**arguments, max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found

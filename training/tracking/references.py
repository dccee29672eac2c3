"""Everything in MLflow that may name a stored file: the tags and parameters of all runs, and the registered models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.tracking.client import connect, request
from training.tracking.runs import IS_OURS, RUN_KEY_TAG, RUN_URI_TAG, all_pages, experiment_ids

ABLATION_URI_TAG = "iddpm.ablation_uri"
TUNING_URI_TAG = "iddpm.tuning_uri"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRun:
    """A run of this project in MLflow, deleted ones among them.

    Attributes:
        directory_uri: The directory of the training or sweep that this run tracks; empty for a trial, a study or an evaluation.
        texts: All its tags and parameters.
    """

    run_id: str
    directory_uri: str
    is_running: bool
    is_deleted: bool
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Records:
    """MLflow's records at one moment: its runs, and the tags and sources of all registered versions."""

    runs: tuple[RecordedRun, ...]
    registered: tuple[str, ...]


def read_records() -> Records:
    """Read the records; raise TrackingError if MLflow can't be reached, or refuses."""
    from mlflow.entities import ViewType

    client = connect()

    def read() -> Records:
        experiments = experiment_ids(client, view_type=ViewType.ALL)
        runs: list[Any] = []
        if experiments:
            runs = all_pages(client.search_runs, experiment_ids=experiments, filter_string=IS_OURS, run_view_type=ViewType.ALL)
        versions = all_pages(client.search_model_versions)
        texts = (text for version in versions for text in (version.source, *version.tags.values()) if text)
        return Records(tuple(map(_recorded, runs)), tuple(texts))

    return request(read)


def _recorded(run: Any) -> RecordedRun:
    tags = run.data.tags
    named = (tags.get(RUN_URI_TAG) or tags.get(ABLATION_URI_TAG) or tags.get(TUNING_URI_TAG) or "").rstrip("/")
    return RecordedRun(
        run_id=run.info.run_id,
        directory_uri=named if named.rpartition("/")[2] == tags[RUN_KEY_TAG] else "",
        is_running=run.info.status in ("RUNNING", "SCHEDULED"),
        is_deleted=run.info.lifecycle_stage != "active",
        texts=(*tags.values(), *run.data.params.values()),
    )

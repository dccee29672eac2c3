"""A tuning's directory, `<root>/tunings/<key>/`: the request (`plan.json`), `trials/*.json`, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.launch.logs import pipeline_directory
from components.steps.settings import read_experiment_file
from evaluation.tuning.request import TuneOptions, TuneRequest
from training import storage
from training.config.validation import validate_parameter
from training.data.format.manifest import read_manifest

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The plan of a tuning: what is searched, and the page of its run in MLflow."""

    request: TuneRequest
    tracking_url: str

    def __post_init__(self) -> None:
        self.request.axes()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"request": self.request.to_dict(), "tracking_url": self.tracking_url}


def from_form(
    preset: str, overrides: Sequence[str], file: str, search: Sequence[str], trials: int, options: Mapping[str, Any]
) -> TuneRequest:
    """Make a request from the values of the pipeline's form, and check it.

    Args:
        preset: Name of a preset; unused if there is a file.
        file: Text of an experiment file (TOML), or its s3:// address; empty takes the preset.
        search: The searched fields; see `evaluation.tuning.search.parse_search`.
        options: Fields of `evaluation.tuning.request.TuneOptions`.

    Raises:
        UserError: A value does not fit; the message names it.
    """
    text = read_experiment_file(file)
    request = TuneRequest(
        preset="" if text else preset,
        file=text,
        overrides=tuple(overrides),
        search=tuple(search),
        trials=trials,
        options=validate_parameter(TuneOptions, options, "tune_options"),
    )
    request.axes()
    return request


def keep_request(request: TuneRequest, storage_root_uri: str, pipeline_run_id: str) -> None:
    """Store the request of a pipeline's run for its last step: a file that the form names may be another by then."""
    uri = _kept_uri(storage_root_uri, pipeline_run_id)
    storage.retry(lambda: storage.write_json(uri, request.to_dict()))


def kept_request(
    storage_root_uri: str,
    pipeline_run_id: str,
    preset: str,
    overrides: Sequence[str],
    file: str,
    search: Sequence[str],
    trials: int,
    options: Mapping[str, Any],
) -> TuneRequest:
    """Return the request that `keep_request` stored; without one, as after a failed first step, `from_form`."""
    uri = _kept_uri(storage_root_uri, pipeline_run_id)
    try:
        return storage.retry(lambda: storage.read_record(uri, TuneRequest))
    except storage.ObjectNotFoundError:
        return from_form(preset, overrides, file, search, trials, options)


def _kept_uri(storage_root_uri: str, pipeline_run_id: str) -> str:
    return storage.join(pipeline_directory(storage_root_uri, pipeline_run_id), "request.json")


def tuning_uri(request: TuneRequest, data_uri: str, storage_root_uri: str) -> str:
    """Return the directory of a tuning on that data set."""
    digest = read_manifest(storage.join(data_uri, "train")).content_digest
    return storage.join(storage_root_uri, "tunings", request.key(digest))


def tune_files(arguments: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the tuning's key, its directory, and the file that says that this call is done, from the arguments of the tune step.

    Another pipeline's run, or one with more trials, is another call and goes on with the same tuning.
    """
    request = TuneRequest.from_dict(arguments["request"])
    uri = tuning_uri(request, arguments["data_uri"], arguments["storage_root_uri"])
    done = f"{arguments.get('pipeline_run_id') or 'local'}-{request.trials}.json"
    return uri.rpartition("/")[2], uri, storage.join(uri, "done", done)

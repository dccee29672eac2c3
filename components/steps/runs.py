"""The identity of a training run: its experiment and data set name it, in S3 as in MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.records.run_directory import DELETING, RESULT, TrainingFields
from training import storage
from training.checkpoints.experiment_file import read_experiment
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.run_keys import run_keys, same_training
from training.tracking.metrics_file import last_time
from training.tracking.runs import TRAIN_STEP

EXPERIMENT = "experiment.json"
ATTEMPT = "attempt.json"
"""The latest attempt to train: when it began (`time`, in milliseconds since 1970), the directory of its data set (`data_uri`), and the
pipeline's run that began it (`pipeline_run_id`)."""
_REPEATS = "repeats"
"""Directory below the storage root with a file for each training that was done again by force. The first run's key names the file; its
fields are the `key` of the last run, and the `pipeline_run_id` that began that one."""
_LONGEST_DELETION_SECONDS = 3600.0
"""A directory that has been marked for longer was left by a process that ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A training run.

    Attributes:
        manifest: Manifest of the data set's training images.
        forced_by: See `run_directory`.
    """

    experiment: Experiment
    manifest: Any
    key: str
    uri: str
    forced_by: str = ""


def identify(experiment: Experiment, data_uri: str, storage_root_uri: str, *, forced_by: str = "", pipeline_run_id: str = "") -> Run:
    """Return the run of an experiment on a data set; refuse a data set that is not there or does not fit.

    Equal arguments give the same run. `forced_by` and `pipeline_run_id`: see `run_directory`.
    """
    from training.data.splits import read_train_manifest, require_fit

    manifest = read_train_manifest(data_uri)
    require_fit(manifest, experiment.data)
    key, uri = run_directory(experiment, manifest.content_digest, storage_root_uri, forced_by=forced_by, pipeline_run_id=pipeline_run_id)
    return Run(experiment=experiment, manifest=manifest, key=key, uri=uri, forced_by=forced_by)


def run_directory(
    experiment: Experiment, data_digest: str, storage_root_uri: str, *, forced_by: str = "", pipeline_run_id: str = ""
) -> tuple[str, str]:
    """Return the key and the directory of a run, also of one that an earlier release made under another key.

    A training that is done again by force has a key and a directory of its own, KEY-2, KEY-3, ...; the last one is the run from then
    on, also after `iddpm gc` has deleted some of them. What the earlier ones left stays, as reports and the registry may name it.

    Args:
        data_digest: Content digest of the data set.
        forced_by: The pipeline's run that trains again although there is a training; empty takes what is there. A repeat that it
            began, or that another began and did not finish, goes on.
        pipeline_run_id: The pipeline's run that asks. The training that it began stays its own when another trains again by force.
    """
    first = _first_key(experiment, data_digest, storage_root_uri)
    uri = storage.join(storage_root_uri, _REPEATS, f"{first}.json")
    repeat = storage.read_record(uri, _Repeat) if storage.exists(uri) else None
    number = _number(repeat.key, first) if repeat else 1
    if pipeline_run_id and number > 1:
        for key in (_repeat_key(first, each) for each in range(number, 0, -1)):
            if _last_attempt(_directory(key, storage_root_uri)).pipeline_run_id == pipeline_run_id:
                return key, _directory(key, storage_root_uri)
    key = _repeat_key(first, number)
    goes_on = repeat and (repeat.pipeline_run_id == forced_by or not read_result(_directory(key, storage_root_uri)))
    if forced_by and not goes_on and _is_there(key, storage_root_uri):
        key = _repeat_key(first, number + 1)
    return key, _directory(key, storage_root_uri)


def _repeat_key(first: str, number: int) -> str:
    return f"{first}-{number}" if number > 1 else first


def _number(key: str, first: str) -> int:
    return int(key.removeprefix(f"{first}-"))


def _first_key(experiment: Experiment, data_digest: str, storage_root_uri: str) -> str:
    """Return the key of a run, or that of an earlier release under which it is there."""
    keys = run_keys(experiment, data_digest)
    return next((key for key in keys if _is_there(key, storage_root_uri)), keys[0])


def _directory(key: str, storage_root_uri: str) -> str:
    return storage.join(storage_root_uri, "runs", key)


def _is_there(key: str, storage_root_uri: str) -> bool:
    return storage.exists(storage.join(_directory(key, storage_root_uri), EXPERIMENT))


@dataclass(kw_only=True)
class _Repeat:
    key: str
    pipeline_run_id: str


@dataclass(kw_only=True)
class _Deletion:
    since: float


@dataclass(kw_only=True)
class _Attempt:
    time: float = 0.0
    pipeline_run_id: str = ""


def storage_root_of(directory_uri: str) -> str:
    """Return the storage root of a run's or sweep's directory, `<root>/runs/<key>` or `<root>/ablations/<key>`."""
    return directory_uri.rstrip("/").rsplit("/", 2)[0]


def claim_directory(run: Run) -> None:
    """Write the experiment into the run's directory, in place of one that trains the same.

    Raises:
        UserError: The directory has another experiment, or is being deleted.
    """
    uri = storage.join(run.uri, EXPERIMENT)
    if run.forced_by and not storage.exists(uri):
        root = storage_root_of(run.uri)
        first = _first_key(run.experiment, run.manifest.content_digest, root)
        if run.key != first:
            storage.write_json(storage.join(root, _REPEATS, f"{first}.json"), {"key": run.key, "pipeline_run_id": run.forced_by})
    ours = run.experiment.to_json().encode()
    if not storage.write_bytes(uri, ours, if_absent=True):
        stored = storage.read_bytes(uri)
        if stored != ours and not same_training(read_experiment(uri), run.experiment):
            raise UserError(f"{uri} was changed: it is not the experiment of this run; restore it, or remove it")
        storage.write_bytes(uri, ours)  # also where it is equal: the new time tells `iddpm gc` that the run is in use
    require_not_deleting(run.uri)


def require_not_deleting(directory_uri: str) -> None:
    """Refuse a directory that `iddpm gc` is deleting. Call it after a write: of two that meet, one sees what the other wrote.

    An interrupted deletion leaves an unfinished run without a score of a checkpoint that is gone, so a training can go on from it.

    Raises:
        UserError: It is being deleted.
    """
    uri = storage.join(directory_uri, DELETING)
    if not storage.exists(uri):
        return
    if time.time() - storage.read_record(uri, _Deletion).since < _LONGEST_DELETION_SECONDS:
        raise UserError(f"{directory_uri} is being deleted by `iddpm gc`; start again when that is done, an hour later at the latest")
    storage.delete(uri)


def run_files(arguments: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the run's key, its directory and the URI of its result, from the arguments of the training step."""
    pipeline_run_id = arguments.get("pipeline_run_id", "")
    run = identify(
        Experiment.from_json(arguments["experiment"]),
        arguments["data_uri"],
        arguments["storage_root_uri"],
        forced_by=pipeline_run_id if arguments.get("force_from") == TRAIN_STEP else "",
        pipeline_run_id=pipeline_run_id,
    )
    return run.key, run.uri, storage.join(run.uri, RESULT)


def note_attempt(run_uri: str, data_uri: str, pipeline_run_id: str = "") -> None:
    """Record that an attempt to train on that data set begins now; it may wait long for data before its first metrics."""
    attempt = {"time": int(time.time() * 1000), "data_uri": data_uri, "pipeline_run_id": pipeline_run_id}
    storage.write_json(storage.join(run_uri, ATTEMPT), attempt)


def _last_attempt(run_uri: str) -> _Attempt:
    uri = storage.join(run_uri, ATTEMPT)
    return storage.read_record(uri, _Attempt) if storage.exists(uri) else _Attempt()


def data_of(run_uri: str) -> str:
    """Return the directory of the data set that a run trains on; empty where that is not known, as before the first attempt."""
    for name in (RESULT, ATTEMPT):
        uri = storage.join(run_uri, name)
        if found := (storage.read_json(uri, TrainingFields).get("data_uri", "") if storage.exists(uri) else ""):
            return str(found)
    return ""


def last_progress(run_uri: str) -> float:
    """Return when a training last logged metrics or began an attempt, in seconds since 1970; 0 where it has done neither."""
    return max(_last_attempt(run_uri).time, last_time(run_uri)) / 1000


def read_result(run_uri: str) -> dict[str, Any]:
    """Read the result that a finished training left; empty if it is not finished."""
    uri = storage.join(run_uri, RESULT)
    found: dict[str, Any] = storage.read_json(uri, TrainingFields) if storage.exists(uri) else {}
    return found


def require_likelihood_images(experiment: Experiment, data_uri: str) -> None:
    """Refuse, before a training of days, a data set without the test images that the pipeline's evaluation needs for bits/dim."""
    from training.data.format.manifest import MANIFEST

    split = experiment.evaluation.likelihood_split
    if not storage.exists(storage.join(data_uri, split, MANIFEST)):
        raise UserError(
            f"{data_uri} has no {split} images, and the evaluation computes bits/dim of them. Prepare it in another data_uri with "
            'data_options {"num_test": N}, which holds N images out, or take evaluation.likelihood_split=train'
        )

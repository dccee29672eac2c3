"""The steps of an ablation: data, plan, each trial's training and measures, and what is taken of trials together.

Each is a function for a pipeline, for the command line and for tests alike. An ablation's directory is
`<root>/ablations/<key>/`: `plan.json`, `trials/*.json` with a record a trial, and what the report makes of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from components.ablation_tracking import TrialTracking, open_parent
from components.training_run import RESULT
from training import storage
from training.ablation_plan import Trial
from training.ablation_request import AblationRequest
from training.config import ConfigError, Experiment, run_key
from training.progress import say

PLAN = "plan.json"
_NEEDS_REFERENCE = {"final", "sampling-steps", "figure-1", "raw-weights"}


def ablation_uri(request: AblationRequest, storage_root_uri: str) -> str:
    """The ablation's directory."""
    return storage.join(storage_root_uri, "ablations", request.key())


def list_data_sets(
    request: AblationRequest, storage_root_uri: str, *, data_uri: str = "", sources: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Every data set that the trials need, as the steps take it that make it and its reference statistics.

    Args:
        request: The ablation.
        storage_root_uri: Where everything is kept.
        data_uri: Directory of the data set, for an ablation of a single one; empty is each one's default place.
        sources: Name of a data set -> where its images come from; its own name where it is not there.

    Raises:
        ConfigError: A trial is not valid, a single directory is given for several data sets, or a source for one that no
            trial has.
    """
    wanted: dict[str, dict[str, Any]] = {}
    names = set()
    for trial in request.trials():
        experiment = _experiment_of(trial)
        names.add(experiment.data.name)
        place = _place(experiment, storage_root_uri, "")
        known = wanted.setdefault(
            place,
            {
                "experiment_preset": trial.preset,
                "overrides": list(trial.overrides),
                "data_uri": data_uri or place,
                "source": str((sources or {}).get(experiment.data.name, "")),
                "takes_distances": "no",
            },
        )
        if _NEEDS_REFERENCE & set(trial.measures) and known["takes_distances"] == "no":
            known |= {"experiment_preset": trial.preset, "overrides": list(trial.overrides), "takes_distances": "yes"}
    if data_uri and len(wanted) > 1:
        raise ConfigError(f"the ablation {request.name!r} reads {len(wanted)} data sets; leave data_uri empty, each has its place")
    for name in sources or {}:
        if name not in names:
            raise ConfigError(f"no trial of {request.name!r} has a data set {name!r}; they have {', '.join(sorted(names))}")
    return list(wanted.values())


def plan(
    request: AblationRequest,
    storage_root_uri: str,
    tracking_experiment: str,
    *,
    data_uri: str = "",
    pipeline_run_id: str = "",
) -> list[dict[str, Any]]:
    """The trials as the pipeline's loop takes them, and the ablation's run in MLflow, which they will be parts of.

    Args:
        request: The ablation.
        storage_root_uri: Where everything is kept.
        tracking_experiment: MLflow's experiment.
        data_uri: As for `prepare_data`.
        pipeline_run_id: The pipeline's run that works on it.

    Returns:
        One item a trial, each all that it needs.

    Raises:
        ConfigError: A trial is not valid, or a run to look at is not there; the message says how to get it.
    """
    uri = ablation_uri(request, storage_root_uri)
    planned = request.trials()
    run_uris = {trial.label: _existing_run(request, trial, storage_root_uri, data_uri) for trial in planned}
    parent = open_parent(request, tracking_experiment, uri, pipeline_run_id)
    items = []
    for trial in planned:
        place, reference_uri = _data_and_reference(trial, storage_root_uri, data_uri)
        items.append(
            {
                "label": trial.label,
                "ablation_uri": uri,
                "experiment_preset": trial.preset,
                "overrides": list(trial.overrides),
                "data_uri": place,
                "reference_uri": reference_uri,
                "run_uri": run_uris[trial.label],
            }
        )
    storage.write_json(
        storage.join(uri, PLAN),
        {
            "request": request.to_dict(),
            "items": items,
            "parent_run_id": parent.run_id,
            "parent_url": parent.url,
            "tracking": tracking_experiment,
        },
    )
    parent.flush()
    say(f"{request.name} at the scale {request.scale}: {len(items)} trials, in MLflow {parent.url}")
    return items


def train_trial(item: Mapping[str, Any], train: Callable[[], str], *, pipeline_run_id: str = "") -> str:
    """Trains a trial, unless it is done or looks at a run that exists.

    Args:
        item: Of the plan.
        train: Trains the item's experiment and returns the run's directory.
        pipeline_run_id: The pipeline's run that works on it.

    Returns:
        The run's directory, or the checkpoint's that it looks at.
    """
    if item["run_uri"]:
        return str(item["run_uri"])
    done = done_record(item)
    if done is not None:
        return str(done.run_uri)
    with _noting(item, pipeline_run_id):
        return train()


def measure_trial(item: Mapping[str, Any], run_uri: str, resources: Mapping[str, Any], pipeline_run_id: str = "") -> str:
    """Takes of a trained trial what the ablation takes, into its record and its run in MLflow.

    Args:
        item: Of the plan.
        run_uri: Its run's directory, or a checkpoint's.
        resources: How many processes draw samples; fields of `training.config.Resources`.
        pipeline_run_id: The pipeline's run that works on it.

    Returns:
        URI of the record.
    """
    from evaluation.ablations.record import record_uri

    uri = record_uri(item["ablation_uri"], item["label"])
    if done_record(item) is not None:
        say(f"{item['label']}: was trained and measured before")
        return uri
    request = read_request(item["ablation_uri"])
    trial = next(trial for trial in request.trials() if trial.label == item["label"])
    with _noting(item, pipeline_run_id) as tracking:
        from components.ablation_measuring import measure

        record = dataclasses.replace(measure(request, trial, item, run_uri, resources), tracking_run_id=tracking.run_id)
        storage.write_json(uri, record.to_dict())
        tracking.finish(record)
    return uri


def take_together(ablation_uri: str, resources: Mapping[str, Any]) -> str:
    """What is taken of several trials at once (an ensemble, a cascade), once they are all done.

    Args:
        ablation_uri: The ablation's directory.
        resources: As for `measure_trial`.

    Returns:
        URI of the record; empty where the ablation takes nothing so.

    Raises:
        ValueError: A trial that it needs is not done.
    """
    request = read_request(ablation_uri)
    kind = request.ablation().joint
    if kind == "none":
        return ""
    from components.ablation_measuring import measure_together
    from evaluation.ablations.record import record_uri

    items = read_items(ablation_uri)
    label = {"ensemble": "ensemble", "cascade": "two-stage"}[kind]
    item = {**items[0], "label": label}
    uri = record_uri(ablation_uri, label)
    if done_record(item) is not None:
        say(f"{label}: was measured before")
        return uri
    missing = [one["label"] for one in items if done_record(one) is None]
    if missing:
        raise ValueError(f"{label} needs every trial, and {', '.join(missing)} is not done; the same ablation again does what is missing")
    with _noting(item, "") as tracking:
        record = dataclasses.replace(measure_together(request, items), tracking_run_id=tracking.run_id)
        storage.write_json(uri, record.to_dict())
        tracking.finish(record)
    return uri


def read_request(ablation_uri: str) -> AblationRequest:
    """The ablation of that directory.

    Raises:
        ConfigError: Nothing was planned there.
    """
    return AblationRequest.from_dict(_read_plan(ablation_uri)["request"])


def read_items(ablation_uri: str) -> list[dict[str, Any]]:
    """The plan's items."""
    items: list[dict[str, Any]] = _read_plan(ablation_uri)["items"]
    return items


def note_record(uri: str, log_metric: Callable[[str, float], None]) -> str:
    """Hands a record's reported numbers to the pipeline's page, by name; returns the record's URI."""
    from evaluation.ablations.record import TrialRecord
    from evaluation.result import EvaluationResult

    final = TrialRecord.from_dict(storage.read_json(uri)).final
    if final is not None:
        for name, value in EvaluationResult.from_dict(final).flat_metrics().items():
            log_metric(name.rpartition("/")[2], value)
    return uri


def done_record(item: Mapping[str, Any]) -> Any:
    """The record of a trial that is done, on the images that are there now; None where something is left to do."""
    from evaluation.ablations.record import read_record
    from training.data.shards import read_manifest

    record = read_record(item["ablation_uri"], item["label"])
    if record is None or record.error:
        return None
    digest = read_manifest(storage.join(item["data_uri"], "train")).content_digest
    return record if record.data.get("digest") == digest else None


def _read_plan(ablation_uri: str) -> dict[str, Any]:
    uri = storage.join(ablation_uri, PLAN)
    if not storage.exists(uri):
        raise ConfigError(f"{ablation_uri}: nothing was planned there; run the ablation first")
    plan: dict[str, Any] = storage.read_json(uri)
    return plan


@contextlib.contextmanager
def _noting(item: Mapping[str, Any], pipeline_run_id: str) -> Iterator[TrialTracking]:
    """Leaves a failure where the report finds it: in the trial's record, and in its run in MLflow."""
    from evaluation.ablations.record import TrialRecord, record_uri

    plan = _read_plan(item["ablation_uri"])
    request = AblationRequest.from_dict(plan["request"])
    trials = {trial.label: trial for trial in request.trials()}
    trial = trials.get(item["label"])
    tracking = TrialTracking(request, item["label"], trial, plan, pipeline_run_id)
    try:
        yield tracking
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        record = TrialRecord(
            label=item["label"],
            role=trial.role if trial else item["label"],
            values=trial.values if trial else {},
            preset=trial.preset if trial else "",
            own=trial.own if trial else (),
            error=" ".join(reason.split())[:500],
        )
        storage.write_json(record_uri(item["ablation_uri"], item["label"]), record.to_dict())
        tracking.close("FAILED")
        raise
    except BaseException:
        tracking.close("KILLED")
        raise


def _place(experiment: Experiment, storage_root_uri: str, data_uri: str) -> str:
    from training.data.splits import default_data_uri

    return data_uri or default_data_uri(experiment.data, storage_root_uri)


def _experiment_of(trial: Trial) -> Experiment:
    """What was trained: of a run of one's own, what its checkpoint says."""
    if not trial.run_uri:
        return trial.experiment
    from evaluation.ablations.record import find_subject

    return find_subject(trial.run_uri, "", "").experiment


def _data_and_reference(trial: Trial, storage_root_uri: str, data_uri: str) -> tuple[str, str]:
    from components.evaluation_run import reference_for

    experiment = _experiment_of(trial)
    place = _place(experiment, storage_root_uri, data_uri)
    needed = bool(_NEEDS_REFERENCE & set(trial.measures))
    return place, reference_for(experiment, place, storage_root_uri) if needed else ""


def _existing_run(request: AblationRequest, trial: Trial, storage_root_uri: str, data_uri: str) -> str:
    """Of an ablation that trains nothing, the run that a trial looks at; empty for one that trains.

    Raises:
        ConfigError: It is not there.
    """
    from training.data.shards import read_manifest

    ablation = request.ablation()
    if trial.run_uri or ablation.trains:
        return trial.run_uri
    place = _place(trial.experiment, storage_root_uri, data_uri)
    manifest_uri = storage.join(place, "train")
    if storage.exists(storage.join(manifest_uri, "manifest.json")):
        key = run_key(trial.experiment, read_manifest(manifest_uri).content_digest)
        run_uri = storage.join(storage_root_uri, "runs", key)
        if storage.exists(storage.join(run_uri, RESULT)):
            return run_uri
    words = "".join(f" --set {item}" for item in request.overrides)
    by = (
        f"`iddpm ablate {ablation.runs_of} --scale tiny{words}` trains it"
        if request.scale == "tiny"
        else f"train the preset {trial.preset}"
    )
    raise ConfigError(
        f"the ablation {request.name!r} trains nothing and looks at a run of {trial.preset} that is not there: {by}, "
        f"or name a run or an imported checkpoint: --run {trial.role}=URI"
    )


def failed(records: Sequence[Any]) -> list[str]:
    """Labels of the trials that failed."""
    return [record.label for record in records if record.error]

"""The steps of an ablation: each trial's training and measures, and what is taken of trials together.

Each is a function for a pipeline, for the command line and for tests alike. Killed and started again, it finds what is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from components.ablations.directory import read_items, read_plan, read_request
from components.ablations.tracking import TrialTracking
from evaluation.ablations.definitions.ablation import Trial
from evaluation.ablations.definitions.request import AblationRequest
from training import storage
from training.console import say

_LONGEST_REASON = 400


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
        resources: How many processes draw samples; fields of `training.config.experiment.Resources`.
        pipeline_run_id: The pipeline's run that works on it.

    Returns:
        URI of the record.
    """
    from evaluation.ablations.trials.record import record_uri

    uri = record_uri(item["ablation_uri"], item["label"])
    if done_record(item) is not None:
        say(f"{item['label']}: was trained and measured before")
        return uri
    plan = read_plan(item["ablation_uri"])
    request = AblationRequest.from_dict(plan["request"])
    trial = _planned(plan, request)[item["label"]]
    with _noting(item, pipeline_run_id) as tracking:
        from components.ablations.measuring import measure

        record = dataclasses.replace(measure(request, trial, item, run_uri, resources), tracking_run_id=tracking.run_id)
        storage.write_json(uri, record.to_dict())
        tracking.finish(record)
    return uri


def measure_joint(ablation_uri: str, resources: Mapping[str, Any]) -> str:
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
    from components.ablations.measuring import measure_several
    from evaluation.ablations.trials.record import record_uri

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
        record = dataclasses.replace(measure_several(request, items), tracking_run_id=tracking.run_id)
        storage.write_json(uri, record.to_dict())
        tracking.finish(record)
    return uri


def note_record(uri: str, log_metric: Callable[[str, float], None]) -> str:
    """Hands a record's reported numbers to the pipeline's page, by name; returns the record's URI."""
    from evaluation.ablations.trials.record import TrialRecord
    from evaluation.records.result import EvaluationResult

    final = TrialRecord.from_dict(storage.read_json(uri)).final
    if final is not None:
        for name, value in EvaluationResult.from_dict(final).flat_metrics().items():
            log_metric(name.rpartition("/")[2], value)
    return uri


def reason(error: Exception) -> str:
    """Why a trial failed, in a line: what a library tells at length is cut off, and whole in the step's log."""
    told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    told = " ".join(told.split()) or type(error).__name__
    return told if len(told) <= _LONGEST_REASON else f"{told[:_LONGEST_REASON]} ..."


def done_record(item: Mapping[str, Any]) -> Any:
    """The record of a trial that is done, on the images that are there now; None where something is left to do."""
    from evaluation.ablations.trials.record import read_record
    from training.data.format.shards import read_manifest

    record = read_record(item["ablation_uri"], item["label"])
    if record is None or record.error:
        return None
    digest = read_manifest(storage.join(item["data_uri"], "train")).content_digest
    return record if record.data.get("digest") == digest else None


def _planned(plan: Mapping[str, Any], request: AblationRequest) -> dict[str, Trial]:
    """The trials by label; of a run of one's own, with what varies as that run has it."""
    return {trial.label: dataclasses.replace(trial, values=plan["values"][trial.label]) for trial in request.trials()}


@contextlib.contextmanager
def _noting(item: Mapping[str, Any], pipeline_run_id: str) -> Iterator[TrialTracking]:
    """Leaves a failure where the report finds it: in the trial's record, and in its run in MLflow."""
    from evaluation.ablations.trials.record import TrialRecord, record_uri

    plan = read_plan(item["ablation_uri"])
    request = AblationRequest.from_dict(plan["request"])
    trial = _planned(plan, request).get(item["label"])
    tracking = TrialTracking(request, item["label"], trial, plan, pipeline_run_id)
    try:
        yield tracking
    except Exception as error:
        record = TrialRecord(
            label=item["label"],
            role=trial.role if trial else item["label"],
            values=trial.values if trial else {},
            preset=trial.preset if trial else "",
            own=trial.own if trial else (),
            error=reason(error),
        )
        storage.write_json(record_uri(item["ablation_uri"], item["label"]), record.to_dict())
        tracking.close("FAILED")
        raise
    except BaseException:
        tracking.close("KILLED")
        raise

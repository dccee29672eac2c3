"""The steps of an ablation: train and measure each trial, and measure several jointly.

The pipeline, the command line and tests call the same functions. A step that was killed and is
called again does only what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.ablations.directory import Plan, read_plan
from components.ablations.tracking import finish_trial, open_trial
from evaluation.ablations.definitions.ablation import label_of
from training import storage
from training.config.errors import UserError, in_one_line
from training.console import say

if TYPE_CHECKING:
    from evaluation.ablations.trials.record import AblationTrial
    from training.tracking.tracked_run import TrackedRun

_MAX_REASON_LENGTH = 400


def train_trial(item: Mapping[str, Any], train: Callable[[str], str], *, pipeline_run_id: str = "") -> str:
    """Train a trial, unless it is measured already or evaluates a run that exists; return the directory of the run or checkpoint.

    `train` takes the MLflow run of the trial, trains the item's experiment and returns the run's directory.
    """
    if item["run_uri"]:
        return str(item["run_uri"])
    record = finished_record(item)
    if record is not None:
        return record.run_uri
    storage.delete(_uri_of_record(item))  # one of an earlier training would pass for that of the new one
    with _tracked(item, pipeline_run_id) as tracked:
        return train(tracked.run_id)


def measure_trial(item: Mapping[str, Any], run_uri: str, resources: Mapping[str, Any], pipeline_run_id: str = "") -> str:
    """Take all measures of a trained trial, write them to its record and its run in MLflow, and return the record's URI.

    Args:
        run_uri: Its run's directory, or a checkpoint's.
        resources: Workers and devices; fields of `training.config.experiment.Resources`.
    """
    if finished_record(item) is not None:
        say(f"{item['label']}: was trained and measured before")
        return _uri_of_record(item)

    def measure() -> AblationTrial:
        from components.ablations.measuring import measure_one

        plan = read_plan(item["ablation_uri"])
        trial = plan.trial(item["label"])
        assert trial is not None, "every item of the plan is a trial"
        return measure_one(plan.request, trial, item, run_uri, resources, pipeline_run_id)

    return _write_record(item, measure, pipeline_run_id)


def measure_joint(ablation_uri: str, resources: Mapping[str, Any]) -> str:
    """Measure several trials jointly (an ensemble, a cascade), once each is measured; repeated seeds one by one.

    Returns:
        URI of the last record; empty where the ablation has no joint measurement.

    Raises:
        UserError: A trial is not finished. Seeds whose trials are all finished are measured first.
    """
    plan, uri = read_plan(ablation_uri), ""
    role = plan.request.ablation().joint_role
    missing: list[str] = []
    for seed, items in plan.items_by_seed().items() if role else ():
        unfinished = [item["label"] for item in items if finished_record(item) is None]
        missing += unfinished
        if not unfinished:
            uri = _measure_jointly(plan, items, role, seed, resources)
    if missing:
        raise UserError(f"{role} needs every trial, and {', '.join(missing)} is not finished; run the same ablation again")
    return uri


def _measure_jointly(plan: Plan, items: Sequence[Mapping[str, Any]], role: str, seed: int | None, resources: Mapping[str, Any]) -> str:
    from evaluation.ablations.trials.joint import input_digests
    from training.tracking.runs import PIPELINE_RUN_TAG, tags_of

    item = {**items[0], "label": label_of(role, seed), "seed": seed}
    trials = [record for record in map(finished_record, items) if record is not None]
    record = finished_record(item)
    if record is not None and record.data.get("inputs") == input_digests(trials):
        say(f"{item['label']}: was measured before")
        return _uri_of_record(item)

    def measure() -> AblationTrial:
        from components.ablations.measuring import measure_several

        return measure_several(plan.request.ablation().joint, items, resources)

    # The step is given the plan alone. A pipeline's run that plans the ablation takes over its run in MLflow.
    return _write_record(item, measure, tags_of(plan.parent_run_id).get(PIPELINE_RUN_TAG, ""))


def log_record(uri: str, log_metric: Callable[[str, float], None]) -> str:
    """Log a record's reported numbers to the pipeline's page, and return the record's URI."""
    from evaluation.ablations.trials.record import AblationTrial
    from evaluation.records.result import EvaluationResult

    final = AblationTrial.read(uri).final
    if final is not None:
        for name, value in EvaluationResult.from_dict(final).flat_metrics().items():
            log_metric(name.rpartition("/")[2], value)
    return uri


def reason(error: Exception) -> str:
    """Return why a trial failed, in one line; a long message is cut, and the step's log has all of it."""
    message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    message = in_one_line(message) or type(error).__name__
    return message if len(message) <= _MAX_REASON_LENGTH else f"{message[:_MAX_REASON_LENGTH]} ..."


def finished_record(item: Mapping[str, Any]) -> AblationTrial | None:
    """Return the record of a trial that was finished with the present images of its data set, or None.

    A trial whose training was deleted since is not finished: ablations that evaluate its run, and joint measurements, need the weights.
    """
    from evaluation.ablations.trials.record import read_record
    from evaluation.records.run_directory import RESULT
    from training.data.format.manifest import read_manifest

    record = read_record(item["ablation_uri"], item["label"])
    if record is None or record.error:
        return None
    trained_here = record.run_uri and not item.get("run_uri")
    if trained_here and not storage.exists(storage.join(record.run_uri, RESULT)):
        return None
    digest = read_manifest(storage.join(item["data_uri"], "train")).content_digest
    return record if record.data.get("digest") == digest else None


def _uri_of_record(item: Mapping[str, Any]) -> str:
    from evaluation.ablations.trials.record import record_uri

    return record_uri(item["ablation_uri"], item["label"])


def _write_record(item: Mapping[str, Any], measure: Callable[[], AblationTrial], pipeline_run_id: str) -> str:
    with _tracked(item, pipeline_run_id) as tracked:
        record = dataclasses.replace(measure(), tracking_run_id=tracked.run_id)
        storage.write_json(_uri_of_record(item), record.to_dict())
        finish_trial(tracked, record)
    return _uri_of_record(item)


@contextlib.contextmanager
def _tracked(item: Mapping[str, Any], pipeline_run_id: str) -> Iterator[TrackedRun]:
    """Open the trial's run in MLflow. A failure is written to the trial's record, where the report finds it, and to the run."""
    from evaluation.ablations.trials.record import AblationTrial

    plan, label = read_plan(item["ablation_uri"]), item["label"]
    trial = plan.trial(label)
    seed = trial.seed if trial else item["seed"]
    tracked = open_trial(plan, label, trial, pipeline_run_id, seed=seed)
    try:
        yield tracked
    except Exception as error:
        if trial is None:
            record = AblationTrial(label=label, role=plan.request.ablation().joint_role, error=reason(error), seed=seed)
        else:
            known = {name: getattr(trial, name) for name in ("role", "values", "preset", "own")}
            record = AblationTrial(label=label, **known, error=reason(error), seed=seed)
        storage.write_json(_uri_of_record(item), record.to_dict())
        tracked.finish("FAILED")
        raise
    except BaseException:
        tracked.finish("KILLED")
        raise

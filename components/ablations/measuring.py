"""The measures of a trial, and of several trials jointly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from components.steps.evaluate import evaluate_run, evaluation_options
from components.steps.runs import storage_root_of
from evaluation.ablations.definitions.ablation import Joint, Trial, label_of
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials.joint import input_digests, measure_jointly
from evaluation.ablations.trials.measures import measure
from evaluation.ablations.trials.record import AblationTrial, read_record
from evaluation.ablations.trials.trial_model import TrialModel, find_trial_model
from evaluation.records.run_directory import RESULT
from training import storage
from training.console import say
from training.cost.estimate import TRAINING_PASSES, count_macs
from training.data.format.manifest import read_manifest


def measure_one(
    request: AblationRequest,
    trial: Trial,
    item: Mapping[str, Any],
    run_uri: str,
    resources: Mapping[str, Any],
    pipeline_run_id: str = "",
) -> AblationTrial:
    """Take all measures of a trial.

    Args:
        run_uri: Its run's directory, or a checkpoint's.
        resources: Fields of `training.config.experiment.Resources`.
        pipeline_run_id: The pipeline's run that measures it; empty for none.
    """
    found: dict[str, Any] = {}
    best = request.ablation().checkpoint == "best"
    if "final" in trial.measures:  # first, as it chooses the checkpoint of the other measures
        found["final"] = _final(run_uri, item, resources, pipeline_run_id, best=best)
    model = trial_model(run_uri, item, resources, best=best)
    for name in trial.measures:
        if name != "final":
            found[name] = measure(name, model, request.counts())
    if "history" in found:
        found["flops_per_step"] = _flops_per_step(model)
    manifest = read_manifest(storage.join(item["data_uri"], "train"))
    say(f"measured {', '.join(trial.measures)} of step {model.step:,} ({model.weights})")
    return AblationTrial(
        label=trial.label,
        role=trial.role,
        values=trial.values,
        preset=trial.preset,
        own=trial.own,
        **model.to_record(),
        data={
            "name": manifest.name,
            "digest": manifest.content_digest,
            "num_images": manifest.num_images,
            "image_size": manifest.image_size,
        },
        measures=found,
        seed=trial.seed,
    )


def measure_several(joint: Joint, items: Sequence[Mapping[str, Any]], resources: Mapping[str, Any]) -> AblationTrial:
    """Take the joint measurement of trials that are all measured.

    Args:
        items: The trials' items of the plan; their seed is the same.
        resources: See `measure_one`.
    """
    models: dict[str, TrialModel] = {}
    records: list[AblationTrial] = []
    for item in items:
        record = read_record(item["ablation_uri"], item["label"])
        assert record is not None, "the caller checks that every trial is measured"
        # Weights and step as the trial measured them: a checkpoint's URI alone stands for its first average.
        model = trial_model(record.checkpoint_uri, item, resources)
        models[record.role] = dataclasses.replace(model, weights=record.weights, step=record.step)
        records.append(record)
    record, seed = measure_jointly(joint, models), records[0].seed
    label = label_of(record.label, seed)
    say("measured")
    return dataclasses.replace(record, label=label, seed=seed, data={**records[0].data, "inputs": input_digests(records)})


def trial_model(run_uri: str, item: Mapping[str, Any], resources: Mapping[str, Any], *, best: bool = False) -> TrialModel:
    """Return the model to measure, with the data set, the workers, the device and the extractor weights of the step.

    Args:
        run_uri: Its run's directory, or a checkpoint's.
        resources: Fields of `training.config.experiment.Resources`.
        best: See `find_trial_model`.
    """
    model = find_trial_model(run_uri, best=best)
    return dataclasses.replace(
        model,
        data_uri=item["data_uri"],
        reference_uri=item["reference_uri"],
        options=evaluation_options(model.experiment, storage_root_of(item["ablation_uri"]), resources),
    )


def _final(run_uri: str, item: Mapping[str, Any], resources: Mapping[str, Any], pipeline_run_id: str, *, best: bool) -> dict[str, Any]:
    """Return the reported evaluation. For a run of this project the best checkpoint is chosen, logged to MLflow and registered."""
    if best and storage.exists(storage.join(run_uri, RESULT)):
        uri = evaluate_run(run_uri, item["data_uri"], item["reference_uri"], resources, pipeline_run_id)
        stored: dict[str, Any] = storage.read_json(uri)
        return stored
    model = trial_model(run_uri, item, resources)
    return model.evaluate(result_name=f"ablation-{model.step:08d}-{model.weights}").to_dict()


def _flops_per_step(model: TrialModel) -> float:
    """Return the FLOPs of a training step: the axis of the main paper's figures of scaling."""
    macs = sum(count_macs(model.experiment).values())
    return 2.0 * TRAINING_PASSES * macs * model.experiment.optim.global_batch_size

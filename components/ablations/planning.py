"""The plan of an ablation: its data sets and its trials, as the pipeline's loops take them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from components.ablations.directory import PLAN, Plan, ablation_uri
from components.ablations.tracking import open_parent
from components.cluster.workflows import require_sweep_fits
from components.steps.runs import Run, claim_directory, require_likelihood_images, require_not_deleting, run_directory
from evaluation.ablations.definitions.ablation import Trial, values_of
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.records.run_directory import RESULT
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.console import say

_NEEDS_REFERENCE = {"final", "sampling-steps", "figure-1", "raw-weights"}
_NEEDS_COUNTS = {"sampling-steps", "figure-1", "likelihood-steps"}
_NEEDS_TEST_IMAGES = {"final", "likelihood-steps", "bound", "history-likelihood"}


def list_data_sets(
    request: AblationRequest, storage_root_uri: str, *, data_uri: str = "", sources: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """List the data sets of the trials, each with what the preprocess and reference steps need.

    Args:
        data_uri: Directory of the data set, for an ablation with a single one; empty takes each one's default place.
        sources: Name of a data set -> source of its images. The default source is the name itself.

    Raises:
        UserError: A trial is not valid, one directory is given for several data sets, or a source for a data set that no
            trial has.
    """
    data_sets: dict[str, dict[str, Any]] = {}
    names = set()
    for trial in request.trials():
        experiment = _experiment_of(trial)
        names.add(experiment.data.name)
        place = _data_uri(experiment, storage_root_uri)
        named = {"experiment": trial.experiment.to_json()}
        source = str((sources or {}).get(experiment.data.name, ""))
        known = data_sets.setdefault(place, {**named, "data_uri": data_uri or place, "source": source, "takes_distances": "no"})
        if _NEEDS_REFERENCE & set(trial.measures) and known["takes_distances"] == "no":
            known |= {**named, "takes_distances": "yes"}
    if data_uri and len(data_sets) > 1:
        raise UserError(f"the ablation {request.name!r} reads {len(data_sets)} data sets; leave data_uri empty, each has its default place")
    for name in sources or {}:
        if name not in names:
            raise UserError(f"no trial of {request.name!r} has a data set {name!r}; they have {', '.join(sorted(names))}")
    return list(data_sets.values())


def plan(
    request: AblationRequest, storage_root_uri: str, tracking_experiment: str, *, data_uri: str = "", pipeline_run_id: str = ""
) -> list[dict[str, Any]]:
    """Plan the trials, write the plan, and open the ablation's run in MLflow, the parent of the trials' runs; return the plan's items.

    Raises:
        UserError: A trial is not valid, it has a metric or measure that could not be computed, trials could not be compared, or a run to
            evaluate does not exist; the message says how to get it.
    """
    from components.steps.reference import planned_reference

    uri, trials = ablation_uri(request, storage_root_uri), request.trials()
    if os.environ.get("KFP_POD_NAME"):  # on a laptop there is no Workflow
        require_sweep_fits([trial.label for trial in trials])
    run_uris = [_existing_run(request, trial, storage_root_uri, data_uri) for trial in trials]
    experiments = [_experiment_of(trial) for trial in trials]
    _require_measurable(request, list(zip(trials, experiments, strict=True)))
    items, values = [], {}
    references: dict[tuple[Any, ...], str] = {}
    for trial, run_uri, experiment in zip(trials, run_uris, experiments, strict=True):
        place = _data_uri(experiment, storage_root_uri, data_uri)
        values[trial.label] = values_of(request.ablation(), experiment)
        if _NEEDS_TEST_IMAGES & set(trial.measures):
            require_likelihood_images(experiment, place)
        evaluation, reference_uri = experiment.evaluation, ""
        if _NEEDS_REFERENCE & set(trial.measures):
            reports = "final" in trial.measures  # the metrics are computed then
            needed = (evaluation.metrics, evaluation.num_samples, experiment.model.class_conditional) if reports else ()
            key = (place, evaluation.extractor, evaluation.num_reference_images, *needed)
            if key not in references:
                references[key] = planned_reference(experiment, place, storage_root_uri, before_training=reports)
            reference_uri = references[key]
        items.append(
            {
                "label": trial.label,
                "ablation_uri": uri,
                "experiment_preset": trial.preset,
                "overrides": list(trial.overrides),
                "data_uri": place,
                "reference_uri": reference_uri,
                "run_uri": run_uri,
            }
        )
    parent = open_parent(request, tracking_experiment, uri, pipeline_run_id)
    planned = Plan(
        request=request, items=items, parent_run_id=parent.run_id, parent_url=parent.url, tracking=tracking_experiment, values=values
    )
    storage.write_json(storage.join(uri, PLAN), planned.to_dict())
    require_not_deleting(uri)
    parent.flush()
    say(f"{request.name} at the scale {request.scale}: {len(items)} trials, in MLflow {parent.url}")
    return items


def _data_uri(experiment: Experiment, storage_root_uri: str, data_uri: str = "") -> str:
    from training.data.splits import default_data_uri

    return data_uri or default_data_uri(experiment.data, storage_root_uri)


def _experiment_of(trial: Trial) -> Experiment:
    """Return the trial's experiment; for a run that the user named, the experiment of its checkpoint."""
    if not trial.run_uri:
        return trial.experiment
    from evaluation.ablations.trials.trial_model import find_trial_model

    experiment = find_trial_model(trial.run_uri).experiment
    found, wanted = experiment.diffusion.objective, trial.experiment.diffusion.objective
    if found != wanted:
        raise UserError(f"--run {trial.role}={trial.run_uri}: was trained by L_{found}, and {trial.role} is a model of L_{wanted}")
    return experiment


def _require_measurable(request: AblationRequest, planned: Sequence[tuple[Trial, Experiment]]) -> None:
    """Refuse trials whose measures would fail after hours, or have no counterpart: a run that the user named may have any experiment."""
    from evaluation.ablations.trials.measures import require_history

    sizes: dict[tuple[str, ...], tuple[str, str]] = {}
    for trial, experiment in planned:
        timesteps, data = experiment.diffusion.num_timesteps, experiment.data
        if _NEEDS_COUNTS & set(trial.measures) and min(request.counts(), default=0) > timesteps:
            counts = ", ".join(map(str, request.counts()))
            raise UserError(
                f"{trial.label} has {timesteps} timesteps, and {request.name} takes {counts} steps; take a model of more timesteps"
            )
        if "history-likelihood" in trial.measures and not trial.run_uri:
            require_history(experiment.optim)
        same: dict[tuple[str, ...], str] = {}
        if "bound" in trial.measures or request.ablation().joint == "ensemble":
            same["timesteps",] = f"{timesteps:,} timesteps"
        if "samples" in trial.measures:
            same["images", data.name] = f"images of {data.image_size}x{data.image_size} with {data.image_channels} channels"
        for kind, size in same.items():
            label, other = sizes.setdefault(kind, (trial.label, size))
            if size != other:
                raise UserError(
                    f"{request.name} compares {label}, which has {other}, with {trial.label}, which has {size}; take equal ones"
                )


def _existing_run(request: AblationRequest, trial: Trial, storage_root_uri: str, data_uri: str) -> str:
    """Return the run that a trial of an ablation without training evaluates; empty for a trial that is trained."""
    from training.data.format.manifest import MANIFEST, read_manifest

    ablation = request.ablation()
    if trial.run_uri or ablation.trains:
        return trial.run_uri
    train_uri = storage.join(_data_uri(trial.experiment, storage_root_uri, data_uri), "train")
    if storage.exists(storage.join(train_uri, MANIFEST)):
        manifest = read_manifest(train_uri)
        key, run_uri = run_directory(trial.experiment, manifest.content_digest, storage_root_uri)
        if storage.exists(storage.join(run_uri, RESULT)):
            # With the evaluation that is requested now.
            claim_directory(Run(experiment=trial.experiment, manifest=manifest, key=key, uri=run_uri))
            return run_uri
    changes = "".join(f" --set {item}" for item in request.overrides)
    remedy = f"train the preset {trial.preset}{'' if trial.seed is None else f' with seed={trial.seed}'}"
    if request.scale != "paper":
        seeds = f" --seeds {request.seeds}" if request.seeds > 1 else ""
        remedy = f"`iddpm ablate {ablation.runs_of} --scale {request.scale}{seeds}{changes}` trains it"
    raise UserError(
        f"the ablation {request.name!r} trains nothing, and its run of {trial.preset} does not exist: {remedy}, "
        f"or name a run or an imported checkpoint: --run {trial.role}=URI"
    )

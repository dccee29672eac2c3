"""The plan of an ablation: the data sets and trials, as the pipeline's loops take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.ablations.directory import PLAN, ablation_uri
from components.ablations.tracking import open_parent
from components.steps.train import RESULT
from evaluation.ablations.definitions.ablation import Trial, values_of
from evaluation.ablations.definitions.request import AblationRequest
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment, run_key
from training.console import say

_NEEDS_REFERENCE = {"final", "sampling-steps", "figure-1", "raw-weights"}


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
        UserError: A trial is not valid, a single directory is given for several data sets, or a source for one that no
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
        raise UserError(f"the ablation {request.name!r} reads {len(wanted)} data sets; leave data_uri empty, each has its place")
    for name in sources or {}:
        if name not in names:
            raise UserError(f"no trial of {request.name!r} has a data set {name!r}; they have {', '.join(sorted(names))}")
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
        UserError: A trial is not valid, or a run to look at is not there; the message says how to get it.
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
            "values": {trial.label: values_of(request.ablation(), _experiment_of(trial)) for trial in planned},
        },
    )
    parent.flush()
    say(f"{request.name} at the scale {request.scale}: {len(items)} trials, in MLflow {parent.url}")
    return items


def _place(experiment: Experiment, storage_root_uri: str, data_uri: str) -> str:
    from training.data.splits import default_data_uri

    return data_uri or default_data_uri(experiment.data, storage_root_uri)


def _experiment_of(trial: Trial) -> Experiment:
    """What was trained: of a run of one's own, what its checkpoint says.

    Raises:
        UserError: It was trained by another objective than the model in whose place it is, of which the claims would speak falsely.
    """
    if not trial.run_uri:
        return trial.experiment
    from evaluation.ablations.trials.record import find_trial_model

    experiment = find_trial_model(trial.run_uri, "", "").experiment
    found, wanted = experiment.diffusion.objective, trial.experiment.diffusion.objective
    if found != wanted:
        raise UserError(f"--run {trial.role}={trial.run_uri}: was trained by L_{found}, and {trial.role} is a model of L_{wanted}")
    return experiment


def _data_and_reference(trial: Trial, storage_root_uri: str, data_uri: str) -> tuple[str, str]:
    from components.steps.evaluate import reference_for

    experiment = _experiment_of(trial)
    place = _place(experiment, storage_root_uri, data_uri)
    needed = bool(_NEEDS_REFERENCE & set(trial.measures))
    return place, reference_for(experiment, place, storage_root_uri) if needed else ""


def _existing_run(request: AblationRequest, trial: Trial, storage_root_uri: str, data_uri: str) -> str:
    """Of an ablation that trains nothing, the run that a trial looks at; empty for one that trains.

    Raises:
        UserError: It is not there.
    """
    from training.data.format.shards import read_manifest

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
    raise UserError(
        f"the ablation {request.name!r} trains nothing and looks at a run of {trial.preset} that is not there: {by}, "
        f"or name a run or an imported checkpoint: --run {trial.role}=URI"
    )

"""The checkpoint that a name refers to: a registered model, an MLflow run, a run's directory, or a checkpoint itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from evaluation.records.run_directory import CHOICE, EVALUATIONS, RESULT, TrainingFields, run_uri_of
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.console import say
from training.tracking.runs import find_training, is_run_key, tags_of

FORMS = "a checkpoint's directory, a run's directory or key, runs:/ID, or models:/NAME@ALIAS"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedModel:
    """A checkpoint, with its data set and its MLflow run.

    Attributes:
        weights: The chosen weights; None if none were chosen, which means the first average.
        data_uri: The data set that it was trained on; empty if unknown.
        tracking_run_id: The MLflow run that trained it; empty if unknown.
    """

    checkpoint_uri: str
    weights: str | None = None
    data_uri: str = ""
    tracking_run_id: str = ""

    def spec(self, weights: str | None = None) -> ModelSpec:
        """Return the model's specification, with other weights if some are given."""
        return ModelSpec(checkpoint_uri=self.checkpoint_uri, weights=weights or self.weights)


def resolve_model(name: str) -> ResolvedModel:
    """Find the model of that name.

    Args:
        name: `models:/NAME@ALIAS` (the registry; without an alias `champion`), `models:/NAME/VERSION`, `runs:/ID` (MLflow's id of a run,
            or a run key), a run key or its last ten digits, a run's directory (its chosen weights), or a checkpoint's directory.

    Raises:
        UserError: There is nothing of that name.
        CheckpointError: There is no complete checkpoint in that directory.
        TrackingError: MLflow can't be reached, or has no such model or run.
    """
    if name.startswith("models:/"):
        return _resolve_registered(name.removeprefix("models:/"))
    if name.startswith("runs:/"):
        return _resolve_tracked(name.removeprefix("runs:/").strip("/"))
    if is_tracked(name):
        return _resolve_tracked(name)
    uri = name.rstrip("/")
    if not re.search(rf"(^|/){checkpoint.DIRECTORY}/+step=", uri):
        return _resolve_run(uri)
    checkpoint.file_names(uri)  # raises an error if there is no complete checkpoint
    trained = _read_json(storage.join(run_uri_of(uri), RESULT))
    return ResolvedModel(checkpoint_uri=uri, data_uri=trained.get("data_uri", ""), tracking_run_id=trained.get("tracking_run_id", ""))


def is_tracked(name: str) -> bool:
    """Return True for a name that MLflow explains, and not the storage: a registered model, a run, or a run key."""
    return name.startswith(("runs:/", "models:/")) or (is_run_key(name) and not storage.local_path(name).exists())


def _resolve_registered(name: str) -> ResolvedModel:
    from training.tracking.registry import CHAMPION, resolve

    model, at, alias = name.partition("@")
    model, slash, version = model.partition("/")
    if not model or (at and slash):
        raise UserError(f"models:/{name} is not a registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    found = resolve(model, alias or CHAMPION, version=version or None)
    say(f"models:/{name} is version {found.version} of {model}: {found.checkpoint_uri} ({found.weights})")
    return ResolvedModel(checkpoint_uri=found.checkpoint_uri, weights=found.weights, data_uri=found.data_uri, tracking_run_id=found.run_id)


def _resolve_tracked(run_id: str) -> ResolvedModel:
    if is_run_key(run_id):
        found = find_training(run_id)
        run_id, tags = found.run_id, dict(found.tags)
    else:
        tags = tags_of(run_id)
    if "iddpm.best_checkpoint_uri" in tags:
        return ResolvedModel(
            checkpoint_uri=tags["iddpm.best_checkpoint_uri"],
            weights=tags.get("iddpm.best_weights"),
            data_uri=tags.get("iddpm.data_uri", ""),
            tracking_run_id=run_id,
        )
    if "iddpm.run_uri" not in tags:
        raise UserError(f"the MLflow run {run_id} trained no model of ours: it has no tag iddpm.run_uri; name {FORMS}")
    return _resolve_run(tags["iddpm.run_uri"])


def _resolve_run(run_uri: str) -> ResolvedModel:
    """Return the chosen weights of a run; for one that is not finished, its latest checkpoint."""
    trained = _read_json(storage.join(run_uri, RESULT))
    known = {"data_uri": trained.get("data_uri", ""), "tracking_run_id": trained.get("tracking_run_id", "")}
    if chosen := chosen_weights(run_uri):
        return ResolvedModel(checkpoint_uri=chosen[0], weights=chosen[1], **known)
    latest = checkpoint.latest(run_uri)
    if latest is None:
        raise UserError(f"{run_uri}: there is no run with a checkpoint there; name {FORMS}")
    say(f"{run_uri}: no checkpoint was chosen yet, so this takes the latest, step {checkpoint.step_of(latest):,}")
    return ResolvedModel(checkpoint_uri=latest, **known)


def chosen_weights(run_uri: str) -> tuple[str, str] | None:
    """Return the checkpoint and the weights of a run's final choice, or else of its best score; None if its files name neither."""
    choice, trained = _read_json(storage.join(run_uri, EVALUATIONS, CHOICE)), _read_json(storage.join(run_uri, RESULT))
    for uri, weights in (
        (choice.get("checkpoint_uri"), choice.get("weights")),
        (trained.get("best_checkpoint_uri"), trained.get("best_weights")),
    ):
        if uri and weights:
            # A copied run contains addresses of its first place, but its checkpoints are in its own directory.
            found = checkpoint.checkpoint_uri(run_uri, checkpoint.step_of(uri))
            if checkpoint.step_of(uri) in checkpoint.steps(run_uri):
                return found, weights
    return None


def _read_json(uri: str) -> dict[str, Any]:
    try:
        return storage.read_json(uri, TrainingFields)
    except storage.ObjectNotFoundError:
        return {}

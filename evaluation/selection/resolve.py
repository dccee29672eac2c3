"""Which checkpoint a word names: a registered model, an MLflow run, a run's directory, or a checkpoint itself."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.records.run_directory import CHOICE, EVALUATIONS, RESULT
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.console import say

FORMS = "a checkpoint's directory, a run's directory, runs:/ID, or models:/NAME@ALIAS"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedModel:
    """A checkpoint, and what is known of it.

    Attributes:
        checkpoint_uri: Its directory.
        weights: Which weights were chosen; None where nothing chose, which takes the first average.
        data_uri: The data set that it was trained on; empty if unknown.
        tracking_run_id: The MLflow run that trained it; empty if unknown.
    """

    checkpoint_uri: str
    weights: str | None = None
    data_uri: str = ""
    tracking_run_id: str = ""

    def spec(self, weights: str | None = None) -> ModelSpec:
        """The model, with other weights if some are given."""
        return ModelSpec(checkpoint_uri=self.checkpoint_uri, weights=weights or self.weights)


def resolve_model(word: str) -> ResolvedModel:
    """The model of that name.

    Args:
        word: `models:/NAME@ALIAS` (the registry; the alias is `champion` where none is given), `models:/NAME/VERSION`,
            `runs:/ID` (MLflow), a run's directory (its chosen weights), or a checkpoint's directory.

    Raises:
        UserError: There is nothing of that name.
        TrackingError: MLflow can't be reached, or knows no such model or run.
    """
    if word.startswith("models:/"):
        return _registered(word.removeprefix("models:/"))
    if word.startswith("runs:/"):
        return _tracked(word.removeprefix("runs:/").strip("/"))
    uri = word.rstrip("/")
    head, separator, _ = uri.rpartition(f"/{checkpoint.DIRECTORY}/")
    if separator:
        checkpoint.file_names(uri)  # refuses one that is not there
        trained = _stored(storage.join(head, RESULT))
        return ResolvedModel(checkpoint_uri=uri, data_uri=trained.get("data_uri", ""), tracking_run_id=trained.get("tracking_run_id", ""))
    return _of_run(uri)


def _registered(word: str) -> ResolvedModel:
    from training.tracking.registry import CHAMPION, resolve

    name, at, alias = word.partition("@")
    name, slash, version = name.partition("/")
    if not name or (at and slash):
        raise UserError(f"models:/{word} is not a registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    found = resolve(name, alias or CHAMPION, version=version or None)
    say(f"models:/{word} is version {found.version} of {name}: {found.checkpoint_uri} ({found.weights})")
    return ResolvedModel(checkpoint_uri=found.checkpoint_uri, weights=found.weights, data_uri=found.data_uri, tracking_run_id=found.run_id)


def _tracked(run_id: str) -> ResolvedModel:
    from training.tracking.runs import tags_of

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
    return _of_run(tags["iddpm.run_uri"])


def _of_run(run_uri: str) -> ResolvedModel:
    """The weights that were chosen of a run; of one that is not finished, its latest checkpoint's."""
    trained = _stored(storage.join(run_uri, RESULT))
    known = {"data_uri": trained.get("data_uri", ""), "tracking_run_id": trained.get("tracking_run_id", "")}
    choice = _stored(storage.join(run_uri, EVALUATIONS, CHOICE))
    for uri, weights in (
        (choice.get("checkpoint_uri"), choice.get("weights")),
        (trained.get("best_checkpoint_uri"), trained.get("best_weights")),
    ):
        if uri:
            # A run that was copied holds addresses of the place where it was; its checkpoints are beside it all the same.
            return ResolvedModel(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, checkpoint.step_of(uri)), weights=weights, **known)
    latest = checkpoint.latest(run_uri)
    if latest is None:
        raise UserError(f"{run_uri}: there is no run with a checkpoint there; name {FORMS}")
    say(f"{run_uri} has not finished: taking its latest checkpoint, step {checkpoint.step_of(latest):,}")
    return ResolvedModel(checkpoint_uri=latest, **known)


def _stored(uri: str) -> dict[str, str]:
    try:
        found: dict[str, str] = storage.read_json(uri)
    except storage.ObjectNotFoundError:
        return {}
    return found

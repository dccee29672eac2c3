"""What a trial of an ablation left: which model was looked at, and what was found. One JSON file a trial."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluation.records.protocol_card import as_plain
from evaluation.records.run_directory import CHOICE, EVALUATIONS, run_uri_of
from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import Experiment
from training.console import say


class TrialModelError(ValueError):
    """A run in which there is nothing to look at; the message says what is missing and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialModel:
    """The model that a trial's measures look at.

    Attributes:
        run_uri: Its run's directory.
        checkpoint_uri: The checkpoint.
        weights: Which weights of it.
        step: Updates that they have seen.
        experiment: What it was trained as.
        data_uri: The data set.
        reference_uri: Reference statistics; empty where distances can't be taken.
    """

    run_uri: str
    checkpoint_uri: str
    weights: str
    step: int
    experiment: Experiment
    data_uri: str
    reference_uri: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial, done or failed.

    Attributes:
        label: What differs, in words.
        role: What it is to the others; empty where that does not matter.
        values: What differs, by short name.
        preset: Its experiment.
        own: Its own overrides, which name the paper's row.
        run_uri: Its run's directory; empty where it failed before it had one.
        checkpoint_uri: What was looked at.
        weights: Which weights of it.
        step: Updates that they have seen.
        experiment: The experiment, as it was.
        data: Name, digest and counts of the data set.
        measures: By name, what was found.
        tracking_run_id: Its run in MLflow.
        error: Why it failed, in one line; empty where it did not.
    """

    label: str
    role: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    own: tuple[str, ...] = ()
    run_uri: str = ""
    checkpoint_uri: str = ""
    weights: str = ""
    step: int = 0
    experiment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    tracking_run_id: str = ""
    error: str = ""

    @property
    def final(self) -> dict[str, Any] | None:
        """The reported evaluation, as `EvaluationResult.to_dict` gives it; None where there is none."""
        found: dict[str, Any] | None = self.measures.get("final")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = as_plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrialRecord:
        """What `to_dict` gave."""
        return cls(**{**value, "own": tuple(value["own"])})


def record_uri(ablation_uri: str, label: str) -> str:
    """Where a trial's record is."""
    return storage.join(ablation_uri, "trials", f"{slug(label)}.json")


def slug(label: str) -> str:
    """A label as a name of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def read_record(ablation_uri: str, label: str) -> TrialRecord | None:
    """A trial's record, or None; one that is damaged, or of another version of this program, counts as none."""
    uri = record_uri(ablation_uri, label)
    if not storage.exists(uri):
        return None
    try:
        return TrialRecord.from_dict(storage.read_json(uri))
    except (storage.StorageError, TypeError, KeyError) as error:
        say(f"{label}: its record can't be read and counts as none ({error})")
        return None


def find_trial_model(run_uri: str, data_uri: str, reference_uri: str, *, best: bool = False) -> TrialModel:
    """Which checkpoint and weights of a run are looked at: of a checkpoint that is named, its first average.

    Args:
        run_uri: A run's directory, or a checkpoint's.
        data_uri: Its data set.
        reference_uri: Reference statistics, or empty.
        best: The chosen ones, else those with the best score, where the run says so; otherwise the latest checkpoint's
            first average.

    Raises:
        TrialModelError: There is no checkpoint.
    """
    weights: str | None = None
    if re.search(r"step=\d{8}/*$", run_uri):
        uri = run_uri.rstrip("/")
        run_uri = run_uri_of(uri)
    else:
        latest = checkpoint.latest(run_uri)
        if latest is None:
            raise TrialModelError(f"{run_uri}: there is no checkpoint; it was not trained, or this is not a run's directory")
        uri, weights = (_noted(run_uri) if best else None) or (latest, None)
    return TrialModel(
        run_uri=run_uri,
        checkpoint_uri=uri,
        weights=weights or checkpoint.weights_names(uri)[0],
        step=checkpoint.step_of(uri),
        experiment=checkpoint.load_experiment(uri),
        data_uri=data_uri,
        reference_uri=reference_uri,
    )


def _noted(run_uri: str) -> tuple[str, str] | None:
    """What the run's own notes call its best."""
    present = set(checkpoint.steps(run_uri))
    for uri, step_name, weights_name in (
        (storage.join(run_uri, EVALUATIONS, CHOICE), "step", "weights"),
        (storage.join(run_uri, "result.json"), "best_step", "best_weights"),
    ):
        if storage.exists(uri):
            noted = storage.read_json(uri)
            if int(noted[step_name]) in present:
                return checkpoint.checkpoint_uri(run_uri, int(noted[step_name])), str(noted[weights_name])
    return None

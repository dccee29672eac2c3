"""An ablation's directory, `<root>/ablations/<key>/`: the plan (`plan.json`), `trials/*.json`, and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.ablations.definitions.ablation import Trial
from evaluation.ablations.definitions.request import AblationRequest
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.presets import preset

PLAN = "plan.json"
_EXPERIMENT = ("experiment_preset", "overrides")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The plan of an ablation, which its steps share.

    Attributes:
        items: One for each trial: all that the steps of a trial need.
        parent_run_id: The ablation's run in MLflow.
        parent_url: The page of that run.
        values: Label -> short name -> value of what the ablation varies; for a run that the user named, its own values.
    """

    request: AblationRequest
    items: list[dict[str, Any]]
    parent_run_id: str
    parent_url: str
    tracking: str
    values: dict[str, dict[str, Any]]

    def trial(self, label: str) -> Trial | None:
        """Return the trial of that label; None for a joint measurement."""
        found = (trial for trial in self.request.trials() if trial.label == label)
        return next((dataclasses.replace(trial, values=self.values[label]) for trial in found), None)

    def items_by_seed(self) -> dict[int | None, list[dict[str, Any]]]:
        """Return seed -> the items of its trials, which have one joint measurement; without repeated seeds all are under None."""
        seeds: dict[int | None, list[dict[str, Any]]] = {}
        for trial, item in zip(self.request.trials(), self.items, strict=True):
            seeds.setdefault(trial.seed, []).append(item)
        return seeds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}, "request": self.request.to_dict()}


def loop_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a pipeline's loop hands to the steps of a trial: its item of the plan, without the experiment.

    An experiment can have any number of overrides, and Argo stores the item some eight times; Kubernetes stores 1 MiB of a run.
    """
    return {name: value for name, value in item.items() if name not in _EXPERIMENT}


def experiment_of(item: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a trial from the plan, for a step that got its item from a loop."""
    label = item["label"]
    planned = next(each for each in read_plan(item["ablation_uri"]).items if each["label"] == label)
    return preset(planned["experiment_preset"], planned["overrides"])


def ablation_uri(request: AblationRequest, storage_root_uri: str) -> str:
    """Return the ablation's directory."""
    return storage.join(storage_root_uri, "ablations", request.key())


def read_plan(ablation_uri: str) -> Plan:
    """Read the plan of an ablation; raise UserError if nothing was planned there."""
    uri = storage.join(ablation_uri, PLAN)
    if not storage.exists(uri):
        raise UserError(f"{ablation_uri}: no ablation was planned there; run the ablation first")
    return storage.read_record(uri, Plan)

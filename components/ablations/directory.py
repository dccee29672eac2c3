"""An ablation's directory, `<root>/ablations/<key>/`: the plan (`plan.json`), `trials/*.json`, and the report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from evaluation.ablations.definitions.ablation import Trial
from evaluation.ablations.definitions.request import AblationRequest
from training import storage
from training.config.errors import UserError

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The plan of an ablation, which its steps share.

    Attributes:
        items: One for each trial: all that the steps of a trial need, as the pipeline's loop hands it to them.
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


def ablation_uri(request: AblationRequest, storage_root_uri: str) -> str:
    """Return the ablation's directory."""
    return storage.join(storage_root_uri, "ablations", request.key())


def read_plan(ablation_uri: str) -> Plan:
    """Read the plan of an ablation; raise UserError if nothing was planned there."""
    uri = storage.join(ablation_uri, PLAN)
    if not storage.exists(uri):
        raise UserError(f"{ablation_uri}: no ablation was planned there; run the ablation first")
    return storage.read_record(uri, Plan)

"""An ablation's directory, `<root>/ablations/<key>/`: `plan.json`, `trials/*.json`, and what the report makes of them."""

from __future__ import annotations

from typing import Any

from evaluation.ablations.definitions.request import AblationRequest
from training import storage
from training.config.errors import UserError

PLAN = "plan.json"


def ablation_uri(request: AblationRequest, storage_root_uri: str) -> str:
    """The ablation's directory."""
    return storage.join(storage_root_uri, "ablations", request.key())


def read_request(ablation_uri: str) -> AblationRequest:
    """The ablation of that directory.

    Raises:
        UserError: Nothing was planned there.
    """
    return AblationRequest.from_dict(read_plan(ablation_uri)["request"])


def read_items(ablation_uri: str) -> list[dict[str, Any]]:
    """The plan's items."""
    items: list[dict[str, Any]] = read_plan(ablation_uri)["items"]
    return items


def read_plan(ablation_uri: str) -> dict[str, Any]:
    """What was planned: `request`, `items`, `parent_run_id` and `parent_url` in MLflow, `tracking`, MLflow's experiment, `values` by label.

    Raises:
        UserError: Nothing was planned there.
    """
    uri = storage.join(ablation_uri, PLAN)
    if not storage.exists(uri):
        raise UserError(f"{ablation_uri}: nothing was planned there; run the ablation first")
    plan: dict[str, Any] = storage.read_json(uri)
    return plan

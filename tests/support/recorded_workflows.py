"""Workflows as a real cluster showed them, state by state (tests/recordings), and KFP's answers about them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parents[1] / "recordings"


def recorded(folder: str, name: str) -> Any:
    """A recording, whole."""
    return json.loads(gzip.decompress((_FOLDER / folder / f"{name}.json.gz").read_bytes()))


def workflow_states(name: str, *, pipeline_run_id: str = "") -> list[dict[str, Any]]:
    """The Workflow of a recording in each of its states, as the API answers; with another id of the pipeline's run, if one is given."""
    recording = recorded("workflows", name)
    metadata = recording["created"]["metadata"]

    def state(each: dict[str, Any]) -> dict[str, Any]:
        labels = each["labels"] | ({"pipeline/runid": pipeline_run_id} if pipeline_run_id else {})
        return {
            "metadata": {**metadata, "labels": labels},
            "spec": {**recording["created"]["spec"], **each["spec"]},
            "status": each["status"],
        }

    return [state(each) for each in recording["states"]]


_RUN_STATES = {"": "PENDING", "Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED", "Failed": "FAILED", "Error": "FAILED"}


def kfp_answer(workflow: dict[str, Any]) -> dict[str, Any]:
    """KFP 2.17's answer for a run in such a state: it copies Argo's nodes. `test_recorded_answers` compares it with recorded ones."""
    state = _RUN_STATES[workflow["status"].get("phase") or ""]
    is_cancelled = workflow["spec"].get("activeDeadlineSeconds") == 0
    states = ["PENDING", *["RUNNING"] * (state != "PENDING"), *["CANCELING"] * is_cancelled]
    states += [] if state in states else [state]
    details = [
        {
            "task_id": node["id"],
            "display_name": node["displayName"],
            "start_time": node["startedAt"],
            **({"state": _RUN_STATES[node["phase"]]} if node["phase"] in _RUN_STATES else {}),  # none for a step that is left out
            "child_tasks": [{"pod_name": child} for child in node.get("children") or ()],
        }
        for node in (workflow["status"].get("nodes") or {}).values()
    ]
    return {"state": states[-1], "state_history": [{"state": each} for each in states], "run_details": {"task_details": details}}

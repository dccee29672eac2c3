"""Workflows as a real cluster showed them, state by state (tests/recordings)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "recordings"


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
            "metadata": {"name": metadata["name"], "uid": metadata["uid"], "labels": labels},
            "spec": each["spec"],
            "status": each["status"],
        }

    return [state(each) for each in recording["states"]]

"""How a pipeline's run stands, by the Workflow that Argo makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENDED = ("Succeeded", "Failed", "Error")
"""Phases of a Workflow whose steps are over."""


def phase_of(workflow: Mapping[str, Any]) -> str:
    """The phase; empty before Argo has looked at it."""
    return str((workflow.get("status") or {}).get("phase", ""))

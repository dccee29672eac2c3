"""The state of a pipeline's run, read from the Workflow that Argo makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENDED = ("Succeeded", "Failed", "Error")
"""Phases of a Workflow whose steps are over."""


def phase_of(workflow: Mapping[str, Any]) -> str:
    """Return the phase; empty before Argo has seen the Workflow."""
    return str((workflow.get("status") or {}).get("phase", ""))


def is_cancelled(workflow: Mapping[str, Any]) -> bool:
    """Return True if somebody ended the run: KFP sets the deadline to zero, Argo's own command sets `shutdown`."""
    spec = workflow.get("spec") or {}
    return spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown"))

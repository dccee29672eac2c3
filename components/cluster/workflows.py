"""The Workflow that Argo makes of a pipeline's run: its phase, and the pods and RayJobs that it owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

ENDED = ("Succeeded", "Failed", "Error")
"""Phases of a Workflow whose steps are over."""


class Owner(NamedTuple):
    """The Workflow of a pipeline's run. A RayJob that it owns is deleted with it."""

    api_version: str
    name: str
    uid: str

    def reference(self) -> dict[str, Any]:
        """Return the entry of `metadata.ownerReferences`. It is no controller: KubeRay and Argo each control their own objects."""
        return {
            "apiVersion": self.api_version,
            "kind": "Workflow",
            "name": self.name,
            "uid": self.uid,
            "controller": False,
            "blockOwnerDeletion": False,
        }


def owner_of(manifest: Mapping[str, Any] | None) -> Owner | None:
    """Return the Workflow that owns a pod or a RayJob, or None.

    A Workflow outlives the retries of its pods, and Kubernetes deletes what it owns together with it.
    """
    for reference in (manifest or {}).get("metadata", {}).get("ownerReferences") or ():
        if reference["kind"] == "Workflow":
            return Owner(reference["apiVersion"], reference["name"], reference["uid"])
    return None


def phase_of(workflow: Mapping[str, Any]) -> str:
    """Return the phase; empty before Argo has looked at it."""
    return str((workflow.get("status") or {}).get("phase", ""))


def is_cancelled(workflow: Mapping[str, Any]) -> bool:
    """Return True if somebody ended the run: KFP then sets the deadline to zero, Argo's own command sets `shutdown`."""
    spec = workflow.get("spec") or {}
    return spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown"))

"""A recording of a real cluster played again, so that a Kubernetes API can serve it: all objects, as they were at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from conformance.record import Record, metadata_of


class Replay:
    """The objects of one recorded scenario.

    Attributes:
        times: When something changed, at most every two seconds, as a recorder looks; in seconds since 1970.
    """

    def __init__(self, record: Record, *, run_id: str = "") -> None:
        """Read a recording.

        Args:
            record: The recording.
            run_id: Id in KFP of its only run; empty keeps the recorded ones.
        """
        self._record = record
        self._labels = {"pipeline/runid": run_id} if run_id else {}
        assert not run_id or len(record.workflows) == 1
        everything = [*(each["states"] for each in record.workflows), *record.pods.values(), *record.rayjobs.values()]
        self.times = sorted({math.ceil(state["at"] / 2) * 2.0 for states in everything for state in states})

    def workflows(self, at: float) -> dict[str, dict[str, Any]]:
        """Return the Workflows, by name."""
        found: dict[str, dict[str, Any]] = {}
        for recording in self._record.workflows:
            past = [state for state in recording["states"] if state["at"] <= at]
            if not past:
                continue
            last, created = past[-1], recording["created"]
            metadata = {**created["metadata"], "labels": {**last["labels"], **self._labels}, "resourceVersion": str(last["at"])}
            metadata.setdefault("uid", recording["workflow"])
            spec = {**created["spec"], **last["spec"]}
            found[recording["workflow"]] = {**created, "metadata": metadata, "spec": spec, "status": last["status"]}
        return found

    def pods(self, at: float) -> dict[str, dict[str, Any]]:
        """Return the pods, by name."""
        return self._objects(self._record.pods, at)

    def rayjobs(self, at: float) -> dict[str, dict[str, Any]]:
        """Return the RayJobs, by name."""
        return self._objects(self._record.rayjobs, at)

    def _objects(self, recorded: Mapping[str, list[dict[str, Any]]], at: float) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, states in recorded.items():
            past = [state for state in states if state["at"] <= at]
            if not past or past[-1]["event"] == "DELETED":
                continue
            last, whole = past[-1], states[0].get("object", {"spec": {"containers": [{}]}, **states[0]})
            metadata = {"uid": name, **metadata_of(states[0]), **metadata_of(last), "name": name, "resourceVersion": str(last["at"])}
            status = last.get("object", last).get("status") or {}
            found[name] = {**whole, "metadata": metadata, "status": status}
        return found

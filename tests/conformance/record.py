"""Record a cluster during a scenario: Workflows, pods, RayJobs and events, state by state; KFP's and MLflow's answers; commands' output.

The form on disk is that of `tests/recordings`: gzipped JSON, an object's first state whole, then its metadata and status.
A judgement reads only this, so it can be run again on what was recorded before.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

NODE_NAME = "workflows.argoproj.io/node-name"


class Claim(NamedTuple):
    """A sentence about the cluster.

    Attributes:
        text: The sentence.
        holds: True or False; None where the recording lacks what it is about.
        seen: The facts, for a claim that does not hold.
    """

    text: str
    holds: bool | None
    seen: str = ""


@dataclass(kw_only=True)
class Record:
    """The record of one scenario.

    Attributes:
        name: The scenario.
        workflows: A recording for each run, in the order in which they were submitted.
        pods: By pod, its states; of steps, drivers and Ray.
        rayjobs: By RayJob, its states.
        events: Kubernetes events about them.
        runs: KFP's answer for each run, at the end.
        mlflow: MLflow's runs of these runs, at the end; None if MLflow was not asked.
        texts: Output of the commands, and what else a scenario has noted, by name.
    """

    name: str
    workflows: list[dict[str, Any]] = field(default_factory=list)
    pods: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rayjobs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    mlflow: list[dict[str, Any]] | None = None
    texts: dict[str, str] = field(default_factory=dict)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def phase(self, number: int = 0) -> str:
        """Return the phase of a run's Workflow; empty if there is none."""
        if number >= len(self.workflows) or not self.workflows[number]["states"]:
            return ""
        return str(self.workflows[number]["states"][-1]["status"].get("phase", ""))

    def message(self, number: int = 0) -> str:
        """Return the last message of a run's Workflow and of the nodes that failed."""
        if number >= len(self.workflows):
            return "no Workflow"
        said = [self.workflows[number]["states"][-1]["status"].get("message", "")]
        failed = [node for node in self.nodes(number) if node.get("message") and node["phase"] in ("Failed", "Error")]
        said += [f"{node['name'].rpartition('-1(0).')[2]}: {node['message']}" for node in failed]
        return "; ".join(dict.fromkeys(each for each in said if each))[:1000]

    def nodes(self, number: int = 0) -> list[dict[str, Any]]:
        """Return a Workflow's nodes as they were last seen."""
        if number >= len(self.workflows):
            return []
        for state in reversed(self.workflows[number]["states"]):
            if nodes := nodes_of(state["status"]):
                return list(nodes.values())
        return []

    def has_final_nodes(self, number: int = 0) -> bool:
        """Return True if the last state of a Workflow was recorded with its nodes."""
        return bool(self.workflows[number : number + 1]) and bool(nodes_of(self.workflows[number]["states"][-1]["status"]))

    def tries(self, task: str, number: int = 0) -> list[dict[str, Any]]:
        """Return the pods that a step was tried in, first to last; of a step in a loop those of all its iterations."""
        found = [node for node in self.nodes(number) if node["type"] == "Pod" and is_try(node["name"], task)]
        return sorted(found, key=lambda node: str(node.get("startedAt")))

    def deleted(self, name: str) -> bool:
        """Return True if a RayJob or pod was marked for deletion, or is gone."""
        states = self.rayjobs.get(name) or self.pods.get(name) or []
        return any(each["event"] == "DELETED" or metadata_of(each).get("deletionTimestamp") for each in states)

    def replaced(self, kind: str) -> bool:
        """Return True if a pod of that kind came up after another one of it was deleted."""
        states = [self.pods[name] for name in self.pods_of(kind)]
        lost = [
            state["at"] for each in states for state in each if state["event"] == "DELETED" or metadata_of(state).get("deletionTimestamp")
        ]
        return bool(lost) and states[-1][0]["at"] > min(lost)

    def pods_of(self, *kinds: str) -> list[str]:
        """Return the pods of these kinds, by the time at which they were first seen."""
        found = [(states[0]["at"], name) for name, states in self.pods.items() if states[0]["kind"] in kinds]
        return [name for _, name in sorted(found)]

    def images(self, number: int = 0) -> set[str]:
        """Return the images of a run's steps."""
        name = self.workflows[number]["workflow"] if number < len(self.workflows) else ""
        pods = [self.pods[pod][0]["object"] for pod in self.pods_of("executor")]
        ours = [pod for pod in pods if pod["metadata"]["labels"].get("workflows.argoproj.io/workflow") == name]
        return {each["image"] for pod in ours for each in pod["spec"]["containers"] if each["name"] == "main"}

    # -- claims --------------------------------------------------------------------------------------------------------

    def succeeded(self, number: int = 0) -> Claim:
        """Claim that a run succeeded."""
        return Claim("the run succeeds", self.phase(number) == "Succeeded", f"{self.phase(number) or 'no end'}: {self.message(number)}")

    def says(self, text: str, name: str, pattern: str) -> Claim:
        """Claim that a noted text has a pattern."""
        if name not in self.texts:
            return Claim(text, None, f"{name} was not recorded")
        lines = self.texts[name].strip().splitlines()
        return Claim(text, re.search(pattern, self.texts[name]) is not None, " | ".join(lines[-3:])[:400] or "nothing was said")

    def in_mlflow(self, text: str, *statuses: str) -> Claim:
        """Claim that MLflow has these runs of ours, by status."""
        if self.mlflow is None:
            return Claim(text, None, "MLflow was not asked")
        found = sorted(run["info"]["status"] for run in self.mlflow)
        return Claim(text, found == sorted(statuses), f"MLflow has {found}")

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the recording."""
        for number, workflow in enumerate(self.workflows, start=1):
            _write(folder / "workflows", _numbered(self.name, number), workflow)
        for number, run in enumerate(self.runs, start=1):
            _write(folder / "kfp-api", _numbered(f"run-{self.name}", number), run)
        owners = sorted({states[0]["owner"] for states in self.pods.values()} & self.rayjobs.keys())
        for owner in owners:
            _write(folder / "pods", owner, {name: states for name, states in self.pods.items() if states[0]["owner"] == owner})
        _write(folder / "pods", self.name, {name: states for name, states in self.pods.items() if states[0]["owner"] not in owners})
        for name, states in self.rayjobs.items():
            _write(folder / "rayjobs", name, states)
        _write(folder / "events", self.name, self.events)
        _write(folder / "texts", self.name, {"texts": self.texts, "mlflow": self.mlflow})

    @classmethod
    def load(cls, folder: Path, name: str) -> Record:
        """Read a recording; what it lacks is empty."""
        record = cls(name=name)
        for number in range(1, 10):
            if (workflow := _read(folder / "workflows", _numbered(name, number))) is not None:
                record.workflows.append(workflow)
            if (run := _read(folder / "kfp-api", _numbered(f"run-{name}", number))) is not None:
                record.runs.append(run)
        record.pods = _read(folder / "pods", name) or {}
        owners = {each["workflow"] for each in record.workflows}
        for path in sorted((folder / "rayjobs").glob("*.json.gz")):
            states = _read(path.parent, rayjob := path.name.removesuffix(".json.gz"))
            references = states[0]["object"]["metadata"].get("ownerReferences") or []
            if any(each["name"] in owners for each in references):
                record.rayjobs[rayjob] = states
                record.pods.update(_read(folder / "pods", rayjob) or {})
        record.events = _read(folder / "events", name) or []
        noted = _read(folder / "texts", name) or {}
        record.texts, record.mlflow = noted.get("texts", {}), noted.get("mlflow")
        return record


def nodes_of(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nodes of a Workflow's status, also where Argo has compressed them."""
    if compressed := status.get("compressedNodes"):
        return dict(json.loads(gzip.decompress(base64.b64decode(compressed))))
    return dict(status.get("nodes") or {})


def is_try(node_name: str, task: str) -> bool:
    """Return True if a node's name, which is a path like `w(0).root(0).train(0).executor(1)`, is a try of that step."""
    return re.search(rf"\.{re.escape(task)}(\(\d+\))?\.executor(\(\d+\))?$", node_name) is not None


def metadata_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a recorded state."""
    return dict(state.get("object", state).get("metadata") or {})


def status_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status of a recorded state."""
    return dict(state.get("object", state).get("status") or {})


def short_nodes(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nodes without inputs and outputs, which are large."""
    return {key: {name: value for name, value in node.items() if name not in ("inputs", "outputs")} for key, node in nodes.items()}


def pod_spec_patches(nodes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the patches that drivers computed for the pods of steps, by node."""
    for node in nodes:
        for parameter in (node.get("outputs") or {}).get("parameters") or ():
            if parameter["name"] == "pod-spec-patch" and parameter.get("value"):
                yield node["name"], parameter["value"]


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _write(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(value).encode(), mtime=0))


def _read(folder: Path, name: str) -> Any:
    path = folder / f"{name}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes())) if path.exists() else None

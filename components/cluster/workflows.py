"""The Workflow that Argo makes of a pipeline's run: its phase, its steps, and the pods and RayJobs that it owns."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from training.config.errors import UserError

LARGEST_SWEEP = 60
"""The most trials of one run. Kubernetes stores 1 MiB of a Workflow, and Argo stores each step's inputs in it (tests measure it)."""
_TRIAL_BYTES, _LABEL_COPIES, _SWEEP_BYTES = 12_400, 20, 840_000
"""Bytes of a trial in a compressed Workflow, copies of its compressed label beside them, and bytes of all trials (tests measure them)."""
ENDED = ("Succeeded", "Failed", "Error")
"""Phases of a Workflow whose steps are over."""
STORED_LABEL = "pipeline/persistedFinalState"
"""KFP's label of a Workflow whose end it has stored. Its Retry writes the Workflow as it was stored, so without a label that came later."""
RUNNING = "workflows.argoproj.io/completed!=true"
"""Selects the Workflows that go on, by the label that Argo gives those that have ended."""

_STOPPED = re.compile(r"main: Error \(exit code 143\)|$")
"""Argo's words for a step that got SIGTERM, or none."""


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


def has_ended(workflow: Mapping[str, Any]) -> bool:
    """Return True if the run is over, cancelled or being deleted: nothing that it started has a use any more."""
    return is_cancelled(workflow) or phase_of(workflow) in ENDED or bool(workflow["metadata"].get("deletionTimestamp"))


def last_start(workflow: Mapping[str, Any]) -> str:
    """Return when the last pod of a step began, UTC as ISO 8601; those of the exit task do not count. Empty if there was none."""
    pods = [node for node in nodes_of(workflow).values() if node.get("type") == "Pod" and ".onExit" not in node["name"]]
    return max((str(node.get("startedAt") or "") for node in pods), default="")


def pipeline_of(workflow: Mapping[str, Any]) -> str:
    """Return the name of the pipeline, as KFP gives it to the run's drivers; empty for a Workflow that KFP did not make.

    The Workflow's own name does not tell it: that of a scheduled run has the name of its schedule.
    """
    for template in (workflow.get("spec") or {}).get("templates") or ():
        args = (template.get("container") or {}).get("args") or ()
        if "--pipeline_name" in args:
            return str(args[args.index("--pipeline_name") + 1])
    return ""


def form_of(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the pipeline's form, as KFP's compiler (2.17) puts them into the Workflow; empty for another's Workflow."""
    spec = workflow.get("spec") or {}
    given = [each for each in (spec.get("arguments") or {}).get("parameters") or () if each["name"] == "components-root"]
    tasks = [task for template in spec.get("templates") or () for task in (template.get("dag") or {}).get("tasks") or ()]
    passed = [each for task in tasks for each in (task.get("arguments") or {}).get("parameters") or ()]
    values = [each for each in passed if each["name"] == "runtime-config"]
    if not given or not values:
        return {}
    declared = json.loads(given[0]["value"]).get("inputDefinitions", {}).get("parameters", {})
    defaults = {name: each["defaultValue"] for name, each in declared.items() if "defaultValue" in each}
    return defaults | dict(json.loads(values[0]["value"]).get("parameterValues") or {})


class Attempt(NamedTuple):
    """One try of a step, or of the driver that prepares it: one pod.

    Attributes:
        step: The step, like "preprocess"; in a loop with the number of its item, like "train-trial (2)".
        phase: Argo's, like "Pending", "Failed" (the container ended) or "Error" (the pod was refused or lost).
        message: Why it waits or failed; empty if Argo says nothing.
        log_uri: Where KFP keeps its log when the pod is gone; empty for a driver.
        has_failed: True if the whole step has failed, with all its tries.
        started: When it began, as text that sorts by time.
        finished: When it ended, in the same way; empty while it goes on.
    """

    step: str
    phase: str
    message: str
    pod: str
    log_uri: str
    has_failed: bool
    started: str
    finished: str
    is_driver: bool


def require_sweep_fits(labels: Sequence[str]) -> None:
    """Refuse a sweep whose Workflow would become larger than Kubernetes stores; Argo would fail it in the middle.

    Args:
        labels: The label of each trial, which says what the trial varies. A sweep with long ones takes fewer trials.

    Raises:
        UserError: It has too many trials; the message says how many fit.
    """
    sizes = [_TRIAL_BYTES + _LABEL_COPIES * len(zlib.compress(label.encode())) for label in labels]
    if len(sizes) <= LARGEST_SWEEP and sum(sizes) <= _SWEEP_BYTES:
        return
    most = min(LARGEST_SWEEP, len(sizes) * _SWEEP_BYTES // sum(sizes))
    vary = "" if most == LARGEST_SWEEP else " that vary as much as these (Argo stores what a trial varies many times)"
    raise UserError(
        f"the sweep has {len(sizes)} trials; a run on a cluster takes at most {most}{vary}: split its grid into several runs "
        "(trials that two of them share are trained once)"
    )


def is_compressed(workflow: Mapping[str, Any]) -> bool:
    """Return True if Argo has compressed the Workflow's nodes."""
    return bool((workflow.get("status") or {}).get("compressedNodes"))


def nodes_of(workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nodes of a Workflow by id. Argo compresses them when the Workflow is larger than 1 MiB."""
    status = workflow.get("status") or {}
    compressed = status.get("compressedNodes")
    nodes = json.loads(gzip.decompress(base64.b64decode(compressed))) if compressed else status.get("nodes")
    return dict(nodes or {})


def attempts(workflow: Mapping[str, Any]) -> list[Attempt]:
    """Return every try of every step, in the order in which they began."""
    name = str(workflow["metadata"]["name"])
    nodes = nodes_of(workflow)
    by_name = {node["name"]: node for node in nodes.values()}
    groups = _group_names(workflow)
    found = []
    for node in nodes.values():
        if node.get("type") != "Pod":
            continue
        # A name is like "train-x7k2p(0).root(0).exit-handler-1(0).preprocess(0).executor(1)". A number in brackets is a try; without it,
        # the name is that of the node that retries.
        path = re.sub(r"\(\d+\)$", "", node["name"])
        step_path = re.sub(r"\(\d+\)\.executor$", "", path)
        retried, step = by_name.get(path, node), by_name.get(step_path, node)
        message, failures = str(node.get("message") or ""), ("Failed", "Error")
        found.append(
            Attempt(
                step=_step_name(step_path, groups),
                phase=str(node.get("phase", "")),
                # Of a pod that Argo itself has stopped, the node that retries says why, like "Max duration limit exceeded".
                message=str((retried if _STOPPED.match(message) and retried.get("message") else node).get("message") or ""),
                pod=f"{name}-{node['templateName']}-{node['id'].rpartition('-')[2]}",
                log_uri=_log_uri(node),
                has_failed=step.get("phase") in failures and retried.get("phase") in failures,
                started=str(node.get("startedAt") or ""),
                finished=str(node.get("finishedAt") or ""),
                is_driver=path.endswith("-driver"),
            )
        )
    return sorted(found, key=lambda each: (each.started, each.pod))


def _group_names(workflow: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that KFP's UI shows for loops and other groups, like "trials" for "for-loop-3", from their drivers' arguments."""
    found = {}
    for template in (workflow.get("spec") or {}).get("templates") or ():
        for task in (template.get("dag") or {}).get("tasks") or ():
            given = {each["name"]: each.get("value") for each in (task.get("arguments") or {}).get("parameters") or ()}
            if task.get("template") == "system-dag-driver" and given.get("task") and given.get("task-name"):
                group = str(given["task-name"])
                found[group] = str(json.loads(given["task"]).get("taskInfo", {}).get("name") or group)
    return found


def _step_name(path: str, groups: Mapping[str, str]) -> str:
    """Return the last part of a node's path without "-driver"; the number of a loop's item is in "iteration-iterations(1:1)".

    A loop's own drivers are "for-loop-3(0).iteration-driver" and, for an item, "iteration-item-driver": they have the loop's name.
    """
    items = re.findall(r"\.iteration-iterations\((\d+):", path)
    name = path.rpartition(".")[2].removesuffix("-driver")
    if name in ("iteration", "iteration-item"):
        name = next((part for part in reversed(re.findall(r"\.([\w-]+)\(", path)) if part in groups), name)
    name = groups.get(name, name)
    return f"{name} ({int(items[-1]) + 1})" if items else name


def _log_uri(node: Mapping[str, Any]) -> str:
    """Return where KFP's launcher puts a try's log. The driver chose the place, and the launcher appends the number of the try."""
    parameters = (node.get("inputs") or {}).get("parameters") or ()
    patch = next((str(each.get("value")) for each in parameters if each["name"] == "pod-spec-patch"), "")
    place = re.search(r"s3://[^\s\"\\\\]+/executor-logs", patch)
    return f"{place[0]}-{node['name'].rpartition('(')[2].rstrip(')')}" if place else ""

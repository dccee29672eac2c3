"""A model of a sweep's Workflow, to know its size before it runs.

A node repeats the inputs of its step, so a sweep's nodes are ten times as large as the pipeline. A recorded sweep has the nodes and what
the drivers gave; the inputs of its steps are those that the compiled pipeline has today.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import uuid
from collections.abc import Sequence
from typing import Any

import yaml
from recorded_workflows import recorded

from components.ablations.directory import loop_item
from pipelines.compile import compiled

LIMIT = 1024 * 1024
"""The bytes of an object that Kubernetes and Argo take."""
Nodes = list[dict[str, Any]]
_RECORDED_LABEL = "vlb_weight=0.001"


def as_json(value: Any) -> str:
    """Return JSON as Argo stores it."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def sweep_nodes() -> tuple[Nodes, Nodes]:
    """Return the nodes of one trial, and all other nodes, each with the inputs and outputs that Argo stores in it."""
    recording = recorded("workflows", "ablation-of-two-trials-succeeded")
    spec, platform = yaml.safe_load_all(compiled("ablation"))
    tasks = {
        name: task for part in (spec["root"], *spec["components"].values()) for name, task in part.get("dag", {}).get("tasks", {}).items()
    }
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    patches = recording["driver_pod_spec_patches"]

    def inputs(step: str) -> list[str]:
        component = spec["components"][tasks[step]["componentRef"]["name"]]
        label = component.get("executorLabel", "")
        container = spec["deploymentSpec"]["executors"].get(label, {})
        return [as_json(tasks[step]), as_json(component), as_json(container), as_json(pods.get(label, {}))]

    def patch(step: str) -> str:
        """The driver's patch of the step's pod, with today's program."""
        found = json.loads(next(text for name, text in patches.items() if f".{step}-driver" in name))
        label = spec["components"][tasks[step]["componentRef"]["name"]]["executorLabel"]
        for number, word in enumerate(found["containers"][0]["command"]):
            if '"item"' in word and "parameterValues" in word:
                given = json.loads(word)
                values = given["inputs"]["parameterValues"]
                values["item"] = loop_item(values["item"])
                found["containers"][0]["command"][number] = as_json(given)
        found["containers"][0]["args"] = spec["deploymentSpec"]["executors"][label]["container"]["command"]
        return as_json(found)

    def whole(node: dict[str, Any]) -> dict[str, Any]:
        step = re.sub(r"(\(\d+\))?\.executor(\(\d+\))?$|\(\d+\)$", "", node["name"]).rpartition(".")[2]
        name = re.sub(r"\(\d+\)$", "", step).removesuffix("-driver")
        if name.startswith("iteration"):  # the driver of a loop's item has the inputs of the loop
            name = re.findall(r"for-loop-\d+", node["name"])[-1]
        is_step = name in tasks and "executorLabel" in spec["components"][tasks[name]["componentRef"]["name"]]
        given = inputs(name) if name in tasks and "-driver" in step else []
        given += [patch(name)] if is_step and any(f".{name}-driver" in each for each in patches) else []
        return {**node, "inputs": {"parameters": [{"name": "x", "value": value} for value in given]}}

    largest = max(recording["states"], key=lambda each: len(each["status"].get("nodes") or {}))["status"]["nodes"].values()
    trial = [whole(node) for node in largest if re.search(r"for-loop-3\(0\)\.iteration-iterations\(0:0\)", node["name"])]
    others = [whole(node) for node in largest if not re.search(r"for-loop-3\(0\)\.iteration-iterations\(\d", node["name"])]
    return trial, others


def stored_bytes(sweep: tuple[Nodes, Nodes], num_trials: int, labels: Sequence[str] = ()) -> int:
    """Return the size of a Workflow with the nodes of that many trials, compressed at least as well by Argo.

    Args:
        labels: The label of each trial; without them all have the recorded one.

    The nodes of a sweep of 60 that ran (at fbdc919) were 872,008 bytes then, where Python's level 5 made 888,600 of this model's, and its
    level 6 794,480. Those of another, at be7866f, were 764,352, and the whole Workflow 907,922, where this says 963,000.
    """
    trial, others = sweep
    rng = random.Random(0)
    nodes = {node["id"]: node for node in others}
    for number in range(num_trials):
        text = re.sub(
            r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda found: str(uuid.UUID(int=rng.getrandbits(128))), as_json(trial)
        ).replace("(0:0)", f"({number}:{number})")
        if labels:
            text = text.replace(_RECORDED_LABEL, labels[number])
        for node in json.loads(text):
            nodes[f"iddpm-ablation-x45dm-{rng.randrange(10**10)}"] = node
    return _created_bytes() + len(base64.b64encode(gzip.compress(as_json(nodes).encode(), compresslevel=5)))


def _created_bytes() -> int:
    """Return the size of the Workflow that KFP makes of today's pipeline: as recorded, with today's components as its arguments."""
    created = recorded("workflows", "ablation-of-two-trials-succeeded")["created"]
    spec, platform = yaml.safe_load_all(compiled("ablation"))
    parts = [
        *({"name": f"components-{name}", "value": as_json(part)} for name, part in spec["components"].items()),
        {"name": "components-root", "value": as_json(spec["root"])},
        *({"name": "implementations-" + "0" * 64, "value": as_json(each)} for each in spec["deploymentSpec"]["executors"].values()),
    ]
    for name, pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
        parts.append({"name": f"kubernetes-{name}", "value": as_json(pod)})
    return len(as_json({**created, "spec": {**created["spec"], "arguments": {"parameters": parts}}}))

"""The size of a sweep's Workflow, which Kubernetes and Argo limit to 1 MiB.

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
from typing import Any

import pytest
import yaml
from recorded_workflows import recorded

from components.cluster.workflows import LARGEST_SWEEP, require_sweep_fits
from pipelines.client.arguments import cluster_arguments_of, compiled_pipeline
from pipelines.compile import compiled
from training.config.errors import UserError

_LIMIT = 1024 * 1024
_RETRIES = 1.1
"""A tenth of the trials may be tried again."""


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


@pytest.fixture(scope="module")
def sweep() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The nodes of one trial, and all other nodes, each with the inputs and outputs that Argo stores in it."""
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
        return [_json(tasks[step]), _json(component), _json(container), _json(pods.get(label, {}))]

    def patch(step: str) -> str:
        """What the driver gave for the step's pod, with today's program."""
        found = json.loads(next(text for name, text in patches.items() if f".{step}-driver" in name))
        label = spec["components"][tasks[step]["componentRef"]["name"]]["executorLabel"]
        found["containers"][0]["args"] = spec["deploymentSpec"]["executors"][label]["container"]["command"]
        return _json(found)

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


def _stored_bytes(sweep: tuple[list[dict[str, Any]], list[dict[str, Any]]], num_trials: int) -> int:
    """Size of a Workflow with the nodes of that many trials, compressed as Argo does it."""
    trial, others = sweep
    rng = random.Random(0)
    nodes = {node["id"]: node for node in others}
    for number in range(num_trials):
        text = re.sub(
            r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda found: str(uuid.UUID(int=rng.getrandbits(128))), _json(trial)
        ).replace("(0:0)", f"({number}:{number})")
        for node in json.loads(text):
            nodes[f"iddpm-ablation-x45dm-{rng.randrange(10**10)}"] = node
    spec = recorded("workflows", "ablation-of-two-trials-succeeded")["created"]
    return len(_json(spec)) + len(base64.b64encode(gzip.compress(_json(nodes).encode(), compresslevel=6)))


def test_the_model_of_a_workflow_agrees_with_the_recorded_one(sweep: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """Argo began to compress the recorded sweep, of two trials, after 82 nodes: at 1 MiB. The steps' inputs are smaller today."""
    trial, others = sweep
    size = len(_json([*trial, *trial, *others])) + len(_json(recorded("workflows", "ablation-of-two-trials-succeeded")["created"]))
    assert 0.5 * _LIMIT < size < 1.3 * _LIMIT


def test_the_largest_sweep_that_is_accepted_fits_with_retries(sweep: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    assert LARGEST_SWEEP >= 60
    assert _stored_bytes(sweep, int(LARGEST_SWEEP * _RETRIES)) < _LIMIT


def test_a_larger_sweep_is_refused_with_the_number_that_fits() -> None:
    require_sweep_fits(LARGEST_SWEEP)
    grid = {"diffusion.vlb_weight": [number / 1000 for number in range(1, LARGEST_SWEEP + 2)]}
    words = ["ablation_name=own-grid", f"ablation_grid={json.dumps(grid)}", "experiment_preset=digits-tiny-hybrid-cosine"]
    with pytest.raises(UserError, match=f"has {LARGEST_SWEEP + 1} trials; a run on a cluster takes at most {LARGEST_SWEEP}"):
        cluster_arguments_of(compiled_pipeline("ablation"), preset="", overrides=[], words=words)

"""The requests of everything that runs at a run's widest moment fit the machine that the guide promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity
from rounding import rounded

from components.cluster.names import amount
from components.launch.resources import read_resources
from pipelines.compile import PIPELINES, compiled

_ROOT = Path(__file__).resolve().parents[3]
_GIB = 2**30
Amounts = dict[str, float]

_KUBERNETES = {"cpu": 0.95, "memory": 0.29 * _GIB}
"""A node of kind: etcd 100m, the API server 250m, the controllers 200m, the scheduler 100m, two of CoreDNS 200m, kindnet 100m."""
_KUBERAY = {"cpu": 0.1, "memory": 0.5 * _GIB}
"""KubeRay's chart 1.7: its limits, which are its requests too."""
_KFP = {
    "ml-pipeline": ("250m", "500Mi"),
    "ml-pipeline-persistenceagent": ("120m", "500Mi"),
    "ml-pipeline-ui": ("10m", "70Mi"),
    "ml-pipeline-visualizationserver": ("30m", "500Mi"),
    "mysql": ("100m", "800Mi"),
    "seaweedfs": ("64m", "256Mi"),
    "workflow-controller": ("100m", "500Mi"),
}
"""KFP 2.17.0, manifests/kustomize/env/platform-agnostic: the Deployments that request something."""
_DRIVER = {"cpu": 0.1, "memory": 64 * 2**20}
"""The pod that KFP starts before each step (recorded: tests/recordings/pods)."""


def _sum(*parts: Amounts) -> Amounts:
    return {name: sum(part[name] for part in parts) for name in ("cpu", "memory")}


def _requests(container: dict[str, Any]) -> Amounts:
    return {name: float(parse_quantity(container["resources"]["requests"][name])) for name in ("cpu", "memory")}


def _pod(spec: dict[str, Any]) -> Amounts:
    """Kubernetes' rule: the sum of the containers, or an init container that asks for more."""
    started = [_requests(container) for container in spec.get("initContainers", ())]
    running = _sum(*(_requests(container) for container in spec["containers"]))
    return {name: max(running[name], *(each[name] for each in started), 0) for name in running}


def _ours() -> Amounts:
    kubectl = Path(sys.executable).with_name("kubectl")
    built = subprocess.run([kubectl, "kustomize", str(_ROOT / "k8s/overlays/kind")], capture_output=True, text=True, check=True).stdout
    pods = []
    for item in yaml.safe_load_all(built):
        if item["kind"] in ("Deployment", "StatefulSet"):
            pods += [_pod(item["spec"]["template"]["spec"])] * item["spec"]["replicas"]
        elif item["kind"] == "CronJob":
            pods.append(_pod(item["spec"]["jobTemplate"]["spec"]["template"]["spec"]))
    return _sum(*pods)


def _widest(name: str, resources: str = "") -> Amounts:
    """The largest step of a pipeline, which runs alone, and the driver of the next."""
    spec = next(iter(yaml.safe_load_all(compiled(name))))
    sizes = []
    for executor in spec["deploymentSpec"]["executors"].values():
        amounts = executor["container"]["resources"]
        if "{{" not in amounts["resourceCpuRequest"]:
            sizes.append({key: float(parse_quantity(amounts[f"resource{key.title()}Request"])) for key in ("cpu", "memory")})
    for parameter, definition in spec["root"]["inputDefinitions"]["parameters"].items():
        if parameter.endswith("_resources"):
            sizes.append(_size(resources or definition["defaultValue"], parameter.removesuffix("_resources")))
    largest = {key: max(size[key] for size in sizes) for key in ("cpu", "memory")}
    return _sum(largest, _DRIVER)


def _size(text: str, stage: str) -> Amounts:
    resources = read_resources(text, stage=stage)
    assert resources.ray_mode == "local"
    return {"cpu": float(parse_quantity(resources.cpu)), "memory": float(parse_quantity(resources.memory))}


def _needed(run: Amounts) -> Amounts:
    kfp = _sum(*({"cpu": float(parse_quantity(cpu)), "memory": float(parse_quantity(memory))} for cpu, memory in _KFP.values()))
    return _sum(_KUBERNETES, _KUBERAY, kfp, _ours(), run)


def _promised() -> Amounts:
    found = re.search(r"(\d+) cores, (\d+) GB of memory", (_ROOT / "k8s/README.md").read_text())
    assert found is not None
    return {"cpu": float(found[1]), "memory": float(found[2]) * 1e9}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_with_its_defaults_fits_the_machine_that_the_guide_promises(name: str) -> None:
    """A sweep fits with one trial at a time; more wait for room."""
    needed = _needed(_widest(name))
    assert all(needed[each] <= _promised()[each] for each in needed), json.dumps(needed)


def test_a_larger_profile_would_not_fit() -> None:
    assert _needed(_widest("train", "2xcpu"))["cpu"] > _promised()["cpu"]


@pytest.mark.parametrize(
    "quantity", ["4", "0.5", ".5", "5.", "500m", "100n", "7u", "1e9", "1E9", "3e-1", "1k", "129M", "1E", "1Ei", "64Gi", "123456Ki"]
)
def test_an_amount_is_read_as_kubernetes_reads_it(quantity: str) -> None:
    assert amount(quantity) == rounded(float(parse_quantity(quantity)), 4)  # a number times a unit

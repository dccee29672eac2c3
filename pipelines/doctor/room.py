"""Check that the nodes have room for a run: what its pods request, against what the nodes have free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from components.cluster.names import amount
from components.launch.resources import StageResources
from pipelines.doctor.findings import ASK_ADMINISTRATOR, FAILURE, OK, WARNING, Finding
from pipelines.doctor.scope import Scope

_DRIVER = {"cpu": 0.1, "memory": 64.0 * 2**20}
"""Requests of the pod that KFP 2.17 starts before each step."""
Amounts = Mapping[str, float]


class _Pod(NamedTuple):
    amounts: Amounts
    node_selector: Mapping[str, Any]
    tolerations: Sequence[Mapping[str, Any]]


class _Node(NamedTuple):
    node: Mapping[str, Any]
    free: dict[str, float]


def check_room(scope: Scope) -> Iterator[Finding]:
    """Place the pods of each stage on the nodes, as they are and as they would be without other pods."""
    nodes = scope.cluster.get("/api/v1/nodes")
    pods = scope.cluster.get("/api/v1/pods", fieldSelector="status.phase!=Succeeded,status.phase!=Failed")
    for answer in (nodes, pods):
        if not answer.ok:
            yield Finding(WARNING, "room", f"cannot be seen: {answer.reason}", ASK_ADMINISTRATOR)
            return
    usable = [node for node in nodes.body.get("items", []) if is_ready(node)]
    for stage, resources in scope.resources.items():
        wanted = _pods_of(resources)
        text = f"{stage}: {len(wanted)} pod(s), of at most {_format(wanted)}"
        if _fit(wanted, _free(usable, pods.body.get("items", []))):
            yield Finding(OK, f"room for {stage}", f"{text}, fit what the nodes have free")
        elif _fit(wanted, _free(usable, [])):
            yield Finding(WARNING, f"room for {stage}", f"{text}, wait until other pods end")
        elif _fit([_tolerating(pod) for pod in wanted], _free(usable, [])):
            message = f"{text}, fit only nodes with the taint {resources.gpu_type}, which they do not tolerate"
            remedy = (
                "give tolerations (--resources), unless the cluster adds them to pods that ask for GPUs, as GKE does (admission plugin "
                "ExtendedResourceToleration): that can't be seen from here"
            )
            yield Finding(WARNING, f"room for {stage}", message, remedy)
        else:
            state = WARNING if _has_autoscaler(scope) else FAILURE
            yield Finding(state, f"room for {stage}", f"{text}, do not fit on {len(usable)} ready node(s), even if these were empty")


def _has_autoscaler(scope: Scope) -> bool:
    """True if something in the cluster may add nodes."""
    paths = ("/apis/karpenter.sh", "/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status")
    return any(scope.cluster.get(path).ok for path in paths)


def _pods_of(resources: StageResources) -> list[_Pod]:
    """Return the pods that run at once: the step's own, its Ray cluster's, and the driver of the next step."""
    own = resources.pod
    size = {"cpu": amount(own.cpu), "memory": amount(own.memory), own.gpu_type: float(own.gpus)}
    pods = [_Pod(_DRIVER, {}, ()), _Pod(size, own.node_selector, own.tolerations)]
    if resources.ray_mode == "rayjob":
        options, gpus = resources.rayjob, resources.workers_per_pod * resources.num_gpus_per_worker
        worker = {"cpu": amount(resources.cpu), "memory": amount(resources.memory), resources.gpu_type: float(gpus)}
        pods.append(_Pod({"cpu": 0.5, "memory": 2.0**29}, {}, ()))  # KubeRay's submitter
        pods.append(_Pod({"cpu": amount(options.head_cpu), "memory": amount(options.head_memory)}, {}, ()))
        pods += [_Pod(worker, resources.node_selector, resources.tolerations)] * (resources.num_workers // resources.workers_per_pod)
    return pods


def _tolerating(pod: _Pod) -> _Pod:
    """Return the pod as the admission plugin ExtendedResourceToleration changes it: it tolerates taints named after its devices."""
    devices = [name for name, value in pod.amounts.items() if name not in ("cpu", "memory") and value]
    return pod._replace(tolerations=[*pod.tolerations, *({"key": name, "operator": "Exists", "effect": "NoSchedule"} for name in devices)])


def _fit(pods: Sequence[_Pod], nodes: Sequence[_Node]) -> bool:
    """Place the largest pod first, each on the first node with room."""
    for pod in sorted(pods, key=lambda pod: (sum(pod.amounts.values()) - pod.amounts["cpu"], pod.amounts["cpu"]), reverse=True):
        for node in nodes:
            if _admits(node, pod):
                for name, value in pod.amounts.items():
                    node.free[name] = node.free.get(name, 0.0) - value
                break
        else:
            return False
    return True


def _admits(node: _Node, pod: _Pod) -> bool:
    labels = node.node["metadata"].get("labels") or {}
    if any(labels.get(name) != value for name, value in pod.node_selector.items()):
        return False
    for taint in node.node.get("spec", {}).get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(each, taint) for each in pod.tolerations):
            return False
    return all(node.free.get(name, 0.0) >= value - 1e-9 for name, value in pod.amounts.items() if value)


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""))


def _free(nodes: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]) -> list[_Node]:
    free = {node["metadata"]["name"]: _amounts(node["status"].get("allocatable", {})) for node in nodes}
    for pod in pods:
        spec = pod.get("spec", {})
        left = free.get(spec.get("nodeName", ""))
        if left is not None:
            for name, value in _requests(spec).items():
                left[name] = left.get(name, 0.0) - value
    return [_Node(node, free[node["metadata"]["name"]]) for node in nodes]


def _requests(spec: Mapping[str, Any]) -> dict[str, float]:
    """Return a pod's requests: the sum of its containers' and sidecars', or an init container's where that is more."""
    running: dict[str, float] = {}
    sidecars = [each for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"]
    for container in (*spec.get("containers", ()), *sidecars):
        for name, value in _amounts(container.get("resources", {}).get("requests") or {}).items():
            running[name] = running.get(name, 0.0) + value
    for container in spec.get("initContainers") or ():
        for name, value in _amounts(container.get("resources", {}).get("requests") or {}).items():
            running[name] = max(running.get(name, 0.0), value)
    return running


def _amounts(quantities: Mapping[str, Any]) -> dict[str, float]:
    """Return cores, memory and devices as numbers."""
    return {name: amount(str(value)) for name, value in quantities.items() if name in ("cpu", "memory") or "/" in name}


def _format(pods: Sequence[_Pod]) -> str:
    largest = max(pods, key=lambda pod: pod.amounts["cpu"])
    gpus = [f"{value:g} {name}" for name, value in largest.amounts.items() if name not in ("cpu", "memory") and value]
    return ", ".join([f"{largest.amounts['cpu']:g} cores", f"{largest.amounts['memory'] / 2**30:.3g}Gi", *gpus])


def is_ready(node: Mapping[str, Any]) -> bool:
    """True if a node is up and takes pods."""
    conditions = node.get("status", {}).get("conditions", [])
    up = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return up and not node.get("spec", {}).get("unschedulable")

"""Rules over a RayJob's manifest: what KubeRay refuses or misreads although its schema allows it.

A manifest that breaks one is found out here, in milliseconds, and not by an operator minutes after GPUs were asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from components.cluster.names import QUANTITY

_MAX_NAME_LENGTH = 47
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
_MIN_TOKEN_VERSION = (2, 52)
_RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")


def violations(manifest: Mapping[str, Any]) -> list[str]:
    """Every rule that a RayJob's manifest breaks, each as one line; none for a good one."""
    return [*_name(manifest), *_job(manifest["spec"]), *_cluster(manifest["spec"])]


def _name(manifest: Mapping[str, Any]) -> Iterator[str]:
    name = manifest["metadata"].get("name", "")
    if len(name) > _MAX_NAME_LENGTH:
        yield f"metadata.name {name!r} has {len(name)} characters; KubeRay takes at most {_MAX_NAME_LENGTH}"
    if not _DNS_1035.fullmatch(name):
        yield f"metadata.name {name!r} must begin with a letter and hold lower-case letters, digits and dashes only"


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in _MODES:
        yield f"submissionMode {mode!r} is none of {', '.join(_MODES)}"
    if not spec.get("entrypoint") and mode != "InteractiveMode":
        yield "entrypoint is empty"
    shuts_down = bool(spec.get("shutdownAfterJobFinishes"))
    if "ttlSecondsAfterFinished" in spec and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and "clusterSelector" in spec:
        yield "suspend can't be used with clusterSelector"
    if spec.get("deletionStrategy", {}).get("deletionRules") and shuts_down:
        yield "deletionStrategy.deletionRules and shutdownAfterJobFinishes exclude each other"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if name in spec and spec[name] <= 0:
            yield f"{name} must be positive"
    if spec.get("backoffLimit", 0) < 0 or spec.get("submitterConfig", {}).get("backoffLimit", 0) < 0:
        yield "a backoffLimit is negative"
    if "rayClusterSpec" not in spec and "clusterSelector" not in spec:
        yield "one of rayClusterSpec and clusterSelector is needed"
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if name in spec:
                yield f"SidecarMode can't be used with {name}"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode can't be used with a backoffLimit"


def _cluster(spec: Mapping[str, Any]) -> Iterator[str]:
    cluster = spec.get("rayClusterSpec")
    if cluster is None:
        return
    scales = bool(cluster.get("enableInTreeAutoscaling"))
    head = cluster["headGroupSpec"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield 'the head lacks rayStartParams num-cpus: "0", so training workers would land on it'
    if spec.get("submissionMode") == "SidecarMode" and head["template"]["spec"].get("restartPolicy", "Never") != "Never":
        yield "SidecarMode needs the head's restartPolicy Never"
    if cluster.get("authOptions", {}).get("mode") == "token":
        yield from _token_version(cluster.get("rayVersion", ""))
        if cluster["authOptions"].get("enableK8sTokenAuth"):
            yield "enableK8sTokenAuth is not supported for a RayJob"
    groups = [("head", head), *((f"worker group {group.get('groupName')!r}", group) for group in cluster.get("workerGroupSpecs", ()))]
    for label, group in groups:
        yield from _group(label, group, scales=scales)
    for label, group in groups[1:]:
        smallest, wanted, largest = (group.get(name, 0) for name in ("minReplicas", "replicas", "maxReplicas"))
        if not smallest <= wanted <= largest:
            yield f"{label}: minReplicas <= replicas <= maxReplicas does not hold ({smallest}, {wanted}, {largest})"


def _token_version(version: str) -> Iterator[str]:
    match = re.match(r"(\d+)\.(\d+)\.", version)
    if match is None:
        yield "token authentication needs rayVersion to be set"
    elif (int(match[1]), int(match[2])) < _MIN_TOKEN_VERSION:
        yield f"token authentication needs Ray 2.52 or later, rayVersion is {version}"


def _group(label: str, group: Mapping[str, Any], *, scales: bool) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    for name, value in params.items():
        if not isinstance(value, str):
            yield f"{label}: rayStartParams {name} must be a string, is {value!r}"
    if group.get("resources") and any(name in params for name in _RESOURCE_PARAMS):
        yield f"{label}: resources are given in rayStartParams and in the group as well"
    pod = group["template"]["spec"]
    grace, drain = pod.get("terminationGracePeriodSeconds", 30), 30
    for container in pod["containers"]:
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        if requests != limits or not {"cpu", "memory"} <= set(limits):
            yield f"{label}: container {container['name']!r} must have requests equal to limits, of cpu and memory at least"
        for name, amount in limits.items():
            if not QUANTITY.fullmatch(str(amount)):
                yield f"{label}: {name} {amount!r} is no quantity ('32Gi', not '32GB')"
        for variable in container.get("env", ()):
            if "value" in variable and not isinstance(variable["value"], str):
                yield f"{label}: environment {variable['name']} must be a string, is {variable['value']!r}"
            if variable["name"] == "RAY_enable_autoscaler_v2" and not scales:
                yield f"{label}: RAY_enable_autoscaler_v2 is set while in-tree autoscaling is off"
            if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S":
                drain = int(variable.get("value", drain))
    if grace <= drain:
        yield f"{label}: terminationGracePeriodSeconds ({grace}) must exceed the time Ray drains ({drain})"

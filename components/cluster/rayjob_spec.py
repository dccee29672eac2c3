"""What a RayJob of ours is, as typed values, and the names by which it and what it needs are known on the cluster.

One run has one name, so the API server itself refuses a second job for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
MAX_NAME_LENGTH = 47
"""KubeRay derives longer names from a RayJob's, of services among others, and refuses what would not fit."""

RUN_LABEL = "iddpm/run"
"""On the RayJob and all its pods: the job's name, and so the run's."""
MANAGED_BY = "app.kubernetes.io/managed-by=iddpm"
"""Selects all RayJobs of ours, and their pods."""
OWNER_LABEL = "iddpm/owner"
"""On the RayJob: uid of the Workflow that started it, which alone may end it."""
RUN_KEY_ANNOTATION = "iddpm/run-key"
RUN_URI_ANNOTATION = "iddpm/run-uri"

S3_SECRET = "iddpm-s3"
"""Secret with the S3 credentials; see k8s/."""
SERVICES_CONFIG_MAP = "iddpm-services"
"""ConfigMap with the addresses of S3 and MLflow; see k8s/."""
MLFLOW_SECRET = "iddpm-mlflow"
"""Secret with MLflow's user and password, where MLflow asks for them; it need not exist."""
RAY_SECRET = "iddpm-ray"
"""Secret with the token of a Ray cluster that stands, where it asks for one; it need not exist."""

QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?")
"""An amount as pods ask for it."""
GPU_RESOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?")
"""A name under which a cluster counts GPUs."""
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_TOLERATION = {"key", "operator", "value", "effect", "tolerationSeconds"}
_OPERATORS = ("", "Equal", "Exists", "Lt", "Gt")
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
_MOST_SECONDS = 2**31 - 1
"""KubeRay keeps a deadline in 32 bits."""


class RayJobSpecError(ValueError):
    """What was asked of the cluster cannot be; the message names the value and the remedy."""


def require_node_selector(selector: Mapping[str, Any], *, option: str = "node_selector") -> None:
    """Refuses what is no selector of nodes.

    Args:
        selector: Labels.
        option: Where the user said it, for the error.

    Raises:
        RayJobSpecError: A label's value is not text.
    """
    for key, value in selector.items():
        if not isinstance(value, str):
            raise RayJobSpecError(f'{option}: the label {key} is text, so {json.dumps(value)} reads "{json.dumps(value)}" in quotes')


def require_tolerations(tolerations: Sequence[Any], *, option: str = "tolerations") -> None:
    """Refuses what is no list of a pod's tolerations.

    Args:
        tolerations: One each.
        option: Where the user said it, for the error.

    Raises:
        RayJobSpecError: One is none.
    """
    for one in tolerations:
        if not _is_toleration(one):
            example = '[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]'
            raise RayJobSpecError(f"{option}: {one!r} is no toleration of a pod's; the list reads like {example}")


def _is_toleration(one: Any) -> bool:
    return (
        isinstance(one, Mapping)
        and one.keys() <= _TOLERATION
        and one.get("operator", "") in _OPERATORS
        and one.get("effect", "") in _EFFECTS
        and (bool(one.get("key")) or one.get("operator") == "Exists")
    )


def _require_quantity(name: str, value: str) -> None:
    if not QUANTITY.fullmatch(value):
        raise RayJobSpecError(f"{name} {value!r} is not a quantity that Kubernetes knows, like '4', '500m' or '16Gi'")


@dataclass(frozen=True, kw_only=True, slots=True)
class PodShape:
    """What one pod asks for, request and limit alike, and where it may run.

    Attributes:
        cpu: Cores, as Kubernetes says them ("4", "1500m").
        memory: Bytes, as Kubernetes says them ("16Gi").
        num_gpus: GPUs of the pod.
        gpu_resource: The name under which the cluster counts them.
        node_selector: Labels that the node must have.
        tolerations: Taints that the pod bears, as in a pod's specification.
    """

    cpu: str
    memory: str
    num_gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for name in ("cpu", "memory"):
            _require_quantity(name, getattr(self, name))
        if self.num_gpus < 0:
            raise RayJobSpecError(f"num_gpus must be 0 or more, got {self.num_gpus}")
        if not GPU_RESOURCE.fullmatch(self.gpu_resource):
            raise RayJobSpecError(f"gpu_resource {self.gpu_resource!r} is no name of GPUs; it reads like nvidia.com/gpu")
        require_node_selector(self.node_selector)
        require_tolerations(self.tolerations)

    @property
    def num_cores(self) -> float:
        """Cores as a number."""
        return float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)

    def resources(self) -> dict[str, Any]:
        """Requests and limits of a container; equal, as Ray counts the limits and the scheduler the requests."""
        amounts = {"cpu": self.cpu, "memory": self.memory}
        if self.num_gpus:
            amounts[self.gpu_resource] = str(self.num_gpus)
        return {"requests": dict(amounts), "limits": dict(amounts)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The object that a RayJob goes away with: the Workflow of the pipeline's run.

    Attributes:
        api_version: Of the owner, like "argoproj.io/v1alpha1".
        kind: Of the owner, like "Workflow".
        name: Of the owner.
        uid: Of the owner.
    """

    api_version: str
    kind: str
    name: str
    uid: str

    def reference(self) -> dict[str, Any]:
        """The entry of `metadata.ownerReferences`. Not the controller: KubeRay and Argo each mind their own."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "name": self.name,
            "uid": self.uid,
            "controller": False,
            "blockOwnerDeletion": False,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RayJob:
    """One run on a Ray cluster of its own.

    Attributes:
        run_key: The run's key; gives the job its name.
        run_uri: The run's directory.
        entrypoint: The driver's command, word by word; it runs on the head.
        namespace: Where; that of the owner.
        image: What all pods run. Must hold the driver's Ray and Python.
        ray_version: Ray's version in the image, "2.60.0".
        num_worker_pods: Pods that train.
        worker: Shape of each.
        head: Shape of the head, which drives and holds no training worker.
        queue_name: Kueue's local queue; the job then starts when all its pods fit at once. Empty asks no queue.
        active_deadline_seconds: KubeRay ends the job this long after it began.
        pre_running_deadline_seconds: KubeRay gives up a job whose pods did not come up in this time.
        ttl_seconds: How long a finished job's pods, with their GPUs, stay for the last lines of their logs.
        service_account: Of the pods; it needs no permission, and its token is not mounted.
        image_pull_policy: Of all containers.
        image_pull_secrets: Names of Secrets for the image's registry.
        scratch_size: Limit of /tmp in each pod, which holds Ray's files and the staged data set.
        env: More environment of the pods; nothing secret.
        head_env: More environment of the head alone.
        owner: What the job goes away with; None ties it to nothing.
    """

    run_key: str
    run_uri: str
    entrypoint: Sequence[str]
    namespace: str
    image: str
    ray_version: str
    worker: PodShape
    num_worker_pods: int = 1
    head: PodShape = PodShape(cpu="2", memory="8Gi")
    queue_name: str = ""
    active_deadline_seconds: int = 48 * 3600
    pre_running_deadline_seconds: int = 3600
    ttl_seconds: int = 60
    service_account: str = "iddpm-ray"
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: Sequence[str] = ()
    scratch_size: str = "50Gi"
    env: Mapping[str, str] = field(default_factory=dict)
    head_env: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None

    def __post_init__(self) -> None:
        if self.num_worker_pods < 1:
            raise RayJobSpecError(f"num_worker_pods must be at least 1, got {self.num_worker_pods}")
        for name in ("active_deadline_seconds", "pre_running_deadline_seconds"):
            if not 1 <= getattr(self, name) <= _MOST_SECONDS:
                raise RayJobSpecError(f"{name} must be 1 to {_MOST_SECONDS}, got {getattr(self, name)}")
        _require_quantity("scratch_size", self.scratch_size)
        if self.image_pull_policy not in _PULL_POLICIES:
            raise RayJobSpecError(f"image_pull_policy {self.image_pull_policy!r} is none of {', '.join(_PULL_POLICIES)}")
        named = {"service_account": [self.service_account], "image_pull_secrets": self.image_pull_secrets}
        if self.queue_name:
            named["queue_name"] = [self.queue_name]
        for option, names in named.items():
            for name in names:
                if not isinstance(name, str) or not _OBJECT_NAME.fullmatch(name):
                    raise RayJobSpecError(
                        f"{option}: {name!r} is no name of an object in Kubernetes: lower-case letters, digits and dashes"
                    )

    @property
    def name(self) -> str:
        """The RayJob's name."""
        return rayjob_name(self.run_key)


def rayjob_name(run_key: str) -> str:
    """The one name of a run's RayJob: a DNS-1035 label of at most 47 characters.

    The legible part is the key's beginning; the digits are of the whole key, so that keys that begin alike differ.
    """
    legible = re.sub(r"[^a-z0-9]+", "-", run_key.lower())[:27].strip("-")
    name = "-".join(part for part in ("iddpm", legible, hashlib.sha256(run_key.encode()).hexdigest()[:10]) if part)
    return name

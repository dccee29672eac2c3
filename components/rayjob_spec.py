"""What a RayJob of ours is, as typed values, and its rendering to the manifest that KubeRay reads.

One run has one name, so the API server itself refuses a second job for it. Nothing in a manifest is secret: pods take
credentials from a Secret that is named, not copied.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
MAX_NAME_LENGTH = 47
"""KubeRay derives longer names from a RayJob's, of services among others, and refuses what would not fit."""

RUN_LABEL = "iddpm/run"
"""On the RayJob and all its pods: the job's name, and so the run's."""
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

DRAIN_SECONDS = 100
GRACE_SECONDS = 120
"""Kubernetes waits this long before it kills a pod; longer than Ray drains, so that the last checkpoint gets out."""

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?")


class RayJobSpecError(ValueError):
    """What was asked of the cluster cannot be; the message names the value and the remedy."""


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
            value = getattr(self, name)
            if not _QUANTITY.fullmatch(value):
                raise RayJobSpecError(f"{name} {value!r} is not a quantity that Kubernetes knows, like '4', '500m' or '16Gi'")
        if self.num_gpus < 0:
            raise RayJobSpecError(f"num_gpus must be 0 or more, got {self.num_gpus}")

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
            if getattr(self, name) < 1:
                raise RayJobSpecError(f"{name} must be at least 1, got {getattr(self, name)}")

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


def render(job: RayJob) -> dict[str, Any]:
    """The manifest of a job; the same job gives the same manifest."""
    labels = _labels(job)
    owner_labels = {OWNER_LABEL: job.owner.uid} if job.owner else {}
    queue_labels = {"kueue.x-k8s.io/queue-name": job.queue_name} if job.queue_name else {}
    metadata: dict[str, Any] = {
        "name": job.name,
        "namespace": job.namespace,
        "labels": {**labels, **owner_labels, **queue_labels},
        "annotations": {RUN_KEY_ANNOTATION: job.run_key, RUN_URI_ANNOTATION: job.run_uri},
    }
    if job.owner:
        metadata["ownerReferences"] = [job.owner.reference()]
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(job.entrypoint),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.ttl_seconds,
        "activeDeadlineSeconds": job.active_deadline_seconds,
        "preRunningDeadlineSeconds": job.pre_running_deadline_seconds,
        # The launcher is what tries again, and only once the pods of the last try are gone: KubeRay's own retries let
        # two tries overlap, and its submitter's would start a finished driver anew.
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": 0},
        "submitterPodTemplate": _submitter(job),
        "rayClusterSpec": _cluster(job),
    }
    if job.queue_name:
        spec["suspend"] = True  # Kueue lifts it when there is room for all pods at once
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _labels(job: RayJob) -> dict[str, str]:
    return {"app.kubernetes.io/name": "iddpm", "app.kubernetes.io/managed-by": "iddpm", RUN_LABEL: job.name}


def _cluster(job: RayJob) -> dict[str, Any]:
    worker_env = {"NVIDIA_VISIBLE_DEVICES": "void"} if not job.worker.num_gpus else {}
    return {
        "rayVersion": job.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # Strings all, as KubeRay puts them on a command line. No core to Ray, so that no worker lands on the head.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(job, "ray-head", job.head, {"NVIDIA_VISIBLE_DEVICES": "void", **job.head_env}),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": job.num_worker_pods,
                "minReplicas": job.num_worker_pods,
                "maxReplicas": job.num_worker_pods,
                "rayStartParams": {},
                "template": _pod(job, "ray-worker", job.worker, worker_env),
            }
        ],
    }


def _pod(job: RayJob, container: str, shape: PodShape, env: Mapping[str, str]) -> dict[str, Any]:
    values = {
        "HOME": "/tmp",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Nodes with GPUs may have to be started first, and a large image pulled.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_SECONDS),
        **job.env,
        **env,
    }
    spec: dict[str, Any] = {
        **_pod_frame(job, shape),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [
            {
                "name": container,
                "image": job.image,
                "imagePullPolicy": job.image_pull_policy,
                "resources": shape.resources(),
                "securityContext": _container_security(),
                "envFrom": [
                    {"secretRef": {"name": S3_SECRET}},
                    {"configMapRef": {"name": SERVICES_CONFIG_MAP}},
                    {"secretRef": {"name": MLFLOW_SECRET, "optional": True}},
                ],
                "env": [{"name": name, "value": value} for name, value in sorted(values.items())],
                "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": job.scratch_size}}],
    }
    return {"metadata": {"labels": _labels(job)}, "spec": spec}


def _submitter(job: RayJob) -> dict[str, Any]:
    """The pod that hands the driver to Ray and follows its log; KubeRay fills in its command."""
    shape = PodShape(cpu="500m", memory="512Mi", node_selector=job.head.node_selector, tolerations=job.head.tolerations)
    spec = {
        **_pod_frame(job, shape),
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "ray-job-submitter",
                "image": job.image,
                "imagePullPolicy": job.image_pull_policy,
                "resources": shape.resources(),
                "securityContext": _container_security(),
                "env": [{"name": "HOME", "value": "/tmp"}],
                "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    return {"metadata": {"labels": _labels(job)}, "spec": spec}


def _pod_frame(job: RayJob, shape: PodShape) -> dict[str, Any]:
    frame: dict[str, Any] = {
        "serviceAccountName": job.service_account,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    if job.image_pull_secrets:
        frame["imagePullSecrets"] = [{"name": name} for name in job.image_pull_secrets]
    if shape.node_selector:
        frame["nodeSelector"] = dict(shape.node_selector)
    if shape.tolerations:
        frame["tolerations"] = [dict(toleration) for toleration in shape.tolerations]
    return frame


def _container_security() -> dict[str, Any]:
    """What Pod Security's "restricted" asks, and a root that can't be written."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }

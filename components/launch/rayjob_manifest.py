"""A RayJob as the manifest that KubeRay reads.

Nothing in it is secret: pods take credentials from Secrets that are named, not copied.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from components.cluster.rayjob_spec import (
    GROUP,
    MLFLOW_SECRET,
    OWNER_LABEL,
    RUN_KEY_ANNOTATION,
    RUN_LABEL,
    RUN_URI_ANNOTATION,
    S3_SECRET,
    SERVICES_CONFIG_MAP,
    VERSION,
    PodShape,
    RayJob,
)

DRAIN_SECONDS = 100
GRACE_SECONDS = 120
"""Kubernetes waits this long before it kills a pod; longer than Ray drains, so that the last checkpoint gets out."""


def render(job: RayJob) -> dict[str, Any]:
    """The manifest of a job; the same job gives the same manifest."""
    labels = _labels(job)
    owner_labels = {OWNER_LABEL: job.owner.uid} if job.owner else {}
    queue_labels = {"kueue.x-k8s.io/queue-name": job.queue_name} if job.queue_name else {}
    metadata: dict[str, Any] = {
        "name": job.name,
        "namespace": job.namespace,
        "labels": {"app.kubernetes.io/name": "iddpm", **labels, **owner_labels, **queue_labels},
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
    """Of the job and its pods. Pods keep the app.kubernetes.io/name that KubeRay gives them: the job's Service selects by it."""
    return {"app.kubernetes.io/managed-by": "iddpm", RUN_LABEL: job.name}


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

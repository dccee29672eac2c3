"""A RayJob as the manifest that KubeRay reads.

One run has one name, so the API server itself refuses a second job for it. Nothing in a manifest is secret: pods take credentials
from Secrets that are named, not copied.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from components.cluster.names import (
    GROUP,
    LAUNCH_LABEL,
    MLFLOW_SECRET,
    OWNER_LABEL,
    RUN_KEY_ANNOTATION,
    RUN_LABEL,
    RUN_URI_ANNOTATION,
    S3_SECRET,
    SERVICES_CONFIG_MAP,
    VERSION,
)
from components.cluster.workflows import Owner, owner_of
from components.launch.call import Call
from components.launch.resources import StageResources
from training.config.errors import UserError

DRAIN_SECONDS = 100
GRACE_SECONDS = 120
"""Kubernetes waits this long before it kills a pod: longer than Ray drains, so that the last checkpoint is written."""
HEAD_DRAIN_SECONDS, HEAD_GRACE_SECONDS = 10, 30
"""Shorter for the head, which trains nothing: a lost run starts again only when its head is gone."""
TTL_SECONDS = 60
"""A finished job's pods stay this long where no launcher is there to delete it."""
SUBMITTER_RETRIES = 2
POD_ANNOTATIONS = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
    "sidecar.istio.io/inject": "false",
}
"""Autoscalers let a training end before they remove its node. Ray's ports don't work through Istio's sidecar."""
_METRICS_ANNOTATIONS = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/metrics"}
"""KubeRay lets every pod of Ray export its metrics at this port."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayJob:
    """One call on a Ray cluster of its own.

    Attributes:
        run_key: Key of the run, which gives the job its name.
        entrypoint: The driver's command, word by word; it runs on the head.
        namespace: Namespace of the job, and of its owner.
        image: Image of all pods. It has the driver's Ray and Python.
        owner: The Workflow that owns the job, and is deleted with it; None if there is none.
        launch: Id of the launcher process that creates the job.
    """

    run_key: str
    run_uri: str
    entrypoint: tuple[str, ...]
    namespace: str
    resources: StageResources
    image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    owner: Owner | None = None
    launch: str = ""

    @property
    def name(self) -> str:
        """The RayJob's name."""
        return rayjob_name(self.run_key)

    @property
    def num_worker_pods(self) -> int:
        """Number of worker pods."""
        return self.resources.num_workers // self.resources.workers_per_pod


def rayjob_name(run_key: str) -> str:
    """Return the one name of a run's RayJob: a DNS-1035 label of at most 47 characters.

    KubeRay derives longer names from it, and refuses a longer one. The name has the beginning of the key, and a hash of the whole
    key, so that keys with the same beginning differ.
    """
    legible = re.sub(r"[^a-z0-9]+", "-", run_key.lower())[:27].strip("-")
    return "-".join(part for part in ("iddpm", legible, hashlib.sha256(run_key.encode()).hexdigest()[:10]) if part)


def rayjob_for(call: Call, resources: StageResources, *, launcher: Mapping[str, Any] | None, namespace: str, launch: str = "") -> RayJob:
    """Make the RayJob of a call.

    Image, pull policy and pull Secrets are those of the step's own pod, unless the resources name others.

    Args:
        call: What the driver does; its key gives the job its name.
        launcher: The launcher's own pod, where it runs in one.

    Raises:
        UserError: No image is known.
    """
    options = resources.rayjob
    pod: Mapping[str, Any] = (launcher or {}).get("spec", {})
    container: Mapping[str, Any] = next((each for each in pod.get("containers") or () if each["name"] == "main"), {})
    image = options.image or str(container.get("image", ""))
    if not image:
        raise UserError("no image is known for the Ray cluster; outside a pod, name one as rayjob.image")
    return RayJob(
        run_key=call.key,
        run_uri=call.directory_uri,
        entrypoint=call.driver,
        namespace=namespace,
        resources=resources,
        image=image,
        image_pull_policy=options.image_pull_policy or container.get("imagePullPolicy") or "IfNotPresent",
        image_pull_secrets=options.image_pull_secrets or tuple(secret["name"] for secret in pod.get("imagePullSecrets") or ()),
        owner=owner_of(launcher),
        launch=launch,
    )


def render(job: RayJob) -> dict[str, Any]:
    """Return the manifest of a job; the same job gives the same manifest."""
    options = job.resources.rayjob
    labels = {**_labels(job), "app.kubernetes.io/name": "iddpm"}
    for label, value in (
        (OWNER_LABEL, job.owner.uid if job.owner else ""),
        (LAUNCH_LABEL, job.launch),
        ("kueue.x-k8s.io/queue-name", job.resources.queue),
        ("kueue.x-k8s.io/priority-class", options.queue_priority_class),
    ):
        if value:
            labels[label] = value
    metadata: dict[str, Any] = {
        "name": job.name,
        "namespace": job.namespace,
        "labels": labels,
        "annotations": {**options.annotations, RUN_KEY_ANNOTATION: job.run_key, RUN_URI_ANNOTATION: job.run_uri},
    }
    if job.owner:
        metadata["ownerReferences"] = [job.owner.reference()]
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(job.entrypoint),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_SECONDS,
        "activeDeadlineSeconds": options.active_deadline_seconds,
        "preRunningDeadlineSeconds": options.pre_running_deadline_seconds,
        # Only the launcher starts a new cluster, once the pods of the last one are gone: with KubeRay's own retries two may overlap.
        # A submitter that comes back follows the driver that runs; where the head was replaced, it starts the driver again.
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": SUBMITTER_RETRIES},
        "submitterPodTemplate": _submitter(job),
        "rayClusterSpec": _cluster(job),
    }
    if job.resources.queue:
        spec["suspend"] = True  # Kueue lifts it when there is room for all pods at once
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _labels(job: RayJob) -> dict[str, str]:
    """Return labels of the job and its pods. Not app.kubernetes.io/name: pods keep KubeRay's, by which the job's Service selects them."""
    return {**job.resources.rayjob.labels, "app.kubernetes.io/managed-by": "iddpm", RUN_LABEL: job.name}


def _cluster(job: RayJob) -> dict[str, Any]:
    options = job.resources.rayjob
    num_gpus = job.resources.workers_per_pod * job.resources.num_gpus_per_worker
    gpus = {job.resources.gpu_type: str(num_gpus)} if num_gpus else {}
    no_gpu = {"NVIDIA_VISIBLE_DEVICES": "void"}
    worker = _ray_pod(job, "ray-worker", {"cpu": job.resources.cpu, "memory": job.resources.memory, **gpus}, {} if num_gpus else no_gpu)
    if job.resources.node_selector:
        worker["spec"]["nodeSelector"] = dict(job.resources.node_selector)
    if job.resources.tolerations:
        worker["spec"]["tolerations"] = [dict(each) for each in job.resources.tolerations]
    if options.affinity:
        worker["spec"]["affinity"] = dict(options.affinity)
    if options.runtime_class:
        worker["spec"]["runtimeClassName"] = options.runtime_class
    head = _ray_pod(
        job,
        "ray-head",
        {"cpu": options.head_cpu, "memory": options.head_memory},
        {**no_gpu, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(HEAD_DRAIN_SECONDS)},
    )
    head["spec"]["terminationGracePeriodSeconds"] = HEAD_GRACE_SECONDS
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # All strings, as KubeRay puts them on a command line. Ray gets none of the head's cores, so no worker runs there.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": job.num_worker_pods,
                "minReplicas": job.num_worker_pods,
                "maxReplicas": job.num_worker_pods,
                "rayStartParams": {},
                "template": worker,
            }
        ],
    }


def _ray_pod(job: RayJob, container: str, amounts: Mapping[str, str], env: Mapping[str, str]) -> dict[str, Any]:
    values = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_task_oom_retries": "3",  # Ray's default repeats without end a task that was killed for its node's memory
        # A node with GPUs may have to start first, and pull a large image.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_SECONDS),
        **env,
        **job.resources.rayjob.env,
    }
    template = _pod(job, container, amounts, values, scratch_size=job.resources.rayjob.scratch_size)
    template["metadata"]["annotations"] = {**_METRICS_ANNOTATIONS, **template["metadata"]["annotations"]}
    template["spec"]["volumes"] += [dict(each) for each in job.resources.rayjob.volumes]
    template["spec"]["containers"][0]["volumeMounts"] += [dict(each) for each in job.resources.rayjob.volume_mounts]
    template["spec"]["terminationGracePeriodSeconds"] = GRACE_SECONDS
    template["spec"]["containers"][0]["envFrom"] = [
        {"secretRef": {"name": S3_SECRET, "optional": True}},
        {"configMapRef": {"name": SERVICES_CONFIG_MAP}},
        {"secretRef": {"name": MLFLOW_SECRET, "optional": True}},
    ]
    return template


def _submitter(job: RayJob) -> dict[str, Any]:
    """Return the pod that hands the driver to Ray and follows its log; KubeRay fills in its command."""
    template = _pod(job, "ray-job-submitter", {"cpu": "500m", "memory": "512Mi"}, {}, scratch_size="1Gi")
    template["spec"]["restartPolicy"] = "Never"
    return template


def _pod(job: RayJob, container: str, amounts: Mapping[str, str], env: Mapping[str, str], *, scratch_size: str) -> dict[str, Any]:
    """Return a pod that Pod Security's "restricted" level accepts, with a root that can't be written.

    Requests are equal to limits, as Ray counts the limits and the scheduler the requests.
    """
    spec: dict[str, Any] = {
        "serviceAccountName": job.resources.rayjob.service_account,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": container,
                "image": job.image,
                "imagePullPolicy": job.image_pull_policy,
                "resources": {"requests": dict(amounts), "limits": dict(amounts)},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "runAsNonRoot": True,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "env": [{"name": name, "value": value} for name, value in sorted({"HOME": "/tmp", **env}.items())],
                "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": scratch_size}}],
    }
    if job.resources.rayjob.priority_class:
        spec["priorityClassName"] = job.resources.rayjob.priority_class
    if job.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in job.image_pull_secrets]
    return {"metadata": {"labels": _labels(job), "annotations": {**POD_ANNOTATIONS, **job.resources.rayjob.annotations}}, "spec": spec}

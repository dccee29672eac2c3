"""What a user may say about the Ray cluster of a step, and the RayJob that it makes with what the step's own pod is like."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

from components.cluster.rayjob_spec import Owner, PodShape, RayJob, RayJobSpecError
from components.container.image import ImageError, image_from
from components.launch.call import Call
from training.config.experiment import Resources

_HANDED_ON = ("MLFLOW_RUN_ID",)
"""Of the launcher's environment, for the driver: the MLflow run that KFP made for this step, which becomes the parent."""
_KUBERNETES_OWN = "node.kubernetes.io/"
"""Begins the names of the taints that Kubernetes lets every pod bear for a while."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayJobOptions:
    """What a user may say about the Ray cluster of a step.

    Attributes:
        worker_cpu: Cores of each worker pod; one more than its training processes at least, for the scores beside them.
        worker_memory: Memory of each worker pod.
        workers_per_pod: Working processes in one pod; with GPUs, as many as a node has let them talk fastest.
        head_cpu: Cores of the head.
        head_memory: Memory of the head.
        gpu_resource: The name under which the cluster counts GPUs.
        node_selector: Labels of the nodes that workers run on; empty takes those of the step's own pod.
        tolerations: Taints of nodes that workers bear; empty takes those of the step's own pod.
        queue_name: Kueue's local queue; empty asks none.
        active_deadline_seconds: After this the job is ended; the same command resumes it.
        pre_running_deadline_seconds: How long its pods may take to come up.
        service_account: Of the cluster's pods.
        image: What they run; empty takes the step's own.
        image_pull_policy: Of all containers; empty takes the step's own.
        image_pull_secrets: Names of Secrets for the image's registry; empty takes the step's own.
        scratch_size: Limit of /tmp in each pod.
    """

    worker_cpu: str = "4"
    worker_memory: str = "16Gi"
    workers_per_pod: int = 1
    head_cpu: str = "2"
    head_memory: str = "8Gi"
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    queue_name: str = ""
    active_deadline_seconds: int = 48 * 3600
    pre_running_deadline_seconds: int = 3600
    service_account: str = "iddpm-ray"
    image: str = ""
    image_pull_policy: str = ""
    image_pull_secrets: Sequence[str] = ()
    scratch_size: str = "50Gi"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RayJobOptions:
        """The options of these names.

        Raises:
            RayJobSpecError: A name is unknown, or a value is not of its kind.
        """
        known = {item.name: item for item in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise RayJobSpecError(f"unknown RayJob option(s) {', '.join(unknown)}; there are {', '.join(known)}")
        return cls(**{name: _of_kind(name, known[name].type, value) for name, value in values.items()})


def _of_kind(name: str, kind: Any, value: Any) -> Any:
    """A value as the form's JSON gives it: whole numbers may arrive as 8.0, and a number is meant where "8" is text."""
    if kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind == "str" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(int(value) if float(value).is_integer() else value)
    expected = {"int": int, "str": str, "Mapping[str, str]": Mapping}.get(str(kind), list)
    if not isinstance(value, expected) or isinstance(value, bool):
        words = {int: "a whole number", str: "text", Mapping: "an object", list: "a list"}[expected]
        raise RayJobSpecError(f"RayJob option {name} must be {words}, got {value!r}")
    return value


def rayjob_for(call: Call, resources: Resources, options: RayJobOptions, *, launcher: Mapping[str, Any] | None, namespace: str) -> RayJob:
    """The RayJob of a step.

    What KFP put on the step's own pod - image, node selector, tolerations, Secrets and policy for pulling - holds for the
    cluster's pods as well, as far as the options say nothing else.

    Args:
        call: What the driver is to do; its key gives the job its name.
        resources: Workers and their GPUs.
        options: The cluster.
        launcher: The launcher's own pod, where it runs in one.
        namespace: Where.

    Raises:
        RayJobSpecError: The options do not go together.
    """
    if options.workers_per_pod < 1 or resources.num_workers % options.workers_per_pod:
        raise RayJobSpecError(f"workers_per_pod ({options.workers_per_pod}) must divide the {resources.num_workers} workers")
    pod: Mapping[str, Any] = (launcher or {}).get("spec", {})
    container = _main_container(pod)
    worker = PodShape(
        cpu=options.worker_cpu,
        memory=options.worker_memory,
        num_gpus=options.workers_per_pod * resources.num_gpus_per_worker,
        gpu_resource=options.gpu_resource,
        node_selector=options.node_selector or pod.get("nodeSelector") or {},
        tolerations=options.tolerations or _tolerations(pod),
    )
    if math.floor(worker.num_cores) < options.workers_per_pod + 1:
        raise RayJobSpecError(
            f"worker_cpu is {options.worker_cpu!r}; a pod needs a whole core for each of its {options.workers_per_pod} working "
            "process(es) and one more, for what goes on beside them: scores of checkpoints, and the step itself"
        )
    image = str(container.get("image", ""))
    if options.image:
        try:
            image = image_from(options.image, variable="image")
        except ImageError as error:
            raise RayJobSpecError(str(error)) from None
    if not image:
        raise RayJobSpecError("no image is known for the Ray cluster; outside a pod, name one with the option image")
    return RayJob(
        run_key=call.key,
        run_uri=call.directory_uri,
        entrypoint=call.driver,
        namespace=namespace,
        image=image,
        ray_version=version("ray"),
        worker=worker,
        num_worker_pods=resources.num_workers // options.workers_per_pod,
        head=PodShape(cpu=options.head_cpu, memory=options.head_memory),
        queue_name=options.queue_name,
        active_deadline_seconds=options.active_deadline_seconds,
        pre_running_deadline_seconds=options.pre_running_deadline_seconds,
        service_account=options.service_account,
        image_pull_policy=options.image_pull_policy or container.get("imagePullPolicy") or "IfNotPresent",
        image_pull_secrets=options.image_pull_secrets or [secret["name"] for secret in pod.get("imagePullSecrets") or ()],
        scratch_size=options.scratch_size,
        head_env={name: os.environ[name] for name in _HANDED_ON if name in os.environ},
        owner=workflow_of(launcher),
    )


def workflow_of(pod: Mapping[str, Any] | None) -> Owner | None:
    """The Workflow that owns a pod: it outlives the pod's retries, and what it owns goes when the pipeline's run goes."""
    for reference in (pod or {}).get("metadata", {}).get("ownerReferences") or ():
        if reference["kind"] == "Workflow":
            return Owner(api_version=reference["apiVersion"], kind="Workflow", name=reference["name"], uid=reference["uid"])
    return None


def _main_container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    containers: Sequence[Mapping[str, Any]] = pod.get("containers") or ()
    return next((container for container in containers if container["name"] == "main"), {})


def _tolerations(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in pod.get("tolerations") or () if not str(one.get("key", "")).startswith(_KUBERNETES_OWN)]

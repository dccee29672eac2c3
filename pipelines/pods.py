"""What a step asks of the cluster: image, processor, memory, GPUs, nodes, retries, time, the services' addresses and credentials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

from components.cluster.rayjob_spec import MLFLOW_SECRET, RAY_SECRET, S3_SECRET, SERVICES_CONFIG_MAP

_DAY = 24 * 3600
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_SERVICE_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
_OWN = "IDDPM_"
"""Prefix of MLflow's variables in a step: KFP's MLflow plugin injects the bare names by value, and Kubernetes refuses a container
that has one name both by value and from a ConfigMap or Secret. `training.tracking.client` exports them inside the step."""
_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_RAY_KEYS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")

DEADLINE_SECONDS = 30 * _DAY
"""A run that waits for GPUs that never come ends after this."""

RUN_CONFIG = dsl.PipelineConfig(
    ttl_seconds_after_success=_DAY, ttl_seconds_after_failure=7 * _DAY, active_deadline_seconds=DEADLINE_SECONDS
)
"""Of every pipeline. A finished run's pods stay for their logs, longer where somebody has to find out what went wrong; what
they made stays in S3 and MLflow."""

SHORT = 3600
"""Seconds after which a step that only reads and writes small files is given up."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """On which nodes the steps run that may hold GPUs. All are values or the pipeline's parameters.

    Attributes:
        gpu_type: The name under which the cluster counts GPUs.
        selector: Labels that a node must have; their RayJob's workers take it over.
        tolerations: Taints that the pod bears, as in a pod's specification; taken over likewise.
    """

    gpu_type: Any
    selector: Any
    tolerations: Any


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What the pods of a stage are like. All but the last are values or the pipeline's parameters.

    Attributes:
        image: What they run.
        cpu: Cores, as Kubernetes says them ("2", "500m"); request and limit alike.
        memory: Bytes, as Kubernetes says them ("4Gi"); request and limit alike.
        gpus: GPUs, as text: KFP 2.17 takes any other parameter for none.
        nodes: Where they run, if they may hold GPUs.
        timeout_seconds: After this Kubernetes ends the pod; None leaves it to the run's deadline.
    """

    image: Any
    cpu: Any
    memory: Any
    gpus: Any = None
    nodes: Nodes | None = None
    timeout_seconds: int | None = None

    def hold(self, task: Any, *, name: str, cached: bool = False, uses_ray: bool = False) -> Any:
        """Puts a task into such a pod.

        Args:
            task: The task.
            name: What people see.
            cached: Whether KFP may reuse the result of the same step with the same arguments and image. Only where those
                say all that the result depends on; and not where a fresh measurement is the point.
            uses_ray: Whether Ray may run in the pod, or the pod may hand its work to a Ray cluster. Ray's object store and
                data-parallel workers need more shared memory than the 64 MiB that a container has; a cluster that
                stands may ask for a token.

        Returns:
            The task.
        """
        task.set_display_name(name)
        task.set_container_image(self.image)
        task.set_cpu_request(self.cpu).set_cpu_limit(self.cpu).set_memory_request(self.memory).set_memory_limit(self.memory)
        task.set_caching_options(cached)
        # Steps are idempotent: what was finished is found in S3, so a second try costs what the first had left to do. Argo counts
        # the maximal duration from the first try's start and then also ends a retry that runs, so it is the run's own deadline.
        task.set_retry(num_retries=4, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration=f"{DEADLINE_SECONDS}s")
        kubernetes.set_image_pull_policy(task, "IfNotPresent")
        _give_services(task)
        if self.gpus is not None and self.nodes is not None:
            task.set_accelerator_type(self.nodes.gpu_type).set_accelerator_limit(self.gpus)
            kubernetes.add_node_selector_json(task, self.nodes.selector)
            kubernetes.add_toleration_json(task, self.nodes.tolerations)
        if uses_ray:
            kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit="2Gi")
            kubernetes.use_secret_as_env(task, RAY_SECRET, {key: key for key in _RAY_KEYS}, optional=True)
        if self.timeout_seconds is not None:
            kubernetes.set_timeout(task, self.timeout_seconds)
        return task


def _give_services(task: Any) -> None:
    """The addresses of S3 and MLflow, and the credentials; only MLflow may do without."""
    kubernetes.use_config_map_as_env(
        task, SERVICES_CONFIG_MAP, {**{key: key for key in _SERVICE_KEYS}, "MLFLOW_TRACKING_URI": f"{_OWN}MLFLOW_TRACKING_URI"}
    )
    kubernetes.use_secret_as_env(task, S3_SECRET, {key: key for key in _S3_KEYS})
    kubernetes.use_secret_as_env(task, MLFLOW_SECRET, {key: f"{_OWN}{key}" for key in _MLFLOW_KEYS}, optional=True)

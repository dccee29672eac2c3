"""The pods of a pipeline's steps: image, size, nodes, retries, time limit, and the services' addresses and credentials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kfp import dsl, kubernetes

from components.cluster.names import MLFLOW_SECRET, RAY_SECRET, S3_SECRET, SERVICES_CONFIG_MAP, WEBHOOK_SECRET
from components.launch.resources import PodSize
from components.steps.webhook import SECRET_KEYS as WEBHOOK_KEYS

_DAY = 24 * 3600
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_S3_TEMPORARY_KEYS = ("AWS_SESSION_TOKEN",)
_SERVICE_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
_IDENTITY_KEYS = ("AWS_ENDPOINT_URL_STS",)
"""Address where a pod with an identity of the platform gets keys. Without it boto3 asks the address of S3, and KFP's launcher Amazon's."""
_PUBLIC_KEYS = ("IDDPM_MLFLOW_PUBLIC_URL", "IDDPM_KFP_PUBLIC_URL")
"""The addresses that people use, for links."""
_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_RAY_KEYS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_OWN = "IDDPM_"
"""Prefix of MLflow's variables in a step: KFP's MLflow plugin injects the bare names by value, and Kubernetes refuses a container
that has one name both by value and from a ConfigMap or Secret. `training.tracking.client` exports them inside the step."""

DEADLINE_SECONDS = 30 * _DAY
"""Time limit of a run; it ends a run that waits for GPUs in vain."""

RUN_CONFIG = dsl.PipelineConfig(
    ttl_seconds_after_success=_DAY, ttl_seconds_after_failure=7 * _DAY, active_deadline_seconds=DEADLINE_SECONDS
)
"""Configuration of every pipeline. A finished run's pods stay for their logs; their logs in S3, and all results, stay longer.

A failed run's pods may stay for a week, but KFP's persistence agent deletes them after a day unless its
TTL_SECONDS_AFTER_WORKFLOW_FINISH is set to more.
"""

SMALL = PodSize("500m", "2Gi", "0", "", {}, [])
"""Size of a step that only reads and writes small files."""

SHORT = 3600
"""Time limit of such a step, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """The pods of some steps.

    Attributes:
        image: Image, or the pipeline's parameter of it.
        size: Size of each: values, or outputs of the settings step. Requests are equal to limits.
        timeout_seconds: After this Kubernetes ends the pod; None leaves it to the run's deadline.
    """

    image: Any
    size: PodSize = SMALL
    timeout_seconds: int | None = None

    def configure(self, task: Any, *, name: str, cached: bool = False, uses_ray: bool = False) -> Any:
        """Put a task into such a pod.

        Args:
            task: The task.
            name: Name of the step in the graph.
            cached: True lets KFP reuse the result of the same step with the same arguments and image. Use it only if these
                determine the whole result.
            uses_ray: True if Ray may run in the pod, or the pod may hand its work to a Ray cluster. Ray's object store and
                data-parallel workers need more shared memory than the 64 MiB that a container has; a standing cluster
                may require a token.

        Returns:
            The task.
        """
        size = self.size
        # For the name in a message, the SDK (2.17) reads the source of all callers in each of the calls below: seconds for a pipeline.
        task._ensure_container_spec_exists = lambda: None
        task.set_display_name(name)
        task.set_container_image(self.image)
        # The SDK (2.17) passes a loop only the channels that its tasks register, and does not register those that size pods.
        task.register_pipeline_channels([value for value in size if isinstance(value, dsl.pipeline_channel.PipelineChannel)])
        task.set_cpu_request(size.cpu).set_cpu_limit(size.cpu).set_memory_request(size.memory).set_memory_limit(size.memory)
        if size.gpu_type:
            task.set_accelerator_type(size.gpu_type).set_accelerator_limit(size.gpus)
            kubernetes.add_node_selector_json(task, size.node_selector)
            kubernetes.add_toleration_json(task, size.tolerations)
        task.set_caching_options(cached)
        # Steps are idempotent: a retry finds in S3 what is finished, and does only the rest. Argo counts the maximal duration
        # from the first try's start, and also ends a retry that still runs, so it is the run's own deadline.
        task.set_retry(num_retries=4, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration=f"{DEADLINE_SECONDS}s")
        kubernetes.set_image_pull_policy(task, "IfNotPresent")
        kubernetes.set_security_context(task, run_as_non_root=True)  # KFP sets the rest of what Pod Security calls "restricted"
        _add_services(task)
        if uses_ray:
            kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit="2Gi")
            kubernetes.use_secret_as_env(task, RAY_SECRET, {key: key for key in _RAY_KEYS}, optional=True)
        if self.timeout_seconds is not None:
            kubernetes.set_timeout(task, self.timeout_seconds)
        return task


def stage_pod(checked: Any, stage: str, *, image: Any) -> Pod:
    """Return the pods of a stage, sized by the settings step. KFP's driver (2.17) reads its outputs in loops too."""
    return Pod(image=image, size=PodSize(*(checked.outputs[f"{stage}_{name}"] for name in PodSize._fields)))


def reference_pod(checked: Any, *, image: Any) -> Pod:
    """Return the pod of the reference step: one of the evaluate stage with at most one GPU, as the step has one worker."""
    pod = stage_pod(checked, "evaluate", image=image)
    return replace(pod, size=pod.size._replace(gpus=checked.outputs["reference_gpus"]))


def _add_services(task: Any) -> None:
    """Add the addresses of S3 and MLflow, and the credentials. Credentials are optional: the platform may give a pod an identity."""
    addresses = {**{key: key for key in _SERVICE_KEYS}, "MLFLOW_TRACKING_URI": f"{_OWN}MLFLOW_TRACKING_URI"}
    kubernetes.use_config_map_as_env(task, SERVICES_CONFIG_MAP, addresses)
    kubernetes.use_config_map_as_env(task, SERVICES_CONFIG_MAP, {key: key for key in (*_IDENTITY_KEYS, *_PUBLIC_KEYS)}, optional=True)
    for keys in (_S3_KEYS, _S3_TEMPORARY_KEYS):
        kubernetes.use_secret_as_env(task, S3_SECRET, {key: key for key in keys}, optional=True)
    kubernetes.use_secret_as_env(task, MLFLOW_SECRET, {key: f"{_OWN}{key}" for key in _MLFLOW_KEYS}, optional=True)


def add_webhook(task: Any) -> None:
    """Add the address and the options of the webhook, separately, because the Secret may lack the options."""
    options = {key: variable for key, variable in WEBHOOK_KEYS.items() if key != "url"}
    for keys in ({"url": WEBHOOK_KEYS["url"]}, options):
        kubernetes.use_secret_as_env(task, WEBHOOK_SECRET, keys, optional=True)

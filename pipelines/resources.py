"""What a step asks of the cluster: processor, memory, retries, caching, the services' addresses and credentials."""

from __future__ import annotations

from typing import Any

from kfp import kubernetes

SECRET_NAME = "iddpm-s3"
"""Secret with the S3 credentials; see k8s/."""
CONFIG_MAP_NAME = "iddpm-services"
"""ConfigMap with the addresses of S3 and MLflow; see k8s/."""

_SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_CONFIG_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI")


def place(task: Any, *, cpu: Any, memory: Any, cached: bool = False, shared_memory: str | None = None) -> Any:
    """Gives a task what every one of ours has.

    Args:
        task: The task.
        cpu: Cores, as Kubernetes says them ("2", "500m") or a pipeline's parameter; request and limit alike.
        memory: Bytes, as Kubernetes says them ("4Gi") or a pipeline's parameter; request and limit alike.
        cached: Whether KFP may reuse the result of the same step with the same arguments. Off where what is to be
            reused stands in S3 and the step itself looks there, or where a fresh measurement is the point.
        shared_memory: Size of /dev/shm, which Ray's object store and data-parallel workers need more of than the
            64 MiB that a container has.

    Returns:
        The task.
    """
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    task.set_caching_options(cached)
    # Steps are idempotent: what was finished is found in S3, so a second try costs what the first had left to do.
    task.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="300s")
    kubernetes.use_secret_as_env(task, secret_name=SECRET_NAME, secret_key_to_env={key: key for key in _SECRET_KEYS})
    kubernetes.use_config_map_as_env(task, config_map_name=CONFIG_MAP_NAME, config_map_key_to_env={key: key for key in _CONFIG_KEYS})
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    if shared_memory is not None:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=shared_memory)
    return task

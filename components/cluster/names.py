"""Names and types that the cluster knows: our labels and Secrets, quantities, node selectors, tolerations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from training.config.errors import UserError

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"

RUN_LABEL = "iddpm/run"
"""Label of a RayJob and all its pods: the job's name, which is the run's."""
MANAGED_BY = "app.kubernetes.io/managed-by=iddpm"
"""Selects all RayJobs of ours, and their pods."""
OWNER_LABEL = "iddpm/owner"
"""Label of a RayJob: uid of the Workflow that started it; only that one may end it. In the metadata of a Ray job: the Workflow's name."""
LAUNCH_LABEL = "iddpm/launch"
"""Label of a RayJob: the launcher process that created it."""
RUN_KEY_ANNOTATION = "iddpm/run-key"
RUN_URI_ANNOTATION = "iddpm/run-uri"

S3_SECRET = "iddpm-s3"
"""Secret with the S3 credentials; it need not exist where the platform gives pods an identity. See k8s/."""
SERVICES_CONFIG_MAP = "iddpm-services"
"""ConfigMap with the addresses of S3 and MLflow; see k8s/."""
MLFLOW_SECRET = "iddpm-mlflow"
"""Secret with MLflow's user and password, if MLflow requires them; it need not exist."""
RAY_SECRET = "iddpm-ray"
"""Secret with the token of a standing Ray cluster, if it requires one; it need not exist."""
WEBHOOK_SECRET = "iddpm-webhook"
"""Secret that says where and how the webhook is told, see `components.steps.webhook`; neither it nor any key but `url` need exist."""

QUANTITY = re.compile(r"(?P<number>\d+\.?\d*|\.\d+)(?P<unit>[numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?", re.ASCII)
"""An amount as pods ask for it, in every form that Kubernetes knows: pods of others have them all."""
CORES = re.compile(r"\d+(\.\d+)?|\d+m", re.ASCII)
"""An amount of processor."""
GPU_RESOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", re.ASCII)
"""A name under which a cluster counts GPUs."""
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_RESERVED_KEYS = ("iddpm/", "ray.io/", "app.kubernetes.io/", "kueue.x-k8s.io/")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_TOLERATION = {"key", "operator", "value", "effect", "tolerationSeconds"}
_OPERATORS = ("", "Equal", "Exists", "Lt", "Gt")
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
_UNITS = {"": 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {f"{letter}i": 2.0 ** (10 * power) for power, letter in enumerate("KMGTPE", start=1)}


def amount(quantity: str) -> float:
    """Return a quantity as a number: cores, or bytes. Raise UserError if it is no quantity."""
    match = QUANTITY.fullmatch(quantity)
    if match is None:
        raise UserError(f"{quantity!r} is not a quantity that Kubernetes knows, like '4', '500m' or '16Gi'")
    unit = match["unit"] or ""
    return float(quantity) if unit[1:].strip("+-").isdecimal() else float(match["number"]) * _UNITS[unit]


def require_quantity(name: str, value: str, *, form: re.Pattern[str] = QUANTITY) -> None:
    """Refuse a value that Kubernetes does not read as an amount, and zero."""
    if not form.fullmatch(value) or not amount(value):
        example = "like '4' or '500m'" if form is CORES else "like '16Gi'"
        raise UserError(f"{name} {value!r} is not a quantity that Kubernetes knows, {example}")


def require_object_name(name: str, value: str) -> None:
    """Refuse a name of a Kubernetes object with anything but lower-case letters, digits, dots and dashes."""
    if not _OBJECT_NAME.fullmatch(value):
        raise UserError(f"{name}: {value!r} is not a name of a Kubernetes object; use lower-case letters, digits and dashes")


def require_node_selector(selector: Mapping[str, Any]) -> None:
    """Refuse a value that is no node selector."""
    for key, value in selector.items():
        if not isinstance(value, str):
            raise UserError(f'node_selector: the value of label {key} must be text; write "{json.dumps(value)}" in quotes')
        _require_key("node_selector", key)
        _require_label_value("node_selector", key, value)


def require_tolerations(tolerations: Sequence[Any]) -> None:
    """Refuse a list that has anything but tolerations of a pod."""
    for each in tolerations:
        if not _is_toleration(each):
            example = '[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]'
            raise UserError(f"tolerations: {each!r} is not a toleration of a pod; the list reads like {example}")


def require_labels(name: str, labels: Mapping[str, str]) -> None:
    """Refuse what Kubernetes does not take as labels, and those by which we and KubeRay find pods."""
    require_annotations(name, labels)
    for key, value in labels.items():
        _require_label_value(name, key, value)


def require_annotations(name: str, annotations: Mapping[str, str]) -> None:
    """Refuse keys that Kubernetes does not take, and those that we or KubeRay set."""
    for key in annotations:
        _require_key(name, key)
        if key.startswith(_RESERVED_KEYS):
            raise UserError(f"{name}: {key} is set by this project, KubeRay or Kueue; leave it out")


def _require_key(name: str, key: str) -> None:
    if not _LABEL_KEY.fullmatch(key):
        raise UserError(f"{name}: {key!r} can't be a key; it reads like team, or example.com/team")


def _require_label_value(name: str, key: str, value: str) -> None:
    if not _LABEL_VALUE.fullmatch(value):
        raise UserError(
            f"{name}: the value {value!r} of {key} is no label: at most 63 letters, digits, '-', '_' and '.', and it begins and ends "
            "with a letter or digit"
        )


def require_env(name: str, env: Mapping[str, str]) -> None:
    """Refuse names that can't be variables, and those that the pods' Secrets set."""
    for key in env:
        if not _VARIABLE.fullmatch(key):
            raise UserError(f"{name}: {key!r} can't name an environment variable")
        if key == "HOME" or key.startswith(("AWS_", "MLFLOW_", "KUBERAY_", "RAY_AUTH_")):
            raise UserError(f"{name}: {key} comes from the cluster's Secrets and settings (k8s/README.md); set it there")


def require_volumes(volumes: Sequence[Mapping[str, Any]], mounts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse mounts without a volume, volumes without a name, and those that take the place of our own."""
    names = [each.get("name") for each in volumes]
    for volume in volumes:
        if not isinstance(volume.get("name"), str) or volume["name"] == "scratch" or len(volume) != 2 or names.count(volume["name"]) > 1:
            example = '{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}'
            raise UserError(f"rayjob.volumes: {dict(volume)!r} is not a volume with a name of its own, like {example}")
    for mount in mounts:
        path = str(mount.get("mountPath", ""))
        if mount.get("name") not in names or not path.startswith("/") or path.rstrip("/") in ("", "/tmp", "/dev/shm"):
            example = '{"name": "data", "mountPath": "/data"}'
            raise UserError(
                f"rayjob.volume_mounts: {dict(mount)!r} mounts no volume of rayjob.volumes at a path of its own, like {example}"
            )


def _is_toleration(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and value.keys() <= _TOLERATION
        and value.get("operator", "") in _OPERATORS
        and value.get("effect", "") in _EFFECTS
        and (not value.get("value") if value.get("operator") == "Exists" else bool(value.get("key")))
    )

"""The small pod with which the doctor asks a cluster."""

from __future__ import annotations

from typing import Any


def restricted_pod(name: str, image: str, account: str, *, seconds: int) -> dict[str, Any]:
    """Return a pod that does nothing, at the level `restricted` of Pod Security.

    Args:
        name: Its name.
        image: Its image.
        account: Its service account.
        seconds: Time after which Kubernetes ends it.
    """
    amounts = {"cpu": "100m", "memory": "64Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "iddpm"}, "annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": seconds,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["true"],
                    "resources": {"requests": amounts, "limits": amounts},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }

"""A cluster with all that a run needs, as `iddpm doctor` sees it, over the small Kubernetes API of the tests."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fake_kubernetes import NAMESPACE, FakeKubernetes

from components.container.image import BASE_IMAGE

IMAGE_ON_NODES = f"docker.io/library/{BASE_IMAGE}"
CRD = {
    "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"properties": {"spec": {"properties": {"preRunningDeadlineSeconds": {}}}}}}}]
}


def deployment(image: str, *, available: int = 1, driver: str = "") -> dict[str, Any]:
    container: dict[str, Any] = {"image": image, "env": [{"name": "V2_DRIVER_IMAGE", "value": driver}] if driver else []}
    pod = {"containers": [container], "volumes": [{"configMap": {"name": "ml-pipeline-server-config-5h"}}]}
    return {"spec": {"template": {"spec": pod}}, "status": {"availableReplicas": available}}


def plugin(*, inject: bool = False, endpoint: str = "https://mlflow.example.com", **settings: Any) -> dict[str, Any]:
    """The server's configuration with its plugin for MLflow, as an administrator mounts it."""
    mlflow = {"endpoint": endpoint, "settings": {"injectUserEnvVars": inject, **settings}}
    return {"data": {"config.json": json.dumps({"plugins": {"mlflow": mlflow}})}}


def listed(*names: str, **more: Any) -> dict[str, Any]:
    """A list of objects."""
    return {"items": [{"metadata": {"name": name}, **more} for name in names]}


NETWORK = listed("calico-node", spec={"template": {"spec": {"containers": [{"name": "calico-node"}]}}})
_K8S = Path(__file__).parents[2] / "k8s"
DEFAULT_CLASS = {"items": [{"metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}]}


def manifests(file: str) -> list[dict[str, Any]]:
    """The objects of a file of `k8s/`."""
    return list(yaml.safe_load_all((_K8S / file).read_text()))


def node(
    *,
    cpu: str = "16",
    gpus: int = 0,
    gpu_type: str = "nvidia.com/gpu",
    images: tuple[str, ...] = (IMAGE_ON_NODES,),
    ready: str = "True",
) -> dict[str, Any]:
    status: dict[str, Any] = {
        "conditions": [{"type": "Ready", "status": ready}],
        "images": [{"names": list(images)}],
        "allocatable": {"cpu": cpu, "memory": "32Gi"},
    }
    if gpus:
        status["allocatable"][gpu_type] = str(gpus)
    return {"metadata": {"name": "node", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100"} if gpus else {}}, "spec": {}, "status": status}


def operator(*, ready: str = "True", requests: dict[str, str] | None = None, sidecar: dict[str, str] | None = None) -> dict[str, Any]:
    """The list of the pods of KubeRay's operator, as a cluster's API gives it by their label."""
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    containers = [{"image": "quay.io/kuberay/operator:v1.7.0", "resources": {"requests": requests or {}}}]
    started = [{"name": "istio-proxy", "restartPolicy": "Always", "resources": {"requests": sidecar}}] if sidecar else []
    return {
        "items": [
            {
                "metadata": {"name": "kuberay-operator-5d", "namespace": "kuberay-system"},
                "spec": {"nodeName": "node", "containers": containers, "initContainers": started},
                "status": status,
            }
        ]
    }


def secret(**values: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


@dataclass
class FakeCluster(FakeKubernetes):
    """A cluster with all that a run needs, of which a test takes something away.

    Attributes:
        objects: Path -> object; None is forbidden, and what is not there is not found.
        denied: What the account of runs may not do, like "create rayjobs"; None refuses the question.
        caller: Who asks.
        image_states: What the state of a pod's container becomes, one a look.
        dry_runs: Recording that answers a dry run of a pod, by service account; without an entry nothing is injected.
    """

    objects: dict[str, Any] = field(default_factory=dict)
    denied: set[str] | None = field(default_factory=set)
    caller: str = "an-administrator"
    image_states: list[dict[str, Any]] = field(default_factory=list)
    reviews: list[dict[str, Any]] = field(default_factory=list)
    dry_runs: dict[str, str] = field(default_factory=dict)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        with self.lock:
            if path == "/apis/authentication.k8s.io/v1/selfsubjectreviews":
                return 201, {**body, "status": {"userInfo": {"username": self.caller}}}
            if path.startswith("/apis/authorization.k8s.io/v1/"):
                self.reviews.append(body)
                asked = body["spec"]["resourceAttributes"]
                if self.denied is None:
                    return refusal(403)
                resource = asked["resource"] + (f"/{asked['subresource']}" if asked["subresource"] else "")
                return 201, {**body, "status": {"allowed": f"{asked['verb']} {resource}" not in self.denied}}
            if path == f"/api/v1/namespaces/{NAMESPACE}/pods" and method == "POST" and query.get("dryRun") == ["All"]:
                recorded = recorded_dry_run(self.dry_runs.get(body["spec"]["serviceAccountName"], "no-webhook"))
                return recorded["status"], recorded["answer"]
            if path == f"/api/v1/namespaces/{NAMESPACE}/pods" and method == "POST":
                self.created.append(body)
                self.add_pod(body["metadata"]["name"], {})
                return 201, body
            name = path.rpartition("/")[2]
            if method == "DELETE" and name in self.pods:
                return 200, self.pods.pop(name)
            if name in self.pods and self.image_states:
                state = self.image_states.pop(0) if len(self.image_states) > 1 else self.image_states[0]
                self.pods[name]["status"] = {"containerStatuses": [{"state": state}]}
                self.pods[name]["spec"]["nodeName"] = "node-7"
            if path in self.objects:
                found = self.objects[path]
                return refusal(403) if found is None else (200, found)
        return super().answer(method, path, query, body)


def recorded_dry_run(name: str) -> dict[str, Any]:
    """Return a dry run of the doctor's pod: its request, and status and answer of a real API server (1.34.4).

    Amazon's pod identity webhook (0.6.17) ran beside it, in a namespace that enforces `restricted`. The request of "pod-security" alone is
    not the doctor's: its container may escalate privileges.
    """
    path = Path(__file__).parents[1] / "recordings" / "dry-runs" / f"{name}.json.gz"
    return dict(json.loads(gzip.decompress(path.read_bytes())))


def refusal(status: int) -> tuple[int, Any]:
    return status, {"kind": "Status", "message": "it is forbidden", "code": status}


def whole(mlflow: str, s3: str) -> dict[str, Any]:
    """The objects of a cluster where nothing is missing."""
    core, apps = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
    (defaults,) = manifests("components/kfp/workflow-defaults.yaml")
    config = {"AWS_ENDPOINT_URL": s3, "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_TRACKING_URI": mlflow}
    return {
        "/version": {"major": "1", "minor": "31+", "gitVersion": "v1.31.4"},
        "/apis/argoproj.io/v1alpha1": {"resources": [{"name": "workflows"}]},
        "/apis/kubeflow.org/v1beta1": {"resources": [{"name": "scheduledworkflows"}]},
        "/apis/ray.io/v1": {"resources": [{"name": "rayjobs"}]},
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayjobs.ray.io": {"spec": CRD},
        "/api/v1/pods": operator(),
        f"{apps}/ml-pipeline": deployment("ghcr.io/kubeflow/kfp-api-server:2.17.0"),
        f"{apps}/workflow-controller": deployment("quay.io/argoproj/workflow-controller:v4.0.8"),
        f"{apps}/metadata-grpc-deployment": deployment("x/ml_metadata_store_server:1.14.0"),
        f"{apps}/ml-pipeline-persistenceagent": deployment("x/kfp-persistence-agent:2.17.0"),
        f"{apps}/ml-pipeline-scheduledworkflow": deployment("ghcr.io/kubeflow/kfp-scheduled-workflow-controller:2.17.0"),
        f"{core}/configmaps/pipeline-install-config": {"data": {"cronScheduleTimezone": "Europe/Berlin"}},
        f"{core}/configmaps/workflow-controller-configmap": defaults,
        f"{core}/configmaps/iddpm-services": {"data": config},
        f"{core}/secrets/iddpm-s3": secret(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="not-to-be-shown"),
        f"{core}/serviceaccounts/pipeline-runner": {},
        f"{core}/serviceaccounts/iddpm-ray": {},
        "/api/v1/nodes": {"items": [node(gpus=8)]},
        f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{NAMESPACE}/localqueues": listed(),
        "/apis/apps/v1/daemonsets": NETWORK,
        "/apis/storage.k8s.io/v1/storageclasses": DEFAULT_CLASS,
        "/api/v1/namespaces/iddpm/persistentvolumeclaims": listed("data-mlflow-postgres-0", status={"phase": "Bound"}),
        "/api/v1/namespaces/iddpm/pods": listed("mlflow-7", status={"containerStatuses": [{"name": "mlflow", "state": {"running": {}}}]}),
        f"{core}/configmaps/ml-pipeline-server-config-5h": plugin(),
    }

"""Check what is installed in the cluster: Kubernetes, KFP, KubeRay, service accounts and their rights, GPU nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from components.cluster.cluster_api import ClusterApi
from components.cluster.names import amount
from pipelines.client.kfp_client import KNOWN_VERSION
from pipelines.doctor.findings import ASK_ADMINISTRATOR, FAILURE, OK, WARNING, Finding
from pipelines.doctor.room import is_ready
from pipelines.doctor.scope import Scope

OLDEST_KUBERNETES = (1, 30)
GPU = "nvidia.com/gpu"
_GPU = re.compile(r"/gpu(\.shared)?$|/mig-")
"""Names of GPUs, of their slices, and of those that pods share by time (`renameByDefault` of NVIDIA's device plugin)."""
RAY_ACCOUNT = "iddpm-ray"
"""Service account of the pods of a Ray cluster."""
RIGHTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ray.io", "rayjobs", ("create", "get", "delete")),
    ("kueue.x-k8s.io", "localqueues", ("get",)),
    ("kueue.x-k8s.io", "workloads", ("list",)),
    ("", "pods", ("get", "list")),
    ("", "pods/log", ("get",)),
    ("argoproj.io", "workflows", ("get", "list")),
)
"""Rights that a step with a RayJob needs: group, resource, verbs. `k8s/base/runs/accounts.yaml` grants them."""
_RAY = "/apis/ray.io/v1"
_OVERLAY = "'kubectl apply -k' of your overlay creates it (k8s/README.md, step 6)"
_KFP = "install Kubeflow Pipelines (k8s/README.md, steps 4 and 6), or give its namespace by --kfp-namespace"


def check_kubernetes(cluster: ClusterApi) -> Finding:
    """Check that Kubernetes answers, and its version."""
    answer = cluster.get("/version")
    if not answer.ok:
        if answer.status == 401:
            remedy = "your credentials have expired or are of another cluster; log in again, and try it with 'kubectl get nodes'"
            return Finding(FAILURE, "kubernetes", f"{cluster.server} does not accept your credentials: {answer.reason}", remedy)
        remedy = "is the address in the kubeconfig right, and can it be reached from here? Try it with 'kubectl get nodes'"
        return Finding(FAILURE, "kubernetes", f"no answer from {cluster.server}: {answer.reason}", remedy)
    version = answer.body
    message = f"{version.get('gitVersion', 'of unknown version')} at {cluster.server}"
    numbers = tuple(int(re.sub(r"\D", "", str(version.get(part, ""))) or 0) for part in ("major", "minor"))
    if numbers < OLDEST_KUBERNETES:
        return Finding(WARNING, "kubernetes", message, f"upgrade it to {'.'.join(map(str, OLDEST_KUBERNETES))} or later")
    return Finding(OK, "kubernetes", message)


def check_kfp_parts(scope: Scope) -> Iterator[Finding]:
    """Check KFP's APIs and Deployments, and the zone in which it reads cron expressions."""
    cluster, namespace = scope.cluster, scope.connection.kfp_namespace
    for group, resource, what in (("argoproj.io/v1alpha1", "workflows", "Argo's"), ("kubeflow.org/v1beta1", "scheduledworkflows", "KFP's")):
        answer = cluster.get(f"/apis/{group}")
        if _has(answer.body, resource):
            yield Finding(OK, f"api {group}", f"has {resource}")
        elif answer.ok or answer.status == 404:
            yield Finding(FAILURE, f"api {group}", f"{what} {resource} are missing", _KFP)
        else:
            yield Finding(WARNING, f"api {group}", f"cannot be seen: {answer.reason}", ASK_ADMINISTRATOR)
    yield _deployment(cluster, namespace, "ml-pipeline", "runs nothing")
    yield _deployment(cluster, namespace, "workflow-controller", "starts no step")
    yield _deployment(cluster, namespace, "metadata-grpc-deployment", "starts no step")
    yield _deployment(cluster, namespace, "ml-pipeline-persistenceagent", "never shows how far a run is")
    yield _deployment(cluster, namespace, "ml-pipeline-scheduledworkflow", "runs no schedule")
    answer = cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/pipeline-install-config")
    zone = (answer.body.get("data") or {}).get("cronScheduleTimezone")
    if zone:
        yield Finding(OK, "time zone", f"KFP reads cron expressions in {zone}")
    else:
        remedy = f"assume UTC, KFP's default{'' if answer.ok or answer.status == 404 else '; ' + answer.reason}"
        yield Finding(WARNING, "time zone", "the zone in which KFP reads cron expressions cannot be seen", remedy)


def _deployment(cluster: ClusterApi, namespace: str, name: str, without: str) -> Finding:
    answer = cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
    if answer.status == 404:
        return Finding(FAILURE, name, f"is not in namespace {namespace}; without it KFP {without}", _KFP)
    if not answer.ok:
        return Finding(WARNING, name, f"cannot be seen: {answer.reason}", ASK_ADMINISTRATOR)
    images = [str(container["image"]) for container in answer.body["spec"]["template"]["spec"]["containers"]]
    version = images[0].rpartition("/")[2].partition("@")[0]
    if not answer.body.get("status", {}).get("availableReplicas"):
        remedy = f"see 'kubectl -n {namespace} describe deployment {name}' and its pods' logs"
        return Finding(FAILURE, name, f"{version} is not up; without it KFP {without}", remedy)
    if name == "ml-pipeline" and not version.rpartition(":")[2].startswith(f"{KNOWN_VERSION}."):
        return Finding(WARNING, name, f"{version} is up", f"{KNOWN_VERSION} is the tested version")
    return Finding(OK, name, f"{version} is up")


def check_kuberay(scope: Scope) -> Iterator[Finding]:
    """Check KubeRay's API, its release, and its operator."""
    answer = scope.cluster.get(_RAY)
    if not answer.ok and answer.status != 404:
        yield Finding(WARNING, "api ray.io/v1", f"cannot be seen: {answer.reason}", ASK_ADMINISTRATOR)
        return
    if not _has(answer.body, "rayjobs"):
        remedy = "install KubeRay's operator (k8s/README.md, step 3); without it only ray_mode=local and address work"
        yield Finding(WARNING, "api ray.io/v1", "has no rayjobs", remedy)
        return
    yield _release(scope.cluster)
    yield _operator(scope.cluster)


def _release(cluster: ClusterApi) -> Finding:
    subject = "api ray.io/v1"
    answer = cluster.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayjobs.ray.io")
    if not answer.ok:
        return Finding(OK, subject, "has rayjobs (the version of KubeRay cannot be seen)")
    schemas = {each["name"]: each["schema"]["openAPIV3Schema"] for each in answer.body["spec"]["versions"]}
    fields = schemas.get("v1", {}).get("properties", {}).get("spec", {}).get("properties", {})
    if "preRunningDeadlineSeconds" not in fields:
        message = "is older than KubeRay 1.7: its RayJobs have no preRunningDeadlineSeconds"
        return Finding(FAILURE, subject, message, "upgrade the operator and its CRDs (k8s/README.md, step 3)")
    return Finding(OK, subject, "has rayjobs, of KubeRay 1.7 or later")


def _operator(cluster: ClusterApi) -> Finding:
    """Check KubeRay's operator in all namespaces: its pods have this label, however it was installed."""
    subject, label = "kuberay-operator", "app.kubernetes.io/component=kuberay-operator"
    answer = cluster.get("/api/v1/pods", labelSelector=label)
    if not answer.ok:
        remedy = f"{ASK_ADMINISTRATOR} to run 'kubectl get pods -A -l {label}'"
        return Finding(WARNING, subject, f"cannot be seen: {answer.reason}", remedy)
    pods = answer.body.get("items", [])
    if not pods:
        remedy = "RayJobs would wait for ever: install it (k8s/README.md, step 3), unless your cluster's provider runs it elsewhere"
        return Finding(WARNING, subject, "runs in no namespace", remedy)
    pod = next((pod for pod in pods if _is_up(pod)), pods[0])
    where, image = pod["metadata"]["namespace"], pod["spec"]["containers"][0]["image"]
    version = str(image).rpartition("/")[2].partition("@")[0]
    if not _is_up(pod):
        remedy = f"see 'kubectl -n {where} describe pod {pod['metadata']['name']}' and its log"
        return Finding(FAILURE, subject, f"{version} is not up in namespace {where}; without it RayJobs wait for ever", remedy)
    return Finding(OK, subject, f"{version} is up in namespace {where}")


def check_accounts(scope: Scope) -> Iterator[Finding]:
    """Check that the service accounts of runs exist."""
    cluster, account = scope.cluster, scope.account
    for name, state, remedy in (
        (account, FAILURE, "it comes with KFP; with several users give --service-account default-editor"),
        (RAY_ACCOUNT, WARNING, f"RayJobs need it: {_OVERLAY}"),
    ):
        subject = f"service account {name}"
        answer = cluster.get(f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{name}")
        if answer.ok:
            yield Finding(OK, subject, f"is in namespace {cluster.namespace}")
        elif answer.status == 404:
            yield Finding(state, subject, f"is missing in namespace {cluster.namespace}", remedy)
        else:
            yield Finding(WARNING, subject, f"cannot be seen: {answer.reason}", ASK_ADMINISTRATOR)


def check_rights(scope: Scope) -> Iterator[Finding]:
    """Check what the service account of runs may do."""
    yield _rights(scope.cluster, scope.account, has_kuberay=scope.cluster.get(_RAY).status != 404)


def _rights(cluster: ClusterApi, account: str, *, has_kuberay: bool) -> Finding:
    subject = f"rights of {account}"
    # Everybody may ask about himself, as where this is a pod of a run; about another account an administrator may.
    is_caller = cluster.caller() == f"system:serviceaccount:{cluster.namespace}:{account}"
    subject_account = "" if is_caller else account
    missing: list[str] = []
    for group, resource, verbs in RIGHTS:
        for verb in verbs if has_kuberay or group != "ray.io" else ():
            allowed = cluster.may(verb, group, resource, account=subject_account)
            if allowed is None:
                who = f"system:serviceaccount:{cluster.namespace}:{account}"
                command = f"kubectl auth can-i create rayjobs.ray.io -n {cluster.namespace} --as {who}"
                return Finding(WARNING, subject, "you have no right to ask about them", f"{ASK_ADMINISTRATOR} to run '{command}'")
            if not allowed:
                missing.append(f"{verb} {resource}")
    if missing:
        return Finding(FAILURE, subject, f"it may not {', '.join(missing)}", f"the Role in k8s/base/runs grants it: {_OVERLAY}")
    return Finding(OK, subject, "all that a RayJob needs" if has_kuberay else "pods and their logs")


def check_gpus(scope: Scope) -> Iterator[Finding]:
    """Count the GPUs that nodes offer, under every name that the cluster counts them by."""
    answer = scope.cluster.get("/api/v1/nodes")
    if not answer.ok:
        yield Finding(WARNING, "gpus", f"nodes cannot be seen: {answer.reason}", ASK_ADMINISTRATOR)
        return
    nodes = [node for node in answer.body.get("items", []) if is_ready(node)]
    offered = [
        {name: int(amount(str(count))) for name, count in node["status"].get("allocatable", {}).items() if _GPU.search(name)}
        for node in nodes
    ]
    names = sorted({name for node in offered for name, count in node.items() if count})
    if not names:
        yield Finding(WARNING, "gpus", f"none of {len(nodes)} ready node(s) offers {GPU}")
    kinds = sorted({str((node["metadata"].get("labels") or {}).get("nvidia.com/gpu.product", "")) for node in nodes} - {""})
    of = f" ({', '.join(kinds)})" if kinds else ""
    for name in names:
        counts = [node[name] for node in offered if node.get(name)]
        message = f"{sum(counts)} {name} on {len(counts)} of {len(nodes)} ready node(s){of}, at most {max(counts)} on one"
        yield Finding(OK, "gpus" if name == GPU else f"gpus {name}", message)


def _is_up(pod: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod.get("status", {}).get("conditions", []))


def _has(body: Any, resource: str) -> bool:
    return any(each.get("name") == resource for each in body.get("resources", []))

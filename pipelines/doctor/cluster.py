"""Check what is installed in the cluster: Kubernetes, KFP, KubeRay and Kueue, service accounts and their rights, GPU nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from components.cluster.cluster_api import ClusterApi
from components.cluster.connection import in_cluster
from pipelines.client.kfp_client import KNOWN_VERSION
from pipelines.doctor.findings import ASK_ADMINISTRATOR, FAILURE, OK, WARNING, Finding

OLDEST_KUBERNETES = (1, 30)
GPU = "nvidia.com/gpu"
RAY_ACCOUNT = "iddpm-ray"
"""Service account of the pods of a Ray cluster."""
RIGHTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ray.io", "rayjobs", ("create", "get", "delete")),
    ("", "pods", ("get", "list")),
    ("", "pods/log", ("get",)),
    ("argoproj.io", "workflows", ("get", "list")),
)
"""Rights that a step with a RayJob needs: group, resource, verbs. `k8s/base/runs/accounts.yaml` grants them."""
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


def check_cluster(cluster: ClusterApi, kfp_namespace: str, account: str) -> Iterator[Finding]:
    """Check everything that an administrator installs.

    Args:
        cluster: The cluster, in the namespace of runs.
        kfp_namespace: Namespace of KFP.
        account: Service account of runs.
    """
    yield from _kfp(cluster, kfp_namespace)
    has_kuberay, finding = _kuberay(cluster)
    yield finding
    if has_kuberay:
        yield _operator(cluster)
    yield _kueue(cluster)
    yield from _accounts(cluster, account)
    yield _rights(cluster, account, has_kuberay=has_kuberay)
    yield _gpus(cluster)


def _kfp(cluster: ClusterApi, namespace: str) -> Iterator[Finding]:
    for group, resource, what in (("argoproj.io/v1alpha1", "workflows", "Argo's"), ("kubeflow.org/v1beta1", "scheduledworkflows", "KFP's")):
        answer = cluster.get(f"/apis/{group}")
        if _has(answer.body, resource):
            yield Finding(OK, f"api {group}", f"has {resource}")
        else:
            yield Finding(FAILURE, f"api {group}", f"{what} {resource} are missing", _KFP)
    yield _deployment(cluster, namespace, "ml-pipeline", "runs nothing")
    yield _deployment(cluster, namespace, "workflow-controller", "starts no step")
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


def _kuberay(cluster: ClusterApi) -> tuple[bool, Finding]:
    answer = cluster.get("/apis/ray.io/v1")
    subject = "api ray.io/v1"
    if not _has(answer.body, "rayjobs"):
        remedy = "install KubeRay's operator (k8s/README.md, step 3); without it only ray_mode=local and address work"
        return False, Finding(WARNING, subject, "has no rayjobs", remedy)
    answer = cluster.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayjobs.ray.io")
    if not answer.ok:
        return True, Finding(OK, subject, "has rayjobs (the version of KubeRay cannot be seen)")
    schemas = {each["name"]: each["schema"]["openAPIV3Schema"] for each in answer.body["spec"]["versions"]}
    fields = schemas.get("v1", {}).get("properties", {}).get("spec", {}).get("properties", {})
    if "preRunningDeadlineSeconds" not in fields:
        message = "is older than KubeRay 1.7: its RayJobs have no preRunningDeadlineSeconds"
        return True, Finding(FAILURE, subject, message, "upgrade the operator and its CRDs (k8s/README.md, step 3)")
    return True, Finding(OK, subject, "has rayjobs, of KubeRay 1.7 or later")


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


def _kueue(cluster: ClusterApi) -> Finding:
    answer = cluster.get("/apis/kueue.x-k8s.io")
    if not answer.ok:
        return Finding(OK, "kueue", "is not installed; RayJobs start as pods do, and queue must stay empty")
    version = answer.body.get("preferredVersion", {}).get("version", "v1beta1")
    queues = cluster.get(f"/apis/kueue.x-k8s.io/{version}/namespaces/{cluster.namespace}/localqueues").body.get("items", [])
    names = ", ".join(queue["metadata"]["name"] for queue in queues)
    return Finding(OK, "kueue", f"local queues in {cluster.namespace}: {names or 'none; queue must stay empty'}")


def _accounts(cluster: ClusterApi, account: str) -> Iterator[Finding]:
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


def _rights(cluster: ClusterApi, account: str, *, has_kuberay: bool) -> Finding:
    subject = f"rights of {account}"
    # A pod of a run has that account itself; from elsewhere only an administrator may ask about it.
    subject_account = "" if in_cluster() else account
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


def _gpus(cluster: ClusterApi) -> Finding:
    answer = cluster.get("/api/v1/nodes")
    if not answer.ok:
        return Finding(WARNING, "gpus", f"nodes cannot be seen: {answer.reason}", ASK_ADMINISTRATOR)
    nodes = [node for node in answer.body.get("items", []) if _is_ready(node)]
    counts = [int(node["status"].get("allocatable", {}).get(GPU, 0)) for node in nodes]
    with_gpus = sum(1 for count in counts if count)
    if not with_gpus:
        remedy = "steps with GPUs would wait for ever: add nodes with NVIDIA's device plugin, or train without GPUs"
        return Finding(WARNING, "gpus", f"none of {len(nodes)} ready node(s) offers {GPU}", remedy)
    kinds = sorted({str(node["metadata"].get("labels", {}).get("nvidia.com/gpu.product", "")) for node in nodes} - {""})
    of = f" ({', '.join(kinds)})" if kinds else ""
    return Finding(OK, "gpus", f"{sum(counts)} on {with_gpus} of {len(nodes)} ready node(s){of}, at most {max(counts)} on one")


def _is_ready(node: dict[str, Any]) -> bool:
    return _is_up(node) and not node.get("spec", {}).get("unschedulable")


def _is_up(thing: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in thing.get("status", {}).get("conditions", []))


def _has(body: Any, resource: str) -> bool:
    return any(each.get("name") == resource for each in body.get("resources", []))

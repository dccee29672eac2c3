"""What stands in the cluster: its version, KFP, KubeRay and Kueue, service accounts and their rights, nodes with GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from components.cluster.cluster_api import ClusterApi
from components.cluster.kubernetes_api import in_cluster
from pipelines.client.kfp_client import KNOWN_VERSION
from pipelines.doctor.findings import FAILURE, OK, WARNING, Finding

OLDEST_KUBERNETES = (1, 30)
GPU = "nvidia.com/gpu"
RAY_ACCOUNT = "iddpm-ray"
"""Of the pods of a Ray cluster."""
RIGHTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ray.io", "rayjobs", ("create", "get", "delete")),
    ("", "pods", ("get", "list")),
    ("", "pods/log", ("get",)),
)
"""What a step does that runs a RayJob; `k8s/base/runs/accounts.yaml` grants it."""
_OVERLAY = "'kubectl apply -k' of your overlay makes it (k8s/README.md, step 6)"
_KFP = "install Kubeflow Pipelines (k8s/README.md, steps 4 and 6), or name its namespace by --kfp-namespace"


def is_answering(cluster: ClusterApi) -> Finding:
    """Whether Kubernetes answers at all, and its version."""
    answer = cluster.get("/version")
    if not answer.ok:
        if answer.status == 401:
            remedy = "your credentials have expired or are of another cluster; log in again ('kubectl get nodes' tries it)"
            return Finding(FAILURE, "kubernetes", f"{cluster.server} does not know you: {answer.reason}", remedy)
        remedy = "is the address in the kubeconfig right, and is there a way to it from here? 'kubectl get nodes' tries it"
        return Finding(FAILURE, "kubernetes", f"no answer from {cluster.server}: {answer.reason}", remedy)
    version = answer.body
    told = f"{version.get('gitVersion', 'of unknown version')} at {cluster.server}"
    numbers = tuple(int(re.sub(r"\D", "", str(version.get(part, ""))) or 0) for part in ("major", "minor"))
    if numbers < OLDEST_KUBERNETES:
        return Finding(WARNING, "kubernetes", told, f"{'.'.join(map(str, OLDEST_KUBERNETES))} or later is what this was made for")
    return Finding(OK, "kubernetes", told)


def cluster_findings(cluster: ClusterApi, kfp_namespace: str, account: str) -> Iterator[Finding]:
    """Looks at all that stands in the cluster and is no object of a run's.

    Args:
        cluster: The cluster, seen from the namespace of runs.
        kfp_namespace: Where KFP is installed.
        account: What runs' pods run as.
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
            yield Finding(FAILURE, f"api {group}", f"{what} {resource} are not there", _KFP)
    for name, what in (("ml-pipeline", "runs nothing"), ("workflow-controller", "starts no step"), ("ml-pipeline-scheduledworkflow", "")):
        yield _deployment(cluster, namespace, name, what or "runs no schedule")
    answer = cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/pipeline-install-config")
    zone = (answer.body.get("data") or {}).get("cronScheduleTimezone")
    if zone:
        yield Finding(OK, "time zone", f"KFP reads the cron of schedules in {zone}")
    else:
        remedy = f"reckon with UTC, KFP's own choice{'' if answer.ok or answer.status == 404 else '; ' + answer.reason}"
        yield Finding(WARNING, "time zone", "in which KFP reads the cron of schedules can't be seen", remedy)


def _deployment(cluster: ClusterApi, namespace: str, name: str, without: str) -> Finding:
    answer = cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
    if answer.status == 404:
        return Finding(FAILURE, name, f"is not in namespace {namespace}, and KFP {without} without it", _KFP)
    if not answer.ok:
        return Finding(WARNING, name, f"can't be looked at: {answer.reason}", "ask whoever may")
    images = [str(container["image"]) for container in answer.body["spec"]["template"]["spec"]["containers"]]
    version = images[0].rpartition("/")[2].partition("@")[0]
    if not answer.body.get("status", {}).get("availableReplicas"):
        remedy = f"'kubectl -n {namespace} describe deployment {name}' and its pods' logs say why"
        return Finding(FAILURE, name, f"{version} is not up, and KFP {without} without it", remedy)
    if name == "ml-pipeline" and not version.rpartition(":")[2].startswith(f"{KNOWN_VERSION}."):
        return Finding(WARNING, name, f"{version} is up", f"{KNOWN_VERSION} is what this was tried with")
    return Finding(OK, name, f"{version} is up")


def _kuberay(cluster: ClusterApi) -> tuple[bool, Finding]:
    answer = cluster.get("/apis/ray.io/v1")
    subject = "api ray.io/v1"
    if not _has(answer.body, "rayjobs"):
        remedy = "install KubeRay's operator (k8s/README.md, step 3); without it only ray_mode=local and address work"
        return False, Finding(WARNING, subject, "there are no RayJobs", remedy)
    answer = cluster.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayjobs.ray.io")
    if not answer.ok:
        return True, Finding(OK, subject, "has rayjobs (of which KubeRay can't be seen)")
    schemas = {each["name"]: each["schema"]["openAPIV3Schema"] for each in answer.body["spec"]["versions"]}
    fields = schemas.get("v1", {}).get("properties", {}).get("spec", {}).get("properties", {})
    if "preRunningDeadlineSeconds" not in fields:
        told = "is older than KubeRay 1.7: its RayJobs have no preRunningDeadlineSeconds"
        return True, Finding(FAILURE, subject, told, "upgrade the operator and its CRDs (k8s/README.md, step 3)")
    return True, Finding(OK, subject, "has rayjobs, of KubeRay 1.7 or later")


def _operator(cluster: ClusterApi) -> Finding:
    """Whether KubeRay's operator runs, in whatever namespace: its pods bear this label however it was installed."""
    subject, label = "kuberay-operator", "app.kubernetes.io/component=kuberay-operator"
    answer = cluster.get("/api/v1/pods", labelSelector=label)
    if not answer.ok:
        return Finding(
            WARNING, subject, f"whether it runs can't be seen: {answer.reason}", f"whoever may looks by 'kubectl get pods -A -l {label}'"
        )
    pods = answer.body.get("items", [])
    if not pods:
        remedy = "without it RayJobs wait for ever: install it (k8s/README.md, step 3), unless your cluster's provider runs it out of sight"
        return Finding(WARNING, subject, "runs in no namespace", remedy)
    pod = next((pod for pod in pods if _is_up(pod)), pods[0])
    where, image = pod["metadata"]["namespace"], pod["spec"]["containers"][0]["image"]
    version = str(image).rpartition("/")[2].partition("@")[0]
    if not _is_up(pod):
        remedy = f"'kubectl -n {where} describe pod {pod['metadata']['name']}' and its log say why"
        return Finding(FAILURE, subject, f"{version} is not up in namespace {where}, and RayJobs wait for ever without it", remedy)
    return Finding(OK, subject, f"{version} is up in namespace {where}")


def _kueue(cluster: ClusterApi) -> Finding:
    answer = cluster.get("/apis/kueue.x-k8s.io")
    if not answer.ok:
        return Finding(OK, "kueue", "is not installed; RayJobs start as pods do, and cluster_queue must stay empty")
    version = answer.body.get("preferredVersion", {}).get("version", "v1beta1")
    queues = cluster.get(f"/apis/kueue.x-k8s.io/{version}/namespaces/{cluster.namespace}/localqueues").body.get("items", [])
    names = ", ".join(queue["metadata"]["name"] for queue in queues)
    return Finding(OK, "kueue", f"local queues in {cluster.namespace}: {names or 'none; cluster_queue must stay empty'}")


def _accounts(cluster: ClusterApi, account: str) -> Iterator[Finding]:
    for name, state, remedy in (
        (account, FAILURE, "it comes with KFP; with several users name default-editor by --service-account"),
        (RAY_ACCOUNT, WARNING, f"RayJobs need it: {_OVERLAY}"),
    ):
        subject = f"service account {name}"
        answer = cluster.get(f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{name}")
        if answer.ok:
            yield Finding(OK, subject, f"is in namespace {cluster.namespace}")
        elif answer.status == 404:
            yield Finding(state, subject, f"is missing in namespace {cluster.namespace}", remedy)
        else:
            yield Finding(WARNING, subject, f"can't be looked at: {answer.reason}", "ask whoever may")


def _rights(cluster: ClusterApi, account: str, *, has_kuberay: bool) -> Finding:
    subject = f"rights of {account}"
    # In a pod of a run one is that account; from elsewhere one asks about it, which takes an administrator.
    of = "" if in_cluster() else account
    missing: list[str] = []
    for group, resource, verbs in RIGHTS:
        for verb in verbs if has_kuberay or group != "ray.io" else ():
            allowed = cluster.may(verb, group, resource, account=of)
            if allowed is None:
                who = f"system:serviceaccount:{cluster.namespace}:{account}"
                remedy = f"an administrator may: kubectl auth can-i create rayjobs.ray.io -n {cluster.namespace} --as {who}"
                return Finding(WARNING, subject, "you may not ask about them", remedy)
            if not allowed:
                missing.append(f"{verb} {resource}")
    if missing:
        return Finding(FAILURE, subject, f"it may not {', '.join(missing)}", f"the Role that grants it is in k8s/base/runs: {_OVERLAY}")
    return Finding(OK, subject, "all that a RayJob takes" if has_kuberay else "pods and their logs")


def _gpus(cluster: ClusterApi) -> Finding:
    answer = cluster.get("/api/v1/nodes")
    if not answer.ok:
        return Finding(WARNING, "gpus", f"nodes can't be looked at: {answer.reason}", "ask whoever may")
    nodes = [node for node in answer.body.get("items", []) if _is_ready(node)]
    counts = [int(node["status"].get("allocatable", {}).get(GPU, 0)) for node in nodes]
    with_gpus = sum(1 for count in counts if count)
    if not with_gpus:
        remedy = "steps with GPUs would wait for ever: add nodes with NVIDIA's device plugin, or leave train_gpus at 0"
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

"""Check that the cluster's nodes can run the project's image.

Only a node can tell: it pulls with its own credentials, over its own network. From here one sees which images the nodes
have; for anything else a pod must be started.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from components.cluster.cluster_api import ClusterApi
from pipelines.doctor.findings import FAILURE, OK, WARNING, Finding
from pipelines.doctor.pods import restricted_pod
from training.console import format_duration

_TRY_POD = "--pull-image starts a pod that tests it"
_PULL_SECONDS = 900.0
_POLL_SECONDS = 1.0


def check_image(cluster: ClusterApi, reference: str, *, account: str, in_pod: bool) -> Iterator[Finding]:
    """Check the image.

    Args:
        cluster: The cluster, in the namespace of runs.
        reference: The image.
        account: Service account of runs, whose credentials pull it.
        in_pod: Start a pod with it.
    """
    yield _check_in_pod(cluster, reference, account) if in_pod else _check_on_nodes(cluster, reference)


def _check_on_nodes(cluster: ClusterApi, reference: str) -> Finding:
    subject = f"image {reference}"
    nodes = cluster.get("/api/v1/nodes").body.get("items", [])
    num_having = sum(1 for node in nodes if not _image_names(node).isdisjoint(_names_on_nodes(reference)))
    if nodes and num_having == len(nodes):
        return Finding(OK, subject, f"is on {'the node' if len(nodes) == 1 else f'all {len(nodes)} nodes'}")
    if "/" in reference:  # without a registry's host it is Docker Hub's
        message = f"is on {num_having} of {len(nodes)} nodes; whether the others can pull it cannot be seen from here"
        return Finding(WARNING, subject, message, f"{_TRY_POD}; a private registry needs imagePullSecrets on the service account")
    if num_having:
        message = f"is on {num_having} of {len(nodes)} nodes, and names no registry"
        return Finding(WARNING, subject, message, f"load it into the others; {_TRY_POD}")
    remedy = (
        "on one machine 'kind load docker-image' loads it (k8s/README.md, step 2); else push it to a registry and set IDDPM_IMAGE; "
        f"a node lists 50 images only, so {_TRY_POD}"
    )
    if not nodes:
        return Finding(WARNING, subject, "names no registry, and the nodes cannot be seen", remedy)
    return Finding(FAILURE, subject, "is on no node, and names no registry", remedy)


def _registry(reference: str) -> str:
    """Return the registry's host in a reference; empty if it names none."""
    first, slash, _ = reference.partition("/")
    return first if slash and (set(".:") & set(first) or first == "localhost") else ""


def _names_on_nodes(reference: str) -> set[str]:
    """Return the names that a node may have for an image."""
    name, _, digest = reference.partition("@")
    path = name.removeprefix(f"{_registry(reference)}/")
    repository, _, tag = path.partition(":")
    short = f"{repository}@{digest}" if digest else f"{repository}:{tag or 'latest'}"
    hosts = (f"{_registry(reference)}/",) if _registry(reference) else ("", "localhost/", "docker.io/", "docker.io/library/")
    return {host + short for host in hosts}


def _image_names(node: Mapping[str, Any]) -> set[str]:
    return {name for each in node.get("status", {}).get("images", []) for name in each.get("names") or ()}


def _check_in_pod(cluster: ClusterApi, reference: str, account: str) -> Finding:
    subject, name = f"image {reference}", f"iddpm-doctor-{secrets.token_hex(4)}"
    path = f"/api/v1/namespaces/{cluster.namespace}/pods"
    created = cluster.post(path, restricted_pod(name, reference, account, seconds=int(_PULL_SECONDS) + 60))
    if not created.ok:
        remedy = "ask for the right to create pods there, or leave out --pull-image"
        return Finding(FAILURE, subject, f"a pod that tests it cannot be created: {created.reason}", remedy)
    began = time.monotonic()
    try:
        while time.monotonic() - began < _PULL_SECONDS:
            finding = _check_pod(subject, cluster.get(f"{path}/{name}").body, time.monotonic() - began)
            if finding is not None:
                return finding
            time.sleep(_POLL_SECONDS)
    finally:
        cluster.delete(f"{path}/{name}")
    message = f"a pod with it did not start within {format_duration(_PULL_SECONDS)}"
    return Finding(FAILURE, subject, message, f"'kubectl -n {cluster.namespace} get events' tells what it waits for")


def _check_pod(subject: str, pod: Any, seconds: float) -> Finding | None:
    """Judge the image by a pod's status; None while it is undecided. Only the end of the pod's command shows that the image runs."""
    status = pod.get("status", {})
    state: dict[str, Any] = next((each.get("state", {}) for each in status.get("containerStatuses", [])), {})
    node = pod.get("spec", {}).get("nodeName", "a node")
    ended, waiting = state.get("terminated"), state.get("waiting", {})
    reason, message = (str((ended or waiting).get(name) or "") for name in ("reason", "message"))
    message = " ".join(message.split())[:200]
    if ended and ended.get("exitCode"):
        remedy = "is it built for the processors of the nodes ('kubectl get nodes -L kubernetes.io/arch')? Build it with 'make image'"
        words = ": ".join(word for word in (reason, message) if word)
        return Finding(FAILURE, subject, f"{node} has it, but it does not run: {words} (exit code {ended['exitCode']})", remedy)
    if ended:
        return Finding(OK, subject, f"{node} has started a pod with it after {format_duration(seconds)}")
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        remedy = "is the reference right, and may the nodes pull it? A private registry needs imagePullSecrets on the service account"
        return Finding(FAILURE, subject, f"{node} cannot pull it: {message or reason}", remedy)
    if reason in ("CreateContainerConfigError", "CreateContainerError"):
        remedy = "build it with 'make image': it must not run as root"
        return Finding(FAILURE, subject, f"{node} cannot start it: {message or reason}", remedy)
    return None

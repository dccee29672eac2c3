"""Whether the cluster's nodes can run the project's image.

Only a node can tell for certain: it pulls with its own credentials, by its own way. From here it can be seen which
images nodes hold, and, where a registry lets anybody look, whether it has the image. For the rest a pod is started.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import urllib3

from components.cluster.cluster_api import ClusterApi
from components.cluster.proxies import pool_for
from pipelines.doctor.findings import FAILURE, OK, WARNING, Finding
from training.console import format_duration

_HUB = "docker.io"
_LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?")
_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_TRY_POD = "--pull-image starts a pod that tries it"
_SECONDS_TO_PULL = 900.0
_POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A reference, taken apart.

    Attributes:
        registry: Host of the registry; empty where none is named.
        repository: Path in it.
        version: Tag, or "sha256:...".
    """

    registry: str
    repository: str
    version: str

    @classmethod
    def of(cls, reference: str) -> Image:
        """Takes a reference apart as docker and Kubernetes do."""
        name, _, digest = reference.partition("@")
        first, slash, rest = name.partition("/")
        registry = first if slash and (set(".:") & set(first) or first == "localhost") else ""
        path = rest if registry else name
        repository, _, tag = path.partition(":")
        return cls(registry=registry, repository=repository, version=digest or tag or "latest")

    @property
    def names_on_nodes(self) -> frozenset[str]:
        """How a node may call it."""
        separator = "@" if self.version.startswith("sha256:") else ":"
        tail = f"{self.repository}{separator}{self.version}"
        hosts = (self.registry,) if self.registry else ("localhost", _HUB, f"{_HUB}/library")
        return frozenset(f"{host}/{tail}" for host in hosts) | ({tail} if not self.registry else frozenset())


def image_findings(cluster: ClusterApi, reference: str, *, account: str, in_pod: bool) -> Iterator[Finding]:
    """Looks for the image.

    Args:
        cluster: The cluster, seen from the namespace of runs.
        reference: The image.
        account: What runs' pods run as, with whose credentials they pull.
        in_pod: Whether to start a pod with it.
    """
    if in_pod:
        yield _pulled(cluster, reference, account)
        return
    subject, image = f"image {reference}", Image.of(reference)
    nodes = cluster.get("/api/v1/nodes").body.get("items", [])
    holding = [node for node in nodes if _holds(node, image)]
    if nodes and len(holding) == len(nodes):
        yield Finding(OK, subject, f"is on {'the node' if len(nodes) == 1 else f'all {len(nodes)} nodes'}")
    elif image.registry:
        yield _in_registry(subject, image)
    elif holding:
        yield Finding(
            WARNING, subject, f"is on {len(holding)} of {len(nodes)} nodes, and names no registry", f"load it into the others; {_TRY_POD}"
        )
    else:
        remedy = (
            "on one machine 'kind load docker-image' brings it (k8s/README.md, step 2); else push it and name it by IDDPM_IMAGE; "
            f"a node lists 50 images only, so {_TRY_POD}"
        )
        state = FAILURE if nodes else WARNING
        yield Finding(state, subject, f"is {'on no node' if nodes else 'not to be seen'}, and names no registry", remedy)


def _holds(node: dict[str, Any], image: Image) -> bool:
    names = {name for each in node.get("status", {}).get("images", []) for name in each.get("names") or ()}
    return bool(names & image.names_on_nodes)


# -- in the registry ---------------------------------------------------------------------------------------------------


def _in_registry(subject: str, image: Image) -> Finding:
    try:
        status = _manifest_status(image)
    except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
        told = f"registry {image.registry} can't be asked from here ({type(error).__name__}); nodes may have another way"
        return Finding(WARNING, subject, told, _TRY_POD)
    if status == 200:
        return Finding(OK, subject, f"is in {image.registry} for everybody to pull")
    if status == 404:
        return Finding(FAILURE, subject, f"registry {image.registry} has no such image", "push it, or put right IDDPM_IMAGE")
    if status in (401, 403):
        told = f"registry {image.registry} shows it to nobody without credentials; nodes need some"
        return Finding(WARNING, subject, told, f"give the service account of runs imagePullSecrets; {_TRY_POD}")
    return Finding(WARNING, subject, f"registry {image.registry} answers {status}", _TRY_POD)


def _manifest_status(image: Image) -> int:
    """What the registry answers when nobody in particular asks for the manifest."""
    host = "registry-1.docker.io" if image.registry == _HUB else image.registry
    scheme = "http" if _LOOPBACK.fullmatch(host) else "https"
    url, headers = f"{scheme}://{host}/v2/{image.repository}/manifests/{image.version}", {"Accept": _MANIFESTS}
    pool = pool_for(url, retries=1, timeout=urllib3.Timeout(connect=5, read=20))
    answer = pool.request("HEAD", url, headers=headers)
    challenge = answer.headers.get("WWW-Authenticate", "")
    if answer.status != 401 or not challenge.lower().startswith("bearer "):
        return answer.status
    # A registry gives a token for what is public to whoever asks.
    words = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = {"service": words.get("service", ""), "scope": words.get("scope", f"repository:{image.repository}:pull")}
    granted = pool.request("GET", f"{words['realm']}?{urlencode(query)}")
    if granted.status != 200:
        return 401
    told = json.loads(granted.data)
    return pool.request("HEAD", url, headers={**headers, "Authorization": f"Bearer {told.get('token') or told['access_token']}"}).status


# -- in a pod ----------------------------------------------------------------------------------------------------------


def _pulled(cluster: ClusterApi, reference: str, account: str) -> Finding:
    subject, name = f"image {reference}", f"iddpm-doctor-{secrets.token_hex(4)}"
    path = f"/api/v1/namespaces/{cluster.namespace}/pods"
    made = cluster.post(path, _pod(name, reference, account))
    if not made.ok:
        return Finding(
            FAILURE, subject, f"a pod to try it can't be made: {made.reason}", "ask whoever may make pods there, or leave --pull-image out"
        )
    began = time.monotonic()
    try:
        while time.monotonic() - began < _SECONDS_TO_PULL:
            finding = _seen(subject, cluster.get(f"{path}/{name}").body, time.monotonic() - began)
            if finding is not None:
                return finding
            time.sleep(_POLL_SECONDS)
    finally:
        cluster.delete(f"{path}/{name}")
    told = f"a pod with it did not start in {format_duration(_SECONDS_TO_PULL)}"
    return Finding(FAILURE, subject, told, "'kubectl get events' in the namespace says what it waits for")


def _seen(subject: str, pod: Any, seconds: float) -> Finding | None:
    """What a pod's status tells of its image; None while it tells nothing."""
    status = pod.get("status", {})
    state: dict[str, Any] = next((each.get("state", {}) for each in status.get("containerStatuses", [])), {})
    node = pod.get("spec", {}).get("nodeName", "a node")
    if "running" in state or "terminated" in state:
        return Finding(OK, subject, f"{node} has started a pod with it after {format_duration(seconds)}")
    waiting = state.get("waiting", {})
    reason, message = waiting.get("reason", ""), " ".join(waiting.get("message", "").split())[:200]
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        remedy = "is the reference right, and may the nodes pull it? A private registry takes imagePullSecrets on the service account"
        return Finding(FAILURE, subject, f"{node} can't pull it: {message or reason}", remedy)
    if reason in ("CreateContainerConfigError", "CreateContainerError"):
        return Finding(
            FAILURE, subject, f"{node} can't start it: {message or reason}", "'make image' builds it as nodes want it: not as root"
        )
    return None


def _pod(name: str, image: str, account: str) -> dict[str, Any]:
    amounts = {"cpu": "100m", "memory": "64Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "iddpm"}, "annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": int(_SECONDS_TO_PULL) + 60,
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

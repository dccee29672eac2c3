"""The Kubernetes API as the launcher of a RayJob needs it: few calls, each of which outlives a server's bad minutes.

The token of a pod is changed about every hour, API servers restart and load balancers drop connections, while a
training runs for days. So a call that a later try may help is tried again, with jitter, for as long as `patience` says.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from components.cluster.proxies import proxy_for
from components.cluster.rayjob_spec import GROUP, PLURAL, VERSION
from training.console import format_duration

T = TypeVar("T")

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT = (5.0, 30.0)
_DELETE_TIMEOUT = (2.0, 3.0)
_LONGEST_PAUSE = 15.0
_RETRIED = frozenset({401, 408, 429})


class KubernetesError(RuntimeError):
    """The API refused, or did not answer for too long; one line that names the remedy."""


def in_cluster() -> bool:
    """Whether this process runs in a pod, by the environment that Kubernetes gives every pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and not os.environ.get("KUBECONFIG")


def current_namespace() -> str:
    """The namespace of this pod, or of the current context of the kubeconfig; "default" where neither says."""
    if in_cluster():
        return _NAMESPACE_FILE.read_text().strip()
    _, context = config.list_kube_config_contexts(_kubeconfig())
    return str(context["context"].get("namespace") or "default")


class KubernetesApi:
    """One namespace of one cluster.

    Attributes:
        namespace: The namespace.
    """

    def __init__(self, namespace: str, *, patience_seconds: float = 900.0, first_pause_seconds: float = 0.5) -> None:
        """Connects by the pod's service account, or outside a cluster by the kubeconfig.

        Args:
            namespace: The namespace.
            patience_seconds: How long a call may go without an answer before it is given up.
            first_pause_seconds: Before the second try; each further pause is up to twice as long, at most 15 s.

        Raises:
            KubernetesError: There is neither a service account nor a kubeconfig.
        """
        self.namespace = namespace
        self._patience = patience_seconds
        self._first_pause = first_pause_seconds
        self._client = _connect()

    @property
    def identity(self) -> str:
        """Tells this namespace from every other's, of this cluster or another: a digest of its name, the API's address and its CA."""
        configuration = self._client.configuration
        authority = Path(configuration.ssl_ca_cert).read_bytes() if configuration.ssl_ca_cert else b""
        return hashlib.sha256(b"\n".join([configuration.host.encode(), self.namespace.encode(), authority])).hexdigest()[:12]

    # -- RayJobs -------------------------------------------------------------------------------------------------------

    def rayjob(self, name: str) -> dict[str, Any] | None:
        """The RayJob of that name, or None."""
        return self._call(
            f"read RayJob {name}",
            lambda api: _or_none(lambda: _rayjobs(api).get_namespaced_custom_object(*self._path, name, _request_timeout=_TIMEOUT)),
        )

    def rayjobs(self, selector: str) -> list[dict[str, Any]]:
        """The RayJobs with these labels; none where KubeRay is not installed."""
        found = self._call(
            "list RayJobs",
            lambda api: _or_none(
                lambda: _rayjobs(api).list_namespaced_custom_object(*self._path, label_selector=selector, _request_timeout=_TIMEOUT)
            ),
        )
        return list(found["items"]) if found else []

    def workflow(self, name: str) -> dict[str, Any] | None:
        """The Workflow of that name, which is a pipeline's run, or None."""
        path = ("argoproj.io", "v1alpha1", self.namespace, "workflows")
        return self._call(
            f"read Workflow {name}",
            lambda api: _or_none(lambda: _rayjobs(api).get_namespaced_custom_object(*path, name, _request_timeout=_TIMEOUT)),
        )

    def workflows(self, selector: str) -> list[dict[str, Any]]:
        """The Workflows with these labels."""
        path = ("argoproj.io", "v1alpha1", self.namespace, "workflows")
        found = self._call(
            "list Workflows",
            lambda api: _rayjobs(api).list_namespaced_custom_object(*path, label_selector=selector, _request_timeout=_TIMEOUT),
        )
        return list(found["items"])

    def create_rayjob(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Creates a RayJob.

        Returns:
            It, with its uid; None where one of the name exists, be it from an earlier try of this very call.

        Raises:
            KubernetesError: There is no KubeRay, or it refuses the manifest.
        """
        name = manifest["metadata"]["name"]

        def create(api: client.ApiClient) -> Any:
            try:
                return _rayjobs(api).create_namespaced_custom_object(*self._path, manifest, _request_timeout=_TIMEOUT)
            except ApiException as error:
                if error.status == 409:
                    return None
                if error.status == 404:
                    raise KubernetesError(
                        f"the cluster has no {PLURAL}.{GROUP}, or no namespace {self.namespace}; install KubeRay's operator (k8s/README.md)"
                    ) from error
                raise

        created: dict[str, Any] | None = self._call(f"create RayJob {name}", create)
        return created

    def delete_rayjob(self, name: str, uid: str) -> None:
        """Deletes the RayJob of that name and uid; one that is gone, or another of the same name, is left alone."""

        def delete(api: client.ApiClient) -> None:
            body = client.V1DeleteOptions(propagation_policy="Background", preconditions=client.V1Preconditions(uid=uid))
            try:
                _rayjobs(api).delete_namespaced_custom_object(*self._path, name, body=body, _request_timeout=_TIMEOUT)
            except ApiException as error:
                if error.status not in (404, 409):
                    raise

        self._call(f"delete RayJob {name}", delete)

    def prepared_delete(self, name: str) -> Callable[[], int]:
        """One DELETE, ready to be sent: what a signal handler calls with no time left for anything before it.

        It has a connection pool of its own, as the handler may interrupt the other one in the middle of a request.

        Returns:
            Sends it and returns the answer's status, 0 where there was none. It neither raises nor prints.
        """
        send = functools.partial(
            _rayjobs(_connect()).delete_namespaced_custom_object_with_http_info,
            *self._path,
            name,
            body=client.V1DeleteOptions(propagation_policy="Background"),
            _request_timeout=_DELETE_TIMEOUT,
        )

        def delete() -> int:
            try:
                return int(send()[1])
            except ApiException as error:
                return error.status or 0
            except (urllib3.exceptions.HTTPError, OSError):
                return 0

        return delete

    # -- pods ----------------------------------------------------------------------------------------------------------

    def pod(self, name: str) -> dict[str, Any] | None:
        """The pod of that name, or None."""
        return self._call(
            f"read pod {name}",
            lambda api: _or_none(
                lambda: api.sanitize_for_serialization(
                    client.CoreV1Api(api).read_namespaced_pod(name, self.namespace, _request_timeout=_TIMEOUT)
                )
            ),
        )

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """The pods with these labels."""

        def read(api: client.ApiClient) -> list[dict[str, Any]]:
            found = client.CoreV1Api(api).list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_TIMEOUT)
            return [api.sanitize_for_serialization(item) for item in found.items]

        return self._call(f"list pods {selector}", read)

    def log_lines(self, pod: str, container: str) -> Iterator[str]:
        """Lines of a container's log as they come, each behind its time stamp; ends with the container.

        Best effort: it raises whatever the connection does, and is not tried again here.
        """
        response = client.CoreV1Api(_connect()).read_namespaced_pod_log(
            pod, self.namespace, container=container, follow=True, timestamps=True, _preload_content=False, _request_timeout=(5.0, 300.0)
        )
        rest = b""
        try:
            for piece in response.stream(4096):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
        finally:
            response.close()
        if rest:
            yield rest.decode(errors="replace")

    # -- one call ------------------------------------------------------------------------------------------------------

    @property
    def _path(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, PLURAL

    def _call(self, what: str, send: Callable[[client.ApiClient], T]) -> T:
        failing_since: float | None = None
        pause = self._first_pause
        while True:
            try:
                return send(self._client)
            except ApiException as error:
                if error.status not in _RETRIED and not 500 <= (error.status or 0) < 600:
                    raise KubernetesError(_refusal(what, self.namespace, error)) from error
                told = f"it answered {error.status} {error.reason}"
                if error.status == 401:
                    self._client = _connect()  # the token has been changed since; the file, or the kubeconfig, has the new one
            except (urllib3.exceptions.HTTPError, OSError) as error:
                told = f"{type(error).__name__}"
            now = time.monotonic()
            failing_since = failing_since if failing_since is not None else now
            if now - failing_since > self._patience:
                raise KubernetesError(
                    f"the Kubernetes API did not {what} for {format_duration(now - failing_since)} ({told}); "
                    "a RayJob goes on without it, and the same command finds it again"
                )
            time.sleep(random.uniform(0.5, 1.0) * pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _kubeconfig() -> str:
    """Read when asked; the client library reads the variable once, when it is imported."""
    return os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())


def _kubeconfigs_proxy() -> str:
    """The `proxy-url` of the current context's cluster, which the client library leaves unread."""
    kubeconfig = config.kube_config.KubeConfigMerger(_kubeconfig()).config
    context = kubeconfig["contexts"].get_with_name(kubeconfig["current-context"])["context"]
    return str(kubeconfig["clusters"].get_with_name(context["cluster"])["cluster"].safe_get("proxy-url") or "")


def _rayjobs(api: client.ApiClient) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(api)


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def _connect() -> client.ApiClient:
    configuration = client.Configuration()
    try:
        if in_cluster():
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(_kubeconfig(), client_configuration=configuration)
    except config.ConfigException as error:
        raise KubernetesError(
            f"no cluster is known here: {error}; set KUBECONFIG, or run the step in a pod of the cluster (ray_mode=local needs none)"
        ) from error
    if not in_cluster():
        proxy = proxy_for(configuration.host, named=_kubeconfigs_proxy())
        if proxy:
            configuration.proxy, configuration.proxy_headers = proxy
    configuration.retries = 0  # tries are counted above, where it is known what may be said twice
    return client.ApiClient(configuration)


def _refusal(what: str, namespace: str, error: ApiException) -> str:
    if error.status == 403:
        return (
            f"this service account may not {what} in namespace {namespace} (403); "
            "k8s/base/runs has the Role that it needs, and k8s/README.md how to apply it"
        )
    message = str(error.body or error.reason)
    with contextlib.suppress(ValueError, AttributeError):
        message = json.loads(message).get("message", message)
    return f"the Kubernetes API refused to {what} ({error.status}): {' '.join(message.split())[:500]}"

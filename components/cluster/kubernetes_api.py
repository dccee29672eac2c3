"""The few calls of the Kubernetes API that steps and the reaper need; each outlasts an outage of the server.

The token of a pod is changed about every hour, API servers restart and load balancers drop connections, while a
training runs for days. So a call that failed for a reason that may pass is repeated, with jitter, for up to `patience_seconds`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from components.cluster.connection import KubernetesAwayError, KubernetesError, connect, in_cluster
from components.cluster.names import GROUP, PLURAL, VERSION
from training.config.errors import in_one_line
from training.console import format_duration, say
from training.storage.retry import retry

T = TypeVar("T")

_NO_ANSWER = (urllib3.exceptions.HTTPError, OSError)
_TIMEOUT = (5.0, 30.0)
_QUICK_TIMEOUT = (2.0, 3.0)
_LONGEST_PAUSE = 15.0
_PAGE = 25
"""Objects of one answer: the Workflow of a sweep may have 1 MiB, and the memory of a small pod must hold a page of them."""
_WORKFLOWS = ("argoproj.io", "v1alpha1", "workflows")
_RAYJOBS = (GROUP, VERSION, PLURAL)


class KubernetesApi:
    """One namespace of one cluster."""

    def __init__(self, namespace: str, *, patience_seconds: float = 900.0, first_pause_seconds: float = 0.5) -> None:
        """Connect by the pod's service account, or outside a cluster by the kubeconfig.

        Args:
            patience_seconds: How long a call may go without an answer before it fails.
            first_pause_seconds: Pause before the second try; each further pause is up to twice as long, at most 15 s.

        Raises:
            KubernetesError: There is neither a service account nor a kubeconfig.
        """
        self.namespace = namespace
        self._patience = patience_seconds
        self._first_pause = first_pause_seconds
        self._client = connect()

    @property
    def identity(self) -> str:
        """Digest that tells this namespace from every other, of this cluster or another: its name, the API's address and its CA."""
        configuration = self._client.configuration
        authority = Path(configuration.ssl_ca_cert).read_bytes() if configuration.ssl_ca_cert else b""
        return hashlib.sha256(b"\n".join([configuration.host.encode(), self.namespace.encode(), authority])).hexdigest()[:12]

    # -- RayJobs and Workflows -----------------------------------------------------------------------------------------

    def rayjob(self, name: str) -> dict[str, Any] | None:
        """Return the RayJob of that name, or None."""
        return self._read(f"read RayJob {name}", _RAYJOBS, name)

    def rayjobs(self, selector: str) -> list[dict[str, Any]]:
        """Return the RayJobs with these labels; none where KubeRay is not installed."""
        return list(self._list("list RayJobs", _RAYJOBS, selector))

    def workflow(self, name: str) -> dict[str, Any] | None:
        """Return the Workflow of that name, which is a pipeline's run, or None."""
        return self._read(f"read Workflow {name}", _WORKFLOWS, name)

    def workflows(self, selector: str) -> Iterator[dict[str, Any]]:
        """Yield the Workflows with these labels, a page in memory at a time: each has 0.1 to 1 MB."""
        return self._list("list Workflows", _WORKFLOWS, selector, required=True)

    def label_workflow(self, name: str, label: str) -> None:
        """Set a label of a Workflow to "true"; do nothing if the Workflow is gone."""

        def patch(api: client.ApiClient) -> Any:
            body = {"metadata": {"labels": {label: "true"}}}
            return client.CustomObjectsApi(api).patch_namespaced_custom_object(
                *self._path(_WORKFLOWS), name, body, _request_timeout=_TIMEOUT
            )

        self._call(f"label Workflow {name}", _none_for(patch, 404))

    # -- Kueue ---------------------------------------------------------------------------------------------------------

    def queue_problem(self, queue: str) -> str:
        """Return why a job in this queue would wait for ever; empty if the queue is there, or can't be asked for."""
        try:
            version = self._kueue_version()
            if not version:
                return f"queue {queue!r} needs Kueue, which this cluster does not have; leave queue out"
            if self._read(f"read LocalQueue {queue}", ("kueue.x-k8s.io", version, "localqueues"), queue) is None:
                listing = f"'kubectl -n {self.namespace} get localqueues' lists them"
                return f"there is no LocalQueue {queue!r} in namespace {self.namespace}; {listing}"
        except KubernetesError as error:
            say(f"{error}; queue {queue} is not checked")
        return ""

    def queue_reasons(self, uid: str) -> list[str]:
        """Return what the job of that uid waits for in its queue, in Kueue's words."""
        try:
            kind = ("kueue.x-k8s.io", self._kueue_version(), "workloads")
            workloads = list(self._list("list Workloads", kind, f"kueue.x-k8s.io/job-uid={uid}"))
        except KubernetesError:
            return []
        return [
            f"queue: {in_one_line(condition['message'], 300)}"
            for workload in workloads
            for condition in (workload.get("status") or {}).get("conditions") or ()
            if condition["status"] == "False" and condition.get("message")
        ]

    def _kueue_version(self) -> str:
        """Return the version of Kueue's API; empty where Kueue is not installed."""

        def read(api: client.ApiClient) -> Any:
            return api.call_api(
                "/apis/kueue.x-k8s.io",
                "GET",
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT,
            )

        group = self._call("look for Kueue", _none_for(read, 404))
        return str(group["preferredVersion"]["version"]) if group else ""

    # -- RayJobs -------------------------------------------------------------------------------------------------------

    def create_rayjob(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create a RayJob.

        Returns:
            The RayJob, with its uid; None if one of that name exists, perhaps from an earlier try of this call.

        Raises:
            KubernetesError: There is no KubeRay, or it refuses the manifest.
        """

        def create(api: client.ApiClient) -> Any:
            try:
                return client.CustomObjectsApi(api).create_namespaced_custom_object(
                    *self._path(_RAYJOBS), manifest, _request_timeout=_TIMEOUT
                )
            except ApiException as error:
                if error.status == 404:
                    raise KubernetesError(
                        f"the cluster has no {PLURAL}.{GROUP}, or no namespace {self.namespace}; install KubeRay's operator (k8s/README.md)"
                    ) from error
                raise

        created: dict[str, Any] | None = self._call(f"create RayJob {manifest['metadata']['name']}", _none_for(create, 409))
        return created

    def delete_rayjob(self, name: str, uid: str) -> None:
        """Delete the RayJob of that name and uid; do nothing if it is gone, or if another has the name."""

        def delete(api: client.ApiClient) -> Any:
            return client.CustomObjectsApi(api).delete_namespaced_custom_object(
                *self._path(_RAYJOBS), name, body=_delete_options(uid), _request_timeout=_TIMEOUT
            )

        self._call(f"delete RayJob {name}", _none_for(delete, 404, 409))

    # -- pods ----------------------------------------------------------------------------------------------------------

    def pod(self, name: str) -> dict[str, Any] | None:
        """Return the pod of that name, or None."""

        def read(api: client.ApiClient) -> Any:
            return api.sanitize_for_serialization(
                client.CoreV1Api(api).read_namespaced_pod(name, self.namespace, _request_timeout=_TIMEOUT)
            )

        return self._call(f"read pod {name}", _none_for(read, 404))

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Return the pods with these labels."""

        def read(api: client.ApiClient) -> list[dict[str, Any]]:
            found = client.CoreV1Api(api).list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_TIMEOUT)
            return [api.sanitize_for_serialization(item) for item in found.items]

        return self._call(f"list pods {selector}", read)

    def log_tail(self, pod: str) -> str:
        """Return the last 200 lines of the log of a step's pod; empty if there is none, or it can't be read."""
        try:
            response = client.CoreV1Api(self._client).read_namespaced_pod_log(
                pod, self.namespace, container="main", tail_lines=200, _preload_content=False, _request_timeout=_TIMEOUT
            )
            with contextlib.closing(response):
                return str(response.data.decode(errors="replace"))  # the client itself raises where a log is not UTF-8
        except (ApiException, *_NO_ANSWER):
            return ""

    def log_lines(self, pod: str, container: str, *, since_seconds: int | None = None) -> Iterator[str]:
        """Yield the lines of a container's log as they come, each after its time stamp, until the container ends.

        Args:
            since_seconds: How old the first line may be; None begins with the log's first line.

        Raises:
            KubernetesError: The connection broke, or there is no log; it is not tried again here.
        """
        since = {} if since_seconds is None else {"since_seconds": since_seconds}
        try:
            response = client.CoreV1Api(connect()).read_namespaced_pod_log(
                pod,
                self.namespace,
                container=container,
                follow=True,
                timestamps=True,
                **since,
                _preload_content=False,
                _request_timeout=(5.0, 300.0),
            )
            rest = b""
            with contextlib.closing(response):
                for piece in response.stream(4096):
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        yield line.decode(errors="replace")
        except (ApiException, *_NO_ANSWER) as error:
            raise KubernetesError(f"the log of pod {pod} broke off: {type(error).__name__}") from error
        if rest:
            yield rest.decode(errors="replace")

    # -- one call ------------------------------------------------------------------------------------------------------

    def _path(self, kind: tuple[str, str, str]) -> tuple[str, str, str, str]:
        group, version, plural = kind
        return group, version, self.namespace, plural

    def _read(self, what: str, kind: tuple[str, str, str], name: str) -> dict[str, Any] | None:
        def read(api: client.ApiClient) -> Any:
            return client.CustomObjectsApi(api).get_namespaced_custom_object(*self._path(kind), name, _request_timeout=_TIMEOUT)

        return self._call(what, _none_for(read, 404))

    def _list(self, what: str, kind: tuple[str, str, str], selector: str, *, required: bool = False) -> Iterator[dict[str, Any]]:
        token, seen = "", set[str]()

        def read(api: client.ApiClient) -> Any:
            return client.CustomObjectsApi(api).list_namespaced_custom_object(
                *self._path(kind), label_selector=selector, limit=_PAGE, _continue=token, _request_timeout=_TIMEOUT
            )

        while True:
            # The token expires after some minutes, which the work on a page may take (410): then the list begins again.
            statuses = (() if required else (404,)) + ((410,) if token else ())
            found = self._call(what, _none_for(read, *statuses))
            is_expired = bool(token) and found is None
            for item in found["items"] if found else ():
                if item["metadata"]["name"] not in seen:
                    seen.add(item["metadata"]["name"])
                    yield item
            token = ((found or {}).get("metadata") or {}).get("continue") or ""
            if not token and not is_expired:
                return

    def _call(self, what: str, send: Callable[[client.ApiClient], T]) -> T:
        try:
            return retry(
                lambda: self._send(send),
                seconds=self._patience,
                pause_seconds=self._first_pause,
                max_pause_seconds=_LONGEST_PAUSE,
                is_transient=_may_pass,
                report=lambda error: say(
                    f"the Kubernetes API did not {what}: {_answer(error)}; trying again for {format_duration(self._patience)}"
                ),
            )
        except (ApiException, *_NO_ANSWER) as error:
            if not _may_pass(error):
                raise KubernetesError(_refusal(what, self.namespace, error)) from error
            answer = _answer(error) if isinstance(error, ApiException) else type(error).__name__
            raise KubernetesAwayError(f"the Kubernetes API did not {what} for {format_duration(self._patience)} ({answer})") from error

    def _send(self, send: Callable[[client.ApiClient], T]) -> T:
        try:
            return send(self._client)
        except ApiException as error:
            if error.status != 401:
                raise
            self._client = connect()  # the token has changed; its file, or the kubeconfig, has the new one
            return send(self._client)


class QuickRequests:
    """Requests with short timeouts, sent once, on a connection of their own: a signal may have interrupted a request on the other one.

    None of them raises or prints. They return the status of the answer, 0 if there was none.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._api = client.CustomObjectsApi(connect())

    def workflow(self, name: str) -> tuple[int, dict[str, Any]]:
        """Return the status, and the Workflow of that name if the status is 200."""
        return self._get(_WORKFLOWS, name)

    def rayjob(self, name: str) -> tuple[int, dict[str, Any]]:
        """Return the status, and the RayJob of that name if the status is 200."""
        return self._get(_RAYJOBS, name)

    def delete_rayjob(self, name: str, uid: str) -> int:
        """Delete the RayJob of that name and uid, and return the status: 404 if another RayJob has the name by now."""
        send, (group, version, plural) = self._api.delete_namespaced_custom_object_with_http_info, _RAYJOBS
        status, _ = self._send(send, group, version, self._namespace, plural, name, body=_delete_options(uid))
        return 404 if status == 409 else status

    def _get(self, kind: tuple[str, str, str], name: str) -> tuple[int, dict[str, Any]]:
        group, version, plural = kind
        return self._send(self._api.get_namespaced_custom_object_with_http_info, group, version, self._namespace, plural, name)

    def _send(self, send: Callable[..., Any], *path: str, **options: Any) -> tuple[int, dict[str, Any]]:
        try:
            answer = send(*path, _request_timeout=_QUICK_TIMEOUT, **options)
        except ApiException as error:
            return error.status or 0, {}
        except _NO_ANSWER:
            return 0, {}
        return int(answer[1]), answer[0]


def _may_pass(error: BaseException) -> bool:
    """Return True for no answer and for a server error, and in a pod for a 401. Any other refusal is final.

    While the API server is away, the kubelet can't renew a pod's token, and does so up to two minutes after the server's return. A server
    that can't look up the account answers 401 too.
    """
    if isinstance(error, ApiException):
        return error.status in (408, 429) or (error.status == 401 and in_cluster()) or 500 <= (error.status or 0) < 600
    return isinstance(error, _NO_ANSWER)


def _delete_options(uid: str) -> client.V1DeleteOptions:
    return client.V1DeleteOptions(propagation_policy="Background", preconditions=client.V1Preconditions(uid=uid))


def _none_for(send: Callable[[client.ApiClient], T], *statuses: int) -> Callable[[client.ApiClient], T | None]:
    """Return a request that returns None where the answer has one of these statuses."""

    def send_it(api: client.ApiClient) -> T | None:
        try:
            return send(api)
        except ApiException as error:
            if error.status in statuses:
                return None
            raise

    return send_it


def _answer(error: BaseException) -> str:
    return f"it answered {error.status}: {_words(error)}" if isinstance(error, ApiException) else in_one_line(error)


def _words(error: ApiException) -> str:
    """Return the server's words, or where it has none, as a proxy with a page of its own, the beginning of its answer."""
    message = ""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        message = json.loads(error.body or "").get("message")
    return in_one_line(message or error.body or error.reason, 500)


def _refusal(what: str, namespace: str, error: Any) -> str:
    words = _words(error)
    if error.status == 403 and re.search(r"cannot \S+ resource", words):  # a quota or an admission webhook refuses with 403 too
        return (
            f"this service account may not {what} in namespace {namespace} (403); "
            "k8s/base/runs has the Role that it needs, and k8s/README.md how to apply it"
        )
    remedy = "; log in again, or renew the kubeconfig's token" if error.status == 401 else ""
    return f"the Kubernetes API refused to {what} ({error.status}): {words}{remedy}"

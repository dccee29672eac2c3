"""What can be seen of a cluster, and asked of it once: for looking around, where a refusal is an answer and not an error.

`components.cluster.kubernetes_api` goes on through a server's bad minutes, as a training must; here a person waits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException

from components.cluster.kubernetes_api import KubernetesApi, KubernetesError

_TIMEOUT = (5.0, 15.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the API said.

    Attributes:
        status: HTTP's, or 0 where there was no answer.
        body: The object, or of a refusal nothing.
        reason: One line: why not.
    """

    status: int
    body: Mapping[str, Any]
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the object is there."""
        return 200 <= self.status < 300


class ClusterApi(KubernetesApi):
    """One cluster, seen from one namespace.

    Raises:
        KubernetesError: There is neither a service account nor a kubeconfig.
    """

    @property
    def server(self) -> str:
        """Address of the API server."""
        return str(self._client.configuration.host)

    def get(self, path: str, **query: str) -> Answer:
        """The object or list at an API path like "/api/v1/nodes"."""
        return self._ask("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Creates an object."""
        return self._ask("POST", path, body=body)

    def delete(self, path: str) -> Answer:
        """Deletes an object, at once."""
        return self._ask("DELETE", path, body={"gracePeriodSeconds": 0})

    def may(self, verb: str, group: str, resource: str, *, account: str = "") -> bool | None:
        """Whether something is allowed in the namespace; None where that may not even be asked.

        Args:
            verb: Like "create".
            group: API group; "" is the core.
            resource: Like "rayjobs", or "pods/log".
            account: Of which service account of the namespace; empty asks about the caller.
        """
        name, _, subresource = resource.partition("/")
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource}
        spec: dict[str, Any] = {"resourceAttributes": attributes}
        kind = "SelfSubjectAccessReview"
        if account:
            kind = "SubjectAccessReview"
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
            spec |= {"user": f"system:serviceaccount:{self.namespace}:{account}", "groups": groups}
        path = f"/apis/authorization.k8s.io/v1/{kind.lower()}s"
        answer = self.post(path, {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec})
        return bool(answer.body.get("status", {}).get("allowed")) if answer.ok else None

    def log_tail(self, pod: str, *, container: str = "main", num_lines: int = 200) -> str:
        """The last lines of a container's log; empty where there is none to be had."""
        try:
            return str(
                client.CoreV1Api(self._client).read_namespaced_pod_log(
                    pod, self.namespace, container=container, tail_lines=num_lines, _request_timeout=_TIMEOUT
                )
            )
        except (ApiException, urllib3.exceptions.HTTPError, OSError):
            return ""

    def _ask(self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None) -> Answer:
        try:
            answered = self._client.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=False,
                _request_timeout=_TIMEOUT,
            )
        except ApiException as error:
            return Answer(status=error.status or 0, body={}, reason=_reason(error))
        except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
            return Answer(status=0, body={}, reason=_no_answer(error))
        return Answer(status=int(answered[1]), body=answered[0] or {})


def connect(namespace: str) -> ClusterApi:
    """The cluster of this pod, or of the kubeconfig's current context.

    Raises:
        KubernetesError: There is none, or the kubeconfig can't be read.
    """
    try:
        return ClusterApi(namespace)
    except KubernetesError:
        raise
    except Exception as error:  # a broken kubeconfig fails in as many ways as YAML and certificates can be broken
        raise KubernetesError(f"the kubeconfig can't be used: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _reason(error: ApiException) -> str:
    try:
        message = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        message = error.reason or "no reason given"
    return f"{' '.join(str(message).split())[:300]} ({error.status})"


def _no_answer(error: BaseException) -> str:
    cause: Any = getattr(error, "reason", None) or error
    return " ".join(str(cause).split())[:300] or type(error).__name__

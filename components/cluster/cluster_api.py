"""The Kubernetes API for diagnosis: each request is sent once, and a refusal is a result and not an error.

`components.cluster.kubernetes_api` waits for a server that is away, as a training must; here a person waits for the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException

from components.cluster.kubernetes_api import KubernetesApi
from training.config.errors import in_one_line

_TIMEOUT = (5.0, 15.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """A response of the API.

    Attributes:
        status: HTTP status, or 0 where there was no answer.
        body: The object; empty for a refusal.
        reason: Why there is no object, in one line.
    """

    status: int
    body: Mapping[str, Any]
    reason: str = ""

    @property
    def ok(self) -> bool:
        """True if the object is there."""
        return 200 <= self.status < 300


class ClusterApi(KubernetesApi):
    """One cluster, seen from one namespace."""

    @property
    def server(self) -> str:
        """Address of the API server."""
        return str(self._client.configuration.host)

    def get(self, path: str, **query: str) -> Response:
        """Get the object or list at an API path like "/api/v1/nodes"."""
        return self._request("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any], *, dry_run: bool = False) -> Response:
        """Create an object; in a dry run only say what admission would make of it."""
        return self._request("POST", path, query={"dryRun": "All"} if dry_run else {}, body=body)

    def delete(self, path: str) -> Response:
        """Delete an object, at once."""
        return self._request("DELETE", path, body={"gracePeriodSeconds": 0})

    def caller(self) -> str:
        """Return who asks, as the API knows it, like "system:serviceaccount:kubeflow:pipeline-runner"; empty if it does not say."""
        kind = "SelfSubjectReview"
        response = self.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", {"apiVersion": "authentication.k8s.io/v1", "kind": kind})
        return str(response.body.get("status", {}).get("userInfo", {}).get("username", ""))

    def may(self, verb: str, group: str, resource: str, *, account: str = "") -> bool | None:
        """Return whether an action is allowed in the namespace; None if the review itself is refused.

        Args:
            verb: Like "create".
            group: API group; "" is the core.
            resource: Like "rayjobs", or "pods/log".
            account: Service account of the namespace; empty is the caller.
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
        response = self.post(path, {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec})
        return bool(response.body.get("status", {}).get("allowed")) if response.ok else None

    def _request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> Response:
        try:
            response = self._client.call_api(
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
            return Response(status=error.status or 0, body={}, reason=_reason(error))
        except (urllib3.exceptions.HTTPError, OSError, ConfigException) as error:
            return Response(status=0, body={}, reason=_no_answer(error))
        return Response(status=int(response[1]), body=response[0] or {})


def _reason(error: ApiException) -> str:
    try:
        message = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        message = error.reason or "no reason given"
    return f"{in_one_line(message, 300)} ({error.status})"


def _no_answer(error: BaseException) -> str:
    return in_one_line(getattr(error, "reason", None) or error, 300) or type(error).__name__

"""Check that network policies let pods out to S3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from pipelines.doctor.findings import OK, WARNING, Finding
from pipelines.doctor.platform import SERVICES_NAMESPACE
from pipelines.doctor.scope import Scope
from training.config.addresses import is_cluster_internal

_RAY = {
    "app.kubernetes.io/managed-by": "iddpm",
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/created-by": "kuberay-operator",
}
_MLFLOW = {"app.kubernetes.io/name": "mlflow"}


def check_s3_port(scope: Scope) -> Iterator[Finding]:
    """Check that policies admit the port of an S3 outside the cluster, for Ray's pods and MLflow.

    Nothing is said of an S3 inside the cluster: policies name the port of its pods, and the port of its Service may be another. Policies
    that can't be read are left out, and so are kinds that only one plugin knows.
    """
    endpoint = scope.environment.get("AWS_ENDPOINT_URL", "")
    try:
        split = urlsplit(endpoint)
        host, port = split.hostname or "", split.port or (80 if split.scheme == "http" else 443)
    except ValueError:
        return  # the check of the bucket reports a malformed address
    if is_cluster_internal(endpoint) or not any(sign in host for sign in ".:"):
        return
    runs = scope.cluster.namespace
    for who, namespace, labels, file in (
        ("Ray's pods", runs, _RAY, "k8s/base/runs/network.yaml"),
        ("MLflow", SERVICES_NAMESPACE, _MLFLOW, "k8s/components/cluster/network.yaml"),
    ):
        answer = scope.cluster.get(f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
        policies = [spec for each in answer.body.get("items", []) if _limits_egress(spec := each["spec"], labels)]
        if not policies:
            continue
        subject = f"port of s3 for {who}"
        if any(_admits(rule, port) for spec in policies for rule in spec.get("egress") or ()):
            yield Finding(OK, subject, f"network policies admit {port}")
        else:
            message = f"no network policy of namespace {namespace} admits {port} of {host}: where policies are enforced S3 is out of reach"
            yield Finding(WARNING, subject, message, f"add the port to the egress in {file}, and apply your overlay again")


def _limits_egress(spec: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    types = spec.get("policyTypes") or (["Egress"] if spec.get("egress") else [])
    selector = spec.get("podSelector") or {}
    named = (selector.get("matchLabels") or {}).items() <= labels.items()
    return "Egress" in types and named and all(_holds(each, labels) for each in selector.get("matchExpressions") or ())


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (key in labels) is (operator == "Exists")
    return (labels.get(key) in expression["values"]) is (operator == "In")


def _admits(rule: Mapping[str, Any], port: int) -> bool:
    """True if a rule for egress admits a TCP port of an address outside the cluster. Selectors of pods admit none."""
    peers, ports = rule.get("to") or (), rule.get("ports") or ()
    return (not peers or any("ipBlock" in peer for peer in peers)) and (not ports or any(_includes(each, port) for each in ports))


def _includes(entry: Mapping[str, Any], port: int) -> bool:
    first = entry.get("port", 0)  # without one it is any port; a name is that of a pod's port
    if entry.get("protocol", "TCP") != "TCP" or not isinstance(first, int):
        return False
    return not first or first <= port <= entry.get("endPort", first)

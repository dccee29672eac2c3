"""Check the secrets and config maps from which the pods of runs take their environment, as the compiled pipelines name them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from components.cluster.cluster_api import ClusterApi
from pipelines.doctor.findings import FAILURE, OK, WARNING, Finding

_KINDS = {
    "config map": ("configMapAsEnv", "configMapKey", "configMapName", "configmaps"),
    "secret": ("secretAsEnv", "secretKey", "secretName", "secrets"),
}
"""Kind -> its field in an executor's specification, the fields of a key and of the name, and its path in the API."""
_REMEDIES = {
    "secret": "create it (k8s/README.md, step 5)",
    "config map": "'kubectl apply -k' of your overlay creates it (k8s/README.md, step 6)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentSource:
    """A secret or config map whose values become environment variables.

    Attributes:
        kind: "secret" or "config map".
        name: Its name.
        variables: Key -> variable.
        optional: True if a pod starts without it.
        more: Key -> variable, for keys that it may lack.
    """

    kind: str
    name: str
    variables: Mapping[str, str]
    optional: bool
    more: Mapping[str, str] = field(default_factory=dict)


def find_sources(platforms: Iterable[Mapping[str, Any]]) -> list[EnvironmentSource]:
    """Return the sources that the steps of pipelines use, each once.

    Args:
        platforms: The pipelines' platform specifications.
    """
    found: dict[tuple[str, str], EnvironmentSource] = {}
    for platform in platforms:
        for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            for kind, (entries, key, name, _) in _KINDS.items():
                for each in executor.get(entries, ()):
                    # A step exports MLflow's variables without their prefix, see `training.tracking.client`.
                    variables = {
                        entry[key]: entry["envVar"].replace("IDDPM_MLFLOW_TRACKING", "MLFLOW_TRACKING") for entry in each["keyToEnv"]
                    }
                    optional = bool(each.get("optional"))
                    source = EnvironmentSource(kind=kind, name=each[name], variables=variables, optional=optional)
                    first = found.setdefault((kind, source.name), source)
                    if variables != first.variables:  # a second entry of a source has keys that it may lack
                        found[kind, source.name] = replace(first, more={**first.more, **variables})
    return [found[key] for key in sorted(found)]


def check_sources(cluster: ClusterApi, sources: Sequence[EnvironmentSource], environment: dict[str, str]) -> Iterator[Finding]:
    """Check each source, and add the variables that it sets to `environment`."""
    for source in sources:
        yield _check(cluster, source, environment)


def _check(cluster: ClusterApi, source: EnvironmentSource, environment: dict[str, str]) -> Finding:
    subject, remedy = f"{source.kind} {source.name}", _REMEDIES[source.kind]
    response = cluster.get(f"/api/v1/namespaces/{cluster.namespace}/{_KINDS[source.kind][-1]}/{source.name}")
    if response.status == 404 and source.optional:
        return Finding(OK, subject, f"does not exist and is optional: it would set {', '.join(sorted(source.variables.values()))}")
    if response.status == 404:
        return Finding(FAILURE, subject, f"is missing in namespace {cluster.namespace}; no step of a run would start", remedy)
    if not response.ok:
        remedy = "ask for the right to read it, or go on without: the first step of a run would fail at once and name the problem"
        return Finding(WARNING, subject, f"cannot be read: {response.reason}", remedy)
    data = response.body.get("data") or {}
    values = {key: _decoded(data.get(key, ""), source.kind) for key in source.variables}
    empty = [key for key, value in values.items() if not value]
    if empty:
        return Finding(FAILURE, subject, f"has no {', '.join(empty)} in namespace {cluster.namespace}", remedy)
    more = {key: _decoded(data[key], source.kind) for key in source.more if data.get(key)}
    environment.update({source.variables[key]: value for key, value in values.items()})
    environment.update({source.more[key]: value for key, value in more.items()})
    padded = [key for key, value in {**values, **more}.items() if value != value.strip()]
    if padded:
        remedy = "create it again without; a value read from a file often ends with a line break ('echo -n' writes none)"
        return Finding(FAILURE, subject, f"has white space around {', '.join(padded)}", remedy)
    return Finding(OK, subject, f"has {', '.join(sorted(values))}")


def _decoded(text: str, kind: str) -> str:
    return base64.b64decode(text).decode(errors="replace") if kind == "secret" else text

"""What the pods of runs take from their namespace, as the compiled pipelines say it, and whether it is there."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.cluster.cluster_api import ClusterApi
from pipelines.doctor.findings import FAILURE, OK, WARNING, Finding


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """An object whose values become environment variables.

    Attributes:
        kind: "secret" or "config map".
        name: Its name.
        keys: Key -> variable.
        optional: Whether a pod starts without it.
    """

    kind: str
    name: str
    keys: Mapping[str, str]
    optional: bool

    @property
    def resource(self) -> str:
        """In the API's paths."""
        return "secrets" if self.kind == "secret" else "configmaps"


@dataclass(frozen=True, slots=True)
class Needs:
    """All that pipelines take.

    Attributes:
        objects: Each once.
    """

    objects: tuple[Needed, ...]

    @property
    def variables(self) -> frozenset[str]:
        """What they set."""
        return frozenset(variable for each in self.objects for variable in each.keys.values())


def needs_of(platforms: Iterable[Mapping[str, Any]]) -> Needs:
    """What the executors in these pipelines' platform specifications take."""
    found: dict[tuple[str, str], Needed] = {}
    parts = [platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"] for platform in platforms]
    for executor in (executor for executors in parts for executor in executors.values()):
        for kind, where, key, name in (
            ("config map", "configMapAsEnv", "configMapKey", "configMapName"),
            ("secret", "secretAsEnv", "secretKey", "secretName"),
        ):
            for each in executor.get(where, ()):
                keys = {entry[key]: entry["envVar"] for entry in each["keyToEnv"]}
                found[kind, each[name]] = Needed(kind=kind, name=each[name], keys=keys, optional=bool(each.get("optional")))
    return Needs(tuple(found[key] for key in sorted(found)))


def object_findings(cluster: ClusterApi, needs: Needs, settings: dict[str, str]) -> Iterator[Finding]:
    """Looks at each object, and puts the variables that it sets into `settings`."""
    for needed in needs.objects:
        yield _object(cluster, needed, settings)


def _object(cluster: ClusterApi, needed: Needed, settings: dict[str, str]) -> Finding:
    subject = f"{needed.kind} {needed.name}"
    answer = cluster.get(f"/api/v1/namespaces/{cluster.namespace}/{needed.resource}/{needed.name}")
    how = (
        "k8s/README.md, step 5, makes it"
        if needed.kind == "secret"
        else "'kubectl apply -k' of your overlay makes it (k8s/README.md, step 6)"
    )
    if answer.status == 404:
        if needed.optional:
            return Finding(OK, subject, f"is not there, and need not be: it would set {', '.join(sorted(needed.keys.values()))}")
        return Finding(FAILURE, subject, f"is missing in namespace {cluster.namespace}; no step of a run would start", how)
    if not answer.ok:
        remedy = "ask whoever may read it, or go on without: a run's first step would fail at once and say so"
        return Finding(WARNING, subject, f"can't be looked at: {answer.reason}", remedy)
    data = answer.body.get("data") or {}
    values = {key: _value(data.get(key, ""), needed.kind) for key in needed.keys}
    empty = [key for key, value in values.items() if not value]
    if empty:
        return Finding(FAILURE, subject, f"has no {', '.join(empty)} in namespace {cluster.namespace}", how)
    settings.update({needed.keys[key]: value for key, value in values.items()})
    spaced = [key for key, value in values.items() if value != value.strip()]
    if spaced:
        remedy = "make it anew without; a line's end creeps in where a file is read ('echo -n')"
        return Finding(FAILURE, subject, f"has space around {', '.join(spaced)}", remedy)
    return Finding(OK, subject, f"has {', '.join(sorted(values))}")


def _value(text: str, kind: str) -> str:
    return base64.b64decode(text).decode(errors="replace") if kind == "secret" else text

"""The scope of an examination, and the form of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from components.cluster.cluster_api import ClusterApi
from components.launch.resources import StageResources
from pipelines.client.connection import Connection
from pipelines.doctor.findings import Finding
from pipelines.doctor.pod_environment import EnvironmentSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """The things that one examination looks at.

    Attributes:
        cluster: The cluster, in the namespace of runs.
        connection: Connection to KFP.
        account: Service account of runs.
        resources: Resources of the run's stages, by stage.
        sources: Secrets and config maps that its pods read.
        environment: Variables of its pods; the check of the sources fills it.
        image: The project's image.
        pull_image: Start a pod with it.
    """

    cluster: ClusterApi
    connection: Connection
    account: str
    resources: Mapping[str, StageResources]
    sources: Sequence[EnvironmentSource]
    environment: dict[str, str] = field(default_factory=dict)
    image: str
    pull_image: bool


class Check(NamedTuple):
    """A check: its name, the remedy where a finding has none of its own, and the function that asks."""

    name: str
    remedy: str
    ask: Callable[[Scope], Iterator[Finding]]

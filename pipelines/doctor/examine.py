"""Whether a cluster has all that a run needs, and whether it can be reached from here.

What can be looked at is looked at: without a kubeconfig that is one failure, and the services are tried all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from components.cluster.cluster_api import ClusterApi, connect
from components.cluster.kubernetes_api import KubernetesError
from components.container.image import BASE_IMAGE
from pipelines.client.arguments import compiled_pipeline
from pipelines.client.connection import Connection
from pipelines.compile import PIPELINES
from pipelines.doctor.cluster import cluster_findings, is_answering
from pipelines.doctor.findings import FAILURE, Finding
from pipelines.doctor.image import image_findings
from pipelines.doctor.needs import Needs, needs_of, object_findings
from pipelines.doctor.route import Way
from pipelines.doctor.services import bucket_findings, kfp_findings, mlflow_findings


def examine(
    connection: Connection,
    *,
    runs_namespace: str,
    service_account: str,
    bucket: str,
    pull_image: bool,
    watch: Callable[[Finding], None],
) -> list[Finding]:
    """Looks at everything.

    Args:
        connection: The way to KFP; its `port_forward` also opens the ways to S3 and MLflow inside the cluster.
        runs_namespace: Where the pods of runs are.
        service_account: What they run as.
        bucket: Where runs are kept.
        pull_image: Whether to start a pod with the project's image.
        watch: Is given each finding as it is made.
    """
    found: list[Finding] = []
    for finding in _looks(connection, runs_namespace, service_account, bucket, pull_image):
        watch(finding)
        found.append(finding)
    return found


def _looks(connection: Connection, namespace: str, account: str, bucket: str, pull_image: bool) -> Iterator[Finding]:
    needs = needs_of(compiled_pipeline(name).platform for name in PIPELINES)
    cluster, finding = _cluster(namespace)
    yield finding
    settings: dict[str, str] = {}
    if cluster is not None:
        yield from cluster_findings(cluster, connection.kfp_namespace, account)
        yield from object_findings(cluster, needs, settings)
        yield from image_findings(cluster, BASE_IMAGE, account=account, in_pod=pull_image)
    else:
        settings = _own_settings(needs)
    yield from kfp_findings(connection)
    way = Way(port_forward=connection.port_forward, has_cluster=cluster is not None)
    yield from bucket_findings(way, settings, bucket)
    yield from mlflow_findings(way, settings)


def _cluster(namespace: str) -> tuple[ClusterApi | None, Finding]:
    try:
        cluster = connect(namespace)
    except KubernetesError as error:
        told = str(error).partition(";")[0]
        remedy = "set KUBECONFIG to your cluster's file; 'kubectl get nodes' tries it. Nothing in the cluster was looked at"
        return None, Finding(FAILURE, "kubernetes", told, remedy)
    finding = is_answering(cluster)
    return (None if finding.state == FAILURE else cluster), finding


def _own_settings(needs: Needs) -> dict[str, str]:
    """Those of this process, where the cluster's can't be read."""
    return {name: os.environ[name] for name in needs.variables if name in os.environ}

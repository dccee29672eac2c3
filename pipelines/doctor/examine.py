"""Check that a cluster has everything that a run needs, and that it can be reached from here.

Without a kubeconfig that is one failure, and the services are tested all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from components.cluster.cluster_api import ClusterApi
from components.cluster.connection import KubernetesError
from components.cluster.proxies import ProxySettingsError
from components.container.image import BASE_IMAGE
from pipelines.client.arguments import compiled_pipeline
from pipelines.client.connection import Connection
from pipelines.compile import PIPELINES
from pipelines.doctor.cluster import check_cluster, check_kubernetes
from pipelines.doctor.findings import FAILURE, Finding
from pipelines.doctor.image import check_image
from pipelines.doctor.pod_environment import check_sources, find_sources
from pipelines.doctor.services import check_bucket, check_kfp, check_mlflow


def examine(
    connection: Connection,
    *,
    runs_namespace: str,
    service_account: str,
    bucket: str,
    pull_image: bool,
    report: Callable[[Finding], None],
) -> list[Finding]:
    """Make all checks.

    Args:
        connection: Connection to KFP; with `port_forward`, S3 and MLflow in the cluster are reached through kubectl too.
        runs_namespace: Namespace of the pods of runs.
        service_account: Their service account.
        bucket: Bucket of runs.
        pull_image: Start a pod with the project's image.
        report: Called with each finding.
    """
    found: list[Finding] = []
    for finding in _checks(connection, runs_namespace, service_account, bucket, pull_image):
        report(finding)
        found.append(finding)
    return found


def _checks(connection: Connection, namespace: str, account: str, bucket: str, pull_image: bool) -> Iterator[Finding]:
    sources = find_sources(compiled_pipeline(name).platform for name in PIPELINES)
    cluster, finding = _connect(namespace)
    yield finding
    environment: dict[str, str] = {}
    if cluster is not None:
        yield from check_cluster(cluster, connection.kfp_namespace, account)
        yield from check_sources(cluster, sources, environment)
        yield from check_image(cluster, BASE_IMAGE, account=account, in_pod=pull_image)
    else:  # the variables of this process stand in for those of a run's pod
        variables = {variable for source in sources for variable in source.variables.values()}
        environment = {name: value for name, value in os.environ.items() if name in variables}
    yield from check_kfp(connection)
    port_forward = connection.port_forward and cluster is not None
    yield from check_bucket(environment, bucket, port_forward=port_forward)
    yield from check_mlflow(environment, port_forward=port_forward)


def _connect(namespace: str) -> tuple[ClusterApi | None, Finding]:
    try:
        cluster = ClusterApi(namespace)
    except (KubernetesError, ProxySettingsError) as error:
        remedy = "set KUBECONFIG to your cluster's file, and try it with 'kubectl get nodes'. Nothing in the cluster was checked"
        return None, Finding(FAILURE, "kubernetes", str(error).partition(";")[0], remedy)
    finding = check_kubernetes(cluster)
    return (None if finding.state == FAILURE else cluster), finding

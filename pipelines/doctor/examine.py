"""Check that a cluster has everything that a run needs, and that it can be reached from here.

`CHECKS` is the list of checks of a cluster. A missing kubeconfig is a single failure; KFP, the bucket and MLflow are tested all the same.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from components.cluster.cluster_api import ClusterApi
from components.cluster.connection import KubernetesError
from components.cluster.proxies import ProxySettingsError
from components.container.image import BASE_IMAGE
from components.launch.resources import STAGES, StageResources, read_resources
from pipelines.client.arguments import arguments_of, compiled_pipeline
from pipelines.client.connection import Connection
from pipelines.compile import PIPELINES
from pipelines.doctor import cluster, platform
from pipelines.doctor.findings import FAILURE, OK, Finding
from pipelines.doctor.identity import check_identity
from pipelines.doctor.image import check_image
from pipelines.doctor.network import check_s3_port
from pipelines.doctor.pod_environment import check_sources, find_sources
from pipelines.doctor.room import check_room
from pipelines.doctor.scope import Check, Scope
from pipelines.doctor.services import check_bucket, check_kfp, check_mlflow
from training.config.errors import UserError, lines_of
from training.config.redaction import without_secrets

CHECKS: tuple[Check, ...] = (
    Check("kfp's parts", "", cluster.check_kfp_parts),
    Check(
        "kfp's settings",
        "take the images of the server's release; in its config.json set injectUserEnvVars to false, as steps need no plugin",
        platform.check_kfp_settings,
    ),
    Check(
        "retries of steps",
        "apply k8s/overlays/kfp, or add k8s/components/kfp/workflow-defaults.yaml to your own; a run that ended so resumes when sent again",
        platform.check_step_retries,
    ),
    Check("kuberay", "", cluster.check_kuberay),
    Check("kueue", "create the LocalQueue, or leave queue out", platform.check_queues),
    Check(
        "rayjobs",
        "cancel one of the two runs, or give one another storage_root_uri: they write to the same directory",
        platform.check_rayjob_names,
    ),
    Check("accounts", "", cluster.check_accounts),
    Check("rights", "", cluster.check_rights),
    Check(
        "gpus",
        "steps with GPUs would wait for ever: add nodes with NVIDIA's device plugin, or train without GPUs",
        cluster.check_gpus,
    ),
    Check(
        "room",
        "ask for less (--resources), tolerate the nodes' taints, or add nodes; an autoscaler adds some by itself if it has such nodes",
        check_room,
    ),
    Check(
        "network plugin",
        "is there a plugin that enforces them, like Calico or Cilium? Without one every pod of the cluster reaches MLflow",
        platform.check_network_plugin,
    ),
    Check(
        "storage class",
        "make a StorageClass the default, or name one in the claims of your overlay; see 'kubectl -n iddpm describe pvc'",
        platform.check_storage_class,
    ),
    Check("pods of the services", "see 'kubectl -n iddpm describe pod'", platform.check_services_pods),
    Check("namespaces", "see k8s/README.md, 'For platform teams': several users, Istio", platform.check_namespaces),
    Check("istio", "", platform.check_mutual_tls),
    Check("s3 credentials", "", check_identity),
    Check("environment of pods", "", lambda it: check_sources(it.cluster, it.sources, it.environment)),
    Check("port of s3", "", check_s3_port),  # after the one that reads where S3 is
    Check("image", "", lambda it: check_image(it.cluster, it.image, account=it.account, in_pod=it.pull_image)),
)


def examine(
    connection: Connection,
    *,
    runs_namespace: str,
    service_account: str,
    bucket: str,
    resources: Sequence[str],
    pull_image: bool,
    report: Callable[[Finding], None],
) -> list[Finding]:
    """Make all checks.

    Args:
        connection: Connection to KFP; with `port_forward`, S3 and MLflow in the cluster are reached through kubectl too.
        runs_namespace: Namespace of the pods of runs.
        service_account: Their service account.
        bucket: Bucket of runs.
        resources: Resources of the stages of a training, as `iddpm submit` takes them.
        pull_image: Start a pod with the project's image.
        report: Called with each finding.
    """
    stages = _stages(resources)
    found: list[Finding] = []
    for finding in _checks(connection, runs_namespace, service_account, bucket, stages, pull_image):
        report(finding)
        found.append(finding)
    return found


def _stages(resources: Sequence[str]) -> dict[str, StageResources]:
    pipeline = compiled_pipeline("train")
    arguments = arguments_of(pipeline, preset="", overrides=(), words=(), resources=resources, on_cluster=True)
    texts = {stage: arguments.get(f"{stage}_resources") or pipeline.parameters[f"{stage}_resources"]["defaultValue"] for stage in STAGES}
    return {stage: read_resources(text, stage=stage) for stage, text in texts.items()}


def _checks(
    connection: Connection, namespace: str, account: str, bucket: str, stages: dict[str, StageResources], pull_image: bool
) -> Iterator[Finding]:
    sources = find_sources(compiled_pipeline(name).platform for name in PIPELINES)
    api, finding = _connect(namespace)
    yield finding
    if api is not None:
        scope = Scope(
            cluster=api,
            connection=connection,
            account=account,
            resources=stages,
            sources=sources,
            image=BASE_IMAGE,
            pull_image=pull_image,
        )
        for check in CHECKS:
            for finding in _findings(check.name, functools.partial(check.ask, scope)):
                yield finding if finding.state == OK or finding.remedy else dataclasses.replace(finding, remedy=check.remedy)
        environment = scope.environment
    else:  # the variables of this process stand in for those of a run's pod
        variables = {variable for source in sources for variable in (*source.variables.values(), *source.more.values())}
        environment = {name: value for name, value in os.environ.items() if name in variables}
    port_forward = connection.port_forward and api is not None
    yield from _findings("kfp", lambda: check_kfp(connection))
    yield from _findings("bucket", lambda: check_bucket(environment, bucket, port_forward=port_forward))
    yield from _findings("mlflow", lambda: check_mlflow(environment, port_forward=port_forward))


def _findings(name: str, ask: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; its own error is a failure too, so that the others are made and no finding is lost."""
    try:
        yield from ask()
    except Exception as error:
        said = without_secrets(" ".join(lines_of(error)))
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        remedy = "correct the value, if it is a setting of yours; if it is right, this is an error of `iddpm doctor`: report it"
        yield Finding(FAILURE, name, f"could not be checked: {kind}{said}", remedy)


def _connect(namespace: str) -> tuple[ClusterApi | None, Finding]:
    try:
        api = ClusterApi(namespace)
    except (KubernetesError, ProxySettingsError) as error:
        remedy = "set KUBECONFIG to your cluster's file, and try it with 'kubectl get nodes'. Nothing in the cluster was checked"
        return None, Finding(FAILURE, "kubernetes", str(error).partition(";")[0], remedy)
    (finding,) = _findings("kubernetes", lambda: [cluster.check_kubernetes(api)])
    return (None if finding.state == FAILURE else api), finding

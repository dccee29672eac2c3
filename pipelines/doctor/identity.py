"""Check that pods get credentials of S3: keys of a Secret, or an identity of the platform.

A webhook of the platform writes the identity into each new pod. Without the webhook pods start and their steps fail, so the API server is
asked what it would make of a pod: a dry run passes admission, and creates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from components.cluster.cluster_api import ClusterApi, Response
from components.cluster.names import S3_SECRET, SERVICES_CONFIG_MAP
from pipelines.doctor.findings import ASK_ADMINISTRATOR, FAILURE, OK, WARNING, Finding
from pipelines.doctor.pods import restricted_pod
from pipelines.doctor.scope import Scope

_SUBJECT = "s3 credentials"
_LAUNCHER = "kfp-launcher"
"""KFP's config map that says where its launcher keeps artifacts, and with which credentials."""
_ACCOUNTS = ("iddpm-reaper", "iddpm-gc")
"""Service accounts in the namespace of runs whose pods reach S3, beside those of steps and of Ray's pods."""
_EKS_ROLE = "eks.amazonaws.com/role-arn"
_STS = "AWS_ENDPOINT_URL_STS"
_IDENTITIES = (
    frozenset({"AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"}),
    frozenset({"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"}),
)
"""Variables of an identity that boto3 takes: those of IRSA, and those of EKS Pod Identity. An identity of Google's or Azure's platform does
not reach S3. On their clusters a webhook for Amazon's roles sets the variables of IRSA."""
_SECONDS = 60


def check_identity(scope: Scope) -> Iterator[Finding]:
    """Check that pods have either keys of S3 or an identity of the platform, and that they know where to exchange a role for keys."""
    cluster = scope.cluster
    yield from _check_launcher(cluster)
    secret = cluster.get(_path(cluster, "secrets", S3_SECRET))
    if secret.status != 404:
        yield Finding(OK, _SUBJECT, f"keys of Secret {S3_SECRET}" if secret.ok else f"cannot be seen: {secret.reason}")
        return
    ray = {resources.rayjob.service_account for resources in scope.resources.values()}
    found = {account: cluster.get(_path(cluster, "serviceaccounts", account)) for account in sorted({scope.account, *ray, *_ACCOUNTS})}
    # Another check reports a missing account.
    roles = {
        account: _EKS_ROLE in (answer.body.get("metadata", {}).get("annotations") or {})
        for account, answer in found.items()
        if answer.status != 404
    }
    pods = {account: _dry_run(cluster, account, scope.image) for account in roles}
    yield from _refused(cluster, pods)
    bare = [account for account, pod in pods.items() if pod.ok and not _has_identity(pod)]
    yield from _without_identity(
        cluster, [account for account in bare if roles[account]], [account for account in bare if not roles[account]]
    )
    config = cluster.get(_path(cluster, "configmaps", SERVICES_CONFIG_MAP)).body.get("data") or {}
    if any(roles.values()) and config.get("AWS_ENDPOINT_URL") and not config.get(_STS):
        message = f"config map {SERVICES_CONFIG_MAP} has no {_STS}: pods would ask the address of S3 to exchange their role for keys"
        remedy = f"set {_STS} there, like https://sts.us-east-1.amazonaws.com; k8s/components/keyless-s3 does"
        yield Finding(FAILURE, _SUBJECT, message, remedy)
    elif pods and all(_has_identity(pod) for pod in pods.values()):
        yield Finding(OK, _SUBJECT, f"pods of {', '.join(pods)} get the platform's identity; there are no keys")


def _check_launcher(cluster: ClusterApi) -> Iterator[Finding]:
    """Check the Secret from which KFP's launcher takes the keys of artifacts, if its settings name one."""
    providers = (cluster.get(_path(cluster, "configmaps", _LAUNCHER)).body.get("data") or {}).get("providers")
    try:
        credentials = yaml.safe_load(providers or "")["s3"]["default"]["credentials"]
        name = "" if credentials.get("fromEnv") else str(credentials["secretRef"]["secretName"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return  # no settings of its own, or of a form that is not known here
    if name and cluster.get(_path(cluster, "secrets", name)).status == 404:
        message = (
            f"takes the keys of artifacts from Secret {name}, which is not in namespace {cluster.namespace}: steps of a run would fail"
        )
        remedy = "create the Secret; without keys list components/keyless-s3 in k8s/overlays/kfp after components/kfp, and apply it again"
        yield Finding(FAILURE, f"config map {_LAUNCHER}", message, remedy)


def _path(cluster: ClusterApi, resource: str, name: str) -> str:
    return f"/api/v1/namespaces/{cluster.namespace}/{resource}/{name}"


def _dry_run(cluster: ClusterApi, account: str, image: str) -> Response:
    pod = restricted_pod("iddpm-doctor", image, account, seconds=_SECONDS)
    return cluster.post(f"/api/v1/namespaces/{cluster.namespace}/pods", pod, dry_run=True)


def _has_identity(pod: Response) -> bool:
    containers = pod.body.get("spec", {}).get("containers") or ()
    names = {variable["name"] for container in containers for variable in container.get("env") or ()}
    return any(identity <= names for identity in _IDENTITIES)


def _refused(cluster: ClusterApi, pods: dict[str, Response]) -> Iterator[Finding]:
    """Name each reason for which the API server takes no pod, once, with the accounts that it was given for."""
    for reason in dict.fromkeys(pod.reason for pod in pods.values() if not pod.ok):
        accounts = ", ".join(account for account, pod in pods.items() if pod.reason == reason)
        if "cannot create resource" in reason:  # Kubernetes' words for a missing right, not for an admission
            remedy = f"{ASK_ADMINISTRATOR} for the right to create pods in namespace {cluster.namespace}; this asks for a dry run only"
        else:
            remedy = "see the reason: pods of a run are like this one (level restricted of Pod Security), and may be refused too"
        message = f"there are no keys, and whether pods of {accounts} get an identity can't be seen, as a dry run is refused: {reason}"
        yield Finding(WARNING, _SUBJECT, message, remedy)


def _without_identity(cluster: ClusterApi, annotated: list[str], bare: list[str]) -> Iterator[Finding]:
    if annotated:
        message = f"pods of {', '.join(annotated)} get no identity, although a role is annotated: they would have no credentials"
        remedy = (
            "install Amazon's pod identity webhook, or see why it leaves these pods out: "
            "'kubectl get mutatingwebhookconfigurations', and its pod's log"
        )
        yield Finding(FAILURE, _SUBJECT, message, remedy)
    if bare:
        message = f"there is no Secret {S3_SECRET} in namespace {cluster.namespace}, and pods of {', '.join(bare)} get no identity"
        remedy = (
            "create the Secret (k8s/README.md, step 5), or give the accounts an identity (k8s/components/keyless-s3); "
            "if the role of the nodes reaches the bucket, all is well: that can't be seen from here"
        )
        yield Finding(WARNING, _SUBJECT, message, remedy)

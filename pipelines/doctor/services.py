"""Check that the services answer, each in the way in which a run uses it: KFP's API, the bucket, MLflow."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import urllib3

from components.cluster.proxies import pool_for
from pipelines.client.connection import Connection
from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import connected
from pipelines.client.port_forward import PortForwardError, forward_port
from pipelines.doctor.findings import FAILURE, OK, WARNING, Finding
from training import storage
from training.config.addresses import contains_password, without_passwords
from training.config.errors import UserError
from training.tracking.client import PUBLIC_VARIABLE

_CLUSTER_HOST = re.compile(r"(?P<service>[a-z0-9-]+)\.(?P<namespace>[a-z0-9-]+)\.svc(\.cluster\.local)?")
_PROBE = ".iddpm-doctor"
_TRY_FORWARD = "--port-forward tests it from here; a pod of the cluster needs none"


class UnreachableError(UserError):
    """An address inside the cluster, without --port-forward; the doctor then skips the check."""


@contextlib.contextmanager
def reachable(address: str, *, port_forward: bool) -> Iterator[str]:
    """Return an address that reaches a service from here for the duration of the block.

    Args:
        address: Address of the service, perhaps known only inside the cluster.
        port_forward: Allow kubectl to forward a port to it.

    Raises:
        UnreachableError: It is an address inside the cluster and no port may be forwarded.
        PortForwardError: kubectl does not forward it.
        UserError: It is malformed.
    """
    try:
        split = urlsplit(address)
        host, port = split.hostname or "", split.port
    except ValueError as error:
        shown = "its address" if "@" in address else f"{address} ({error})"  # the part before an @ may be a password
        raise UserError(f"{shown} is malformed: correct it in config map iddpm-services") from None
    match = _CLUSTER_HOST.fullmatch(host)
    if match is None or os.environ.get("KUBERNETES_SERVICE_HOST"):
        yield address
    elif not port_forward:
        raise UnreachableError(f"{split.netloc} is an address inside the cluster")
    else:
        with forward_port(match["namespace"], match["service"], port or (443 if split.scheme == "https" else 80)) as forward:
            yield forward.url


def check_kfp(connection: Connection) -> Iterator[Finding]:
    """Check KFP's API: it answers, allows a request, and is of the tested version."""
    warnings: list[str] = []
    try:
        with connected(connection, warnings.append) as kfp:
            kfp.client.list_experiments(page_size=1, namespace=kfp.namespace)
            users = f", for several users, here {kfp.namespace}" if kfp.multi_user else ""
            message = f"{kfp.version} at {kfp.address}{users}"
    except (UserError, PortForwardError, KfpError) as error:
        yield Finding(FAILURE, "kfp", "its API cannot be used from here", str(error))
        return
    yield Finding(OK, "kfp", message)
    for warning in warnings:
        problem, _, advice = warning.partition("; ")
        yield Finding(WARNING, "kfp", problem, advice or "use https:// or --port-forward")


def check_bucket(environment: Mapping[str, str], bucket: str, *, port_forward: bool) -> Iterator[Finding]:
    """Check the bucket of runs: a small object is written, read, listed and deleted.

    Args:
        environment: Variables of a run's pod.
        bucket: Its URI.
        port_forward: Allow kubectl to forward a port to S3.
    """
    subject = f"bucket {without_passwords(bucket)}"
    endpoint = environment.get("AWS_ENDPOINT_URL", "")
    if not bucket.startswith("s3://"):
        yield Finding(FAILURE, subject, "is not an address in S3", "write s3://NAME; pipelines take it as storage_root_uri")
    elif not environment.get("AWS_ACCESS_KEY_ID"):
        remedy = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL here; in a cluster with keys Secret iddpm-s3 has them"
        yield Finding(WARNING, subject, "not tested: no credentials are known here", remedy)
    elif contains_password(endpoint):
        yield Finding(FAILURE, subject, "AWS_ENDPOINT_URL contains a password", "remove it from the address; it belongs in Secret iddpm-s3")
    else:
        try:
            with reachable(endpoint, port_forward=port_forward) as address, _pod_environment(environment, address):
                yield _test_bucket(bucket, subject, endpoint or "AWS")
        except (UserError, PortForwardError) as error:
            yield _unreachable(subject, error)


def check_mlflow(environment: Mapping[str, str], *, port_forward: bool) -> Iterator[Finding]:
    """Check MLflow under the name that runs use, with their user and password, and under the one that people use.

    Args:
        environment: Variables of a run's pod.
        port_forward: Allow kubectl to forward a port to MLflow.
    """
    address = environment.get("MLFLOW_TRACKING_URI", "")
    if not address:
        remedy = "set MLFLOW_TRACKING_URI here; in the cluster config map iddpm-services has it"
        yield Finding(WARNING, "mlflow", "not tested: its address is not known here", remedy)
    elif contains_password(address):
        yield Finding(FAILURE, "mlflow", "its address contains a password", "remove it from the address; it belongs in Secret iddpm-mlflow")
    elif contains_password(environment.get(PUBLIC_VARIABLE, "")):
        yield Finding(
            FAILURE, "mlflow", f"{PUBLIC_VARIABLE} contains a password", "remove it: links show the address, and browsers ask for it"
        )
    else:
        try:
            with reachable(address, port_forward=port_forward) as url:
                yield _test_mlflow(address, url, environment)
        except (UserError, PortForwardError) as error:
            yield _unreachable("mlflow", error)


def _unreachable(subject: str, error: Exception) -> Finding:
    if isinstance(error, UnreachableError):
        return Finding(WARNING, subject, f"not tested: {error}", _TRY_FORWARD)
    message = "cannot be reached through kubectl" if isinstance(error, PortForwardError) else "cannot be asked"
    return Finding(FAILURE, subject, message, str(error))


def _test_bucket(bucket: str, subject: str, endpoint: str) -> Finding:
    uri, content = storage.join(bucket, _PROBE, secrets.token_hex(8)), secrets.token_bytes(64)
    step = "write to"
    try:
        storage.write_bytes(uri, content)
        try:
            step = "read from"
            if storage.read_bytes(uri) != content:
                return Finding(FAILURE, subject, "returned other bytes than were written", "check the health of the storage")
            step = "list"
            if uri not in storage.list_uris(storage.join(bucket, _PROBE)):
                return Finding(FAILURE, subject, "does not list a new object", "use a storage that is consistent at once, as S3 is")
        finally:
            step = f"delete {_PROBE}/ from" if step == "list" else step
            storage.delete(uri)
    except storage.StorageError as error:
        return Finding(FAILURE, subject, f"a run could not {step} it", str(error))
    return Finding(OK, subject, f"at {endpoint}: written, read, listed and deleted")


@contextlib.contextmanager
def _pod_environment(environment: Mapping[str, str], endpoint: str) -> Iterator[None]:
    """Give this process the S3 variables of a run's pod."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in environment.items() if name.startswith("AWS_")})
    for name in ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
        if name not in environment:
            os.environ.pop(name, None)
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _test_mlflow(address: str, url: str, environment: Mapping[str, str]) -> Finding:
    # MLflow checks a request's host name, so this sends the one that runs use, even through a forwarded port.
    headers = {"Host": urlsplit(address).netloc}
    user, password = environment.get("MLFLOW_TRACKING_USERNAME", ""), environment.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"  # in UTF-8, as MLflow's client
    pool = pool_for(url, retries=1, timeout=urllib3.Timeout(connect=5, read=20), headers=headers)
    try:
        response = pool.request("GET", f"{url}/api/2.0/mlflow/experiments/search?max_results=1")
        version = pool.request("GET", f"{url}/version").data.decode(errors="replace").strip()[:20]
        files = pool.request("GET", f"{url}/api/2.0/mlflow-artifacts/artifacts?path={_PROBE}")
        refusal = _refusal_of_browsers(pool, url, headers, environment.get(PUBLIC_VARIABLE, ""))
    except urllib3.exceptions.HTTPError as error:
        cause = " ".join(str(getattr(error, "reason", None) or error).split()).rpartition(": ")[2][:160]
        remedy = f"is it up ('kubectl -n iddpm get pods'), and can {address} be reached from here? ({cause})"
        return Finding(FAILURE, "mlflow", f"no answer from {address}", remedy)
    status, body = response.status, response.data.decode(errors="replace")
    if status == 200 and _is_json(body):
        if files.status == 500:  # one that keeps files elsewhere answers 404 or 503
            message = f"{address} answers, but can't reach the storage of its files (500): runs would lack report and samples there"
            remedy = "see its log; if it started before Secret iddpm-s3 was there: 'kubectl -n iddpm rollout restart deployment/mlflow'"
            return Finding(FAILURE, "mlflow", message, remedy)
        if refusal:
            return Finding(WARNING, "mlflow", f"{version} at {address} answers runs, but {refusal[0]}", refusal[1])
        return Finding(OK, "mlflow", f"{version} at {address}, under the name that runs use")
    if status == 200:
        message, remedy = "answers with a web page, not as MLflow", "is it the log-in page of an ingress? Give the service's address"
    elif status == 401:
        message = "refuses the user and password of Secret iddpm-mlflow (401)" if user else "needs a user and password (401)"
        remedy = "create Secret iddpm-mlflow in the namespace of runs (k8s/README.md, step 5)"
    elif status == 403 and "host" in body.lower():
        message = f"does not accept the host name {urlsplit(address).netloc} (403)"
        remedy = "add it, with its port, to MLFLOW_SERVER_ALLOWED_HOSTS (k8s/base/services/mlflow.yaml)"
    else:
        message = f"answers {status}: {' '.join(body.split())[:120]}"
        remedy = "see its log: 'kubectl -n iddpm logs deployment/mlflow'"
    return Finding(FAILURE, "mlflow", f"{address} {message}", remedy)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _refusal_of_browsers(pool: urllib3.PoolManager, url: str, headers: Mapping[str, str], public: str) -> tuple[str, str] | None:
    """Ask as a page of MLflow's public address does; return what MLflow refuses and the remedy, or None."""
    split = urlsplit(public)
    host = split.netloc.lower().removesuffix({"http": ":80", "https": ":443"}.get(split.scheme, ""))  # as browsers write it
    if not host:
        return None
    origin = f"{split.scheme}://{host}"
    asked = {**headers, "Host": host, "Origin": origin, "Content-Type": "application/json"}
    response = pool.request("POST", f"{url}/api/2.0/mlflow/experiments/search", body=b'{"max_results": 1}', headers=asked)
    body = response.data.decode(errors="replace").lower()
    add_origin = f"{origin} to MLFLOW_SERVER_CORS_ALLOWED_ORIGINS (as in k8s/components/cluster/kustomization.yaml)"
    if response.status == 403 and "invalid host" in body:
        remedy = f"add {host} to MLFLOW_SERVER_ALLOWED_HOSTS and {add_origin}, unless a proxy gives MLflow another host name"
        return f"refuses browsers, which use the name {host} (403)", remedy
    if response.status == 403 and "cross-origin" in body:
        return f"refuses what its pages at {origin} ask (403): they show 'Request error'", f"add {add_origin}"
    return None

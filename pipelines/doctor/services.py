"""Whether the services answer, each as a run uses it: KFP's API, the bucket, MLflow."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import urllib3

from components.cluster.proxies import pool_for
from pipelines.client.connection import Connection, ConnectionSettingsError
from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import connected
from pipelines.client.port_forward import PortForwardError
from pipelines.doctor.findings import FAILURE, OK, WARNING, Finding
from pipelines.doctor.route import NoWayError, Way
from training import storage
from training.config.addresses import holds_password, without_passwords

_PROBE = ".iddpm-doctor"
_TRY_FORWARD = "--port-forward tries it from here; a pod of the cluster needs none"
_ALLOWED_HOSTS = "name it, with its port, in MLFLOW_SERVER_ALLOWED_HOSTS (k8s/base/services/mlflow.yaml)"
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")


def kfp_findings(connection: Connection) -> Iterator[Finding]:
    """KFP's API: reached, allowed, and of the version that this was made for."""
    warnings: list[str] = []
    try:
        with connected(connection, warnings.append) as kfp:
            kfp.client.list_experiments(page_size=1, namespace=kfp.namespace)
            users = f", for several users, here {kfp.namespace}" if kfp.multi_user else ""
            told = f"{kfp.version} at {kfp.address}{users}"
    except (ConnectionSettingsError, PortForwardError, KfpError) as error:
        yield Finding(FAILURE, "kfp", "its API can't be used from here", str(error))
        return
    yield Finding(OK, "kfp", told)
    for warning in warnings:
        yield Finding(WARNING, "kfp", warning.partition(";")[0], "go on with care: upgrade KFP, or take an encrypted way")


def bucket_findings(way: Way, settings: Mapping[str, str], bucket: str) -> Iterator[Finding]:
    """Where runs are kept: a small object is written, read, listed and deleted."""
    subject = f"bucket {without_passwords(bucket)}"
    if not bucket.startswith("s3://"):
        yield Finding(FAILURE, subject, "is no address in S3", "it reads s3://NAME; pipelines take it as storage_root_uri")
        return
    if not settings.get("AWS_ACCESS_KEY_ID"):
        remedy = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL here; in the cluster they come from Secret iddpm-s3"
        yield Finding(WARNING, subject, "not tried: no credentials are known here", remedy)
        return
    endpoint = settings.get("AWS_ENDPOINT_URL", "")
    if holds_password(endpoint):
        yield Finding(FAILURE, subject, "AWS_ENDPOINT_URL holds a password", "Secret iddpm-s3 is its place; take it out of the address")
        return
    try:
        with way.to(endpoint) as address, _environment(settings, address):
            problem = _probed(bucket)
    except NoWayError as error:
        yield Finding(WARNING, subject, f"not tried: {error}", _TRY_FORWARD)
    except PortForwardError as error:
        yield Finding(FAILURE, subject, "no way to it through kubectl", str(error))
    else:
        where = endpoint or "AWS"
        yield problem or Finding(OK, subject, f"at {where}: written, read, listed and deleted")


def mlflow_findings(way: Way, settings: Mapping[str, str]) -> Iterator[Finding]:
    """MLflow under the name that runs call it by, with their user and password."""
    address = settings.get("MLFLOW_TRACKING_URI", "")
    if not address:
        remedy = "set MLFLOW_TRACKING_URI here; in the cluster it comes from config map iddpm-services"
        yield Finding(WARNING, "mlflow", "not tried: its address is not known here", remedy)
        return
    if holds_password(address):
        yield Finding(FAILURE, "mlflow", "its address holds a password", "Secret iddpm-mlflow is its place; take it out of the address")
        return
    try:
        with way.to(address) as here:
            yield _mlflow(address, here, settings)
    except NoWayError as error:
        yield Finding(WARNING, "mlflow", f"not tried: {error}", _TRY_FORWARD)
    except PortForwardError as error:
        yield Finding(FAILURE, "mlflow", "no way to it through kubectl", str(error))


def _probed(bucket: str) -> Finding | None:
    """What keeps the probe from coming and going; None where nothing does."""
    subject = f"bucket {without_passwords(bucket)}"
    uri, content = storage.join(bucket, _PROBE, secrets.token_hex(8)), secrets.token_bytes(64)
    step = "write to"
    try:
        storage.write_bytes(uri, content)
        try:
            step = "read back from"
            if storage.read_bytes(uri) != content:
                return Finding(FAILURE, subject, "gave back other bytes than it was given", "look at the storage's health")
            step = "list"
            if uri not in storage.list_uris(storage.join(bucket, _PROBE)):
                return Finding(FAILURE, subject, "does not list what it holds", "it must be consistent at once, as S3 is")
        finally:
            step = f"delete {_PROBE}/ from" if step == "list" else step
            storage.delete(uri)
    except storage.StorageError as error:
        return Finding(FAILURE, subject, f"a run could not {step} it", str(error))
    return None


@contextlib.contextmanager
def _environment(settings: Mapping[str, str], endpoint: str) -> Iterator[None]:
    """The process as a run's pod would see it."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in settings.items() if name.startswith("AWS_")})
    for name in ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
        if name not in settings:
            os.environ.pop(name, None)
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _mlflow(address: str, here: str, settings: Mapping[str, str]) -> Finding:
    # MLflow looks at the name by which it is called, so the one that runs use is sent whatever the way from here.
    headers = {"Host": urlsplit(address).netloc}
    user, password = settings.get("MLFLOW_TRACKING_USERNAME", ""), settings.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        headers |= urllib3.make_headers(basic_auth=f"{user}:{password}")
    pool = pool_for(here, retries=1, timeout=urllib3.Timeout(connect=5, read=20), headers=headers)
    try:
        answer = pool.request("GET", f"{here}/api/2.0/mlflow/experiments/search?max_results=1")
        version = pool.request("GET", f"{here}/version").data.decode(errors="replace")
    except urllib3.exceptions.HTTPError as error:
        cause = " ".join(str(getattr(error, "reason", None) or error).split())
        remedy = f"is it up ('kubectl -n iddpm get pods'), and is {address} reached from here? ({cause.rpartition(': ')[2][:160]})"
        return Finding(FAILURE, "mlflow", f"no answer from {address}", remedy)
    return _judged(address, answer.status, answer.data.decode(errors="replace"), version, has_user=bool(user))


def _judged(address: str, status: int, body: str, version: str, *, has_user: bool) -> Finding:
    if status == 200:
        with contextlib.suppress(ValueError):
            json.loads(body)
            return Finding(OK, "mlflow", f"{version.strip()[:20]} at {address}, as runs call it")
        return Finding(
            FAILURE, "mlflow", f"{address} answers with a page, not as MLflow does", "is it an ingress's log-in page? Take the service"
        )
    if status == 401:
        told = "refuses the user and password of Secret iddpm-mlflow" if has_user else "asks for a user and password"
        return Finding(
            FAILURE, "mlflow", f"{address} {told} (401)", "make Secret iddpm-mlflow in the namespace of runs (k8s/README.md, step 5)"
        )
    if status == 403 and "host" in body.lower():
        return Finding(FAILURE, "mlflow", f"it does not take the name {urlsplit(address).netloc} (403)", _ALLOWED_HOSTS)
    log = "its log says more ('kubectl -n iddpm logs deployment/mlflow')"
    return Finding(FAILURE, "mlflow", f"{address} answers {status}: {' '.join(body.split())[:120]}", log)

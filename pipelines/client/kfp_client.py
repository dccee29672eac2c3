"""KFP's own client, adapted to a command line: it prints nothing, has time limits, and its errors are one line.

By itself it prints links, warns at each start, reads and writes `~/.config/kfp/context.json`, tries five times with
pauses of 5 s before it reports that there is no answer, and has no time limits.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import ssl
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import kfp
from kfp.client.token_credentials_base import TokenCredentialsBase

from components.cluster.proxies import proxy_for
from pipelines.client.connection import API_PORT, SERVICE, Connection, is_unencrypted
from pipelines.client.errors import KfpError, objects_only, page_error, with_errors
from pipelines.client.port_forward import PortForward, PortForwardError, forward_port
from training.config.errors import UserError

T = TypeVar("T")

KNOWN_VERSION = "2.17"
"""KFP's version that this was tested with, up to the second number."""
_PAGE_SIZE = 100


class Kfp:
    """A connection to KFP.

    Attributes:
        client: KFP's own client. Call its methods that print through `call_silently`.
        ui_address: Address of the UI; empty if it is not known.
        rereads_token: True if the token is read from a file for each request.
        version: Version of the server, like "2.17.0"; "unknown" if it does not report one.
        multi_user: True if it serves several users.
        namespace: The user's namespace; None with a single user.
    """

    def __init__(self, client: kfp.Client, connection: Connection, address: str, forward: PortForward | None = None) -> None:
        """Ask the server for its version and mode.

        Args:
            forward: The way to the address, where it is one of kubectl's.

        Raises:
            KfpError: It does not answer, is no KFP, or needs a namespace.
        """
        self.client = client
        self.address = address
        self.ui_address = connection.ui_address
        self._forward = forward
        self._kfp_namespace = connection.kfp_namespace
        self.rereads_token = connection.token_path is not None
        health = _health(client, address)
        self.version = str(health.get("tag_name") or "unknown").removeprefix("v")
        self.multi_user = bool(health.get("multi_user"))
        self.namespace = (connection.namespace or _own_namespace()) if self.multi_user else None
        if self.multi_user and not self.namespace:
            raise KfpError(f"KFP at {address} serves several users; give your namespace by --namespace")
        client.set_user_namespace(self.namespace or "")

    def call_silently(self, method: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a method of the client that prints."""
        with contextlib.redirect_stdout(io.StringIO()):
            return method(*args, **options)

    def list_all(self, method: Callable[..., Any], items: str, *, limit: int | None = None, **options: Any) -> list[Any]:
        """Return all pages of a list.

        Args:
            method: The client's method that lists a page.
            items: Name of the list in its response.
            limit: The most items to return; None returns all.
            **options: The method's arguments.
        """
        return list(itertools.islice(self.iterate(method, items, page_size=min(_PAGE_SIZE, limit or _PAGE_SIZE), **options), limit))

    def iterate(self, method: Callable[..., Any], items: str, *, page_size: int = _PAGE_SIZE, **options: Any) -> Iterator[Any]:
        """Yield the items of a list. A page is requested when its first item is wanted; the other arguments are those of `list_all`."""
        token = ""
        while True:
            page = method(page_token=token, page_size=page_size, **options)
            yield from getattr(page, items) or []
            token = page.next_page_token or ""
            if not token:
                return

    def workflow(self, run_id: str) -> dict[str, Any]:
        """Return the Workflow of a run, as KFP last saw it; empty before it has. Only the older API has it."""
        found = self._get(f"/apis/v1beta1/runs/{run_id}", response_type="object")
        manifest = found.get("pipeline_runtime", {}).get("workflow_manifest")
        workflow: dict[str, Any] = json.loads(manifest) if manifest else {}
        return workflow

    @property
    def can_read_pods(self) -> bool:
        """True if the log of a running pod can be read. False if that depends on the address: the UI reads pods, the bare API does not."""
        return self.multi_user or self._forward is not None

    def pod_log(self, run_id: str, pod: str) -> str:
        """Return the log of a step's pod; empty if it is gone.

        The API of a single-user server can't read pods, as it looks for them in no namespace. It has the logs that Argo archived, but
        can't find them if the Workflow is compressed, as a sweep's is. The UI reads pods. With a port-forward, kubectl does.
        """
        if self._forward is not None and (log := self._forward.pod_log(self.namespace or self._kfp_namespace, pod)):
            return log
        namespace = f"&podnamespace={self.namespace}" if self.namespace else ""
        for path in (f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", f"/k8s/pod/logs?podname={pod}&runid={run_id}{namespace}"):
            try:
                archived: str = self._get(path, _preload_content=False).data.decode(errors="replace")
            except KfpError:
                continue
            if not archived.lstrip().startswith(("<", '{"error', "Could not get")):  # a web page or an error, with status 200
                return archived
        return ""

    def _get(self, path: str, **options: Any) -> Any:
        """Get what KFP's own client has no method for."""
        headers = {"Accept": "application/json"}
        api = self.client._run_api.api_client
        return api.call_api(path, "GET", header_params=headers, auth_settings=["Bearer"], _return_http_data_only=True, **options)

    def link(self, kind: str, ident: str) -> str:
        """Return the address of a page of the UI; empty if the UI's address is not known."""
        return f"{self.ui_address}/#/{kind}/details/{ident}" if self.ui_address else ""


@contextlib.contextmanager
def connected(connection: Connection, warn: Callable[[str], None]) -> Iterator[Kfp]:
    """Connect to KFP for the duration of the block.

    Raises:
        UserError: The settings are missing or wrong.
        PortForwardError: kubectl forwards no port.
        KfpError: It does not answer, refuses, or is no KFP.
    """
    address, read_token = connection.address, connection.token_reader()
    if read_token is not None and is_unencrypted(address):
        warn(f"{address} is not encrypted: others on the network can read the token")
    with contextlib.ExitStack() as stack:
        forward: PortForward | None = None
        if connection.port_forward:
            forward = stack.enter_context(forward_port(connection.kfp_namespace, SERVICE, API_PORT))
            address = forward.url
        found = Kfp(_client(connection, address, read_token, forward), connection, address, forward)
        if not found.version.startswith(f"{KNOWN_VERSION}."):
            warn(
                f"KFP at {address} is version {found.version}; tested is {KNOWN_VERSION}, and older ones refuse pipelines whose parameters "
                "have drop-downs"
            )
        if connection.namespace and not found.multi_user:
            warn(f"KFP at {address} serves one user, so --namespace {connection.namespace} does not move its runs; leave it out")
        yield found


class _Client(kfp.Client):  # type: ignore[misc]  # kfp has no types
    """KFP's client without its file of settings in the home directory, and with the environment's proxy."""

    def _load_context_setting_or_default(self) -> None:
        # If it is empty, the constructor asks the server for its mode five times, and logs the traceback of each failure.
        self._context_setting = {"namespace": "unknown"}

    def _load_config(self, *args: Any, **options: Any) -> Any:
        config = super()._load_config(*args, **options)
        proxy = proxy_for(config.host)
        if proxy:
            config.proxy, config.proxy_headers = proxy
        return config

    def set_user_namespace(self, namespace: str) -> None:
        self._context_setting["namespace"] = namespace


class _Token(TokenCredentialsBase):  # type: ignore[misc]
    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read

    def refresh_api_key_hook(self, config: Any) -> None:
        config.api_key["authorization"] = self._read()


def _client(connection: Connection, address: str, read_token: Callable[[], str] | None, forward: PortForward | None) -> kfp.Client:
    ca_file = str(connection.ca_path) if connection.ca_path else None
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # also for a file without a certificate
        raise UserError(f"the certificates {ca_file} (--ca-file, SSL_CERT_FILE) cannot be read: {error.strerror}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = _Client(host=address, credentials=_Token(read_token) if read_token else None, ssl_ca_cert=ca_file)
    api = client._run_api.api_client  # the one that all of its services share
    send = with_errors(api.call_api, address, has_token=read_token is not None)

    def call_api(*args: Any, **options: Any) -> Any:
        if forward is not None:
            try:
                forward.ensure()
            except PortForwardError as error:  # it forwarded before, so the cluster may answer later
                raise KfpError(str(error)) from error
        return send(*args, **options)

    api.call_api = call_api
    api.deserialize = objects_only(api.deserialize, address)
    return client


def _health(client: kfp.Client, address: str) -> dict[str, Any]:
    """Return the server's description of itself. The client's own model lacks the version."""
    try:
        response = client._healthz_api.healthz_service_get_healthz(_preload_content=False)
        found = json.loads(response.data)
    except KfpError as error:
        if error.status == 404:
            raise KfpError(f"there is no KFP API at {address} (404); give the address of the UI, or of service {SERVICE}", 404) from error
        raise
    except ValueError as error:
        raise page_error(address) from error
    if not isinstance(found, dict):
        raise page_error(address)
    return found


def _own_namespace() -> str:
    """Return the namespace of this pod; empty outside of a pod."""
    try:
        with open(kfp.Client._NAMESPACE_PATH, encoding="utf-8") as file:  # noqa: PTH123 - KFP's constant
            return file.read().strip()
    except OSError:
        return ""

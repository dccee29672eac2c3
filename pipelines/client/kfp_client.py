"""KFP's own client, connected, quiet, patient where a person waits, and with errors in one line.

KFP's client prints links, warns at each start, reads and writes `~/.config/kfp/context.json`, asks five times with
pauses of 5 s before it says that nobody answers, and has no time limits. None of this is wanted in a command line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import kfp
from kfp.client.token_credentials_base import TokenCredentialsBase

from components.cluster.proxies import proxy_for
from pipelines.client.connection import API_PORT, SERVICE, Connection
from pipelines.client.errors import KfpError, guarded, objects_only, page_error
from pipelines.client.port_forward import PortForward, forwarded

T = TypeVar("T")

KNOWN_VERSION = "2.17"
"""Of KFP: what this was tried with, up to the second number."""
_PAGE = 100


class Kfp:
    """A connection to KFP.

    Attributes:
        client: KFP's own client. Its methods that print are to be called through `quietly`.
        address: Where the API is.
        ui_address: Where the UI is; empty where that is not known.
        version: Of the server, like "2.17.0"; "unknown" where it does not say.
        multi_user: Whether it serves several users.
        namespace: The user's, or None with a single one.
    """

    def __init__(self, client: kfp.Client, connection: Connection, address: str) -> None:
        """Asks the server who it is.

        Raises:
            KfpError: It does not answer, is no KFP, or wants a namespace.
        """
        self.client = client
        self.address = address
        self.ui_address = connection.ui_address
        health = _health(client, address)
        self.version = str(health.get("tag_name") or "unknown").removeprefix("v")
        self.multi_user = bool(health.get("multi_user"))
        self.namespace = (connection.namespace or _own_namespace()) if self.multi_user else None
        if self.multi_user and not self.namespace:
            raise KfpError(f"KFP at {address} serves several users; say whose namespace by --namespace")
        client.set_user_namespace(self.namespace or "")

    def quietly(self, call: Callable[..., T], *words: Any, **more: Any) -> T:
        """Calls a method of the client that prints."""
        with contextlib.redirect_stdout(io.StringIO()):
            return call(*words, **more)

    def every(self, call: Callable[..., Any], items: str, *, limit: int | None = None, **more: Any) -> list[Any]:
        """What a listing method gives, over all its pages.

        Args:
            call: The method.
            items: Name of the list in its answer.
            limit: After how many to stop.
            **more: The method's arguments.
        """
        found: list[Any] = []
        token = ""
        while True:
            size = _PAGE if limit is None else min(_PAGE, limit - len(found))
            answer = call(page_token=token, page_size=size, **more)
            found += getattr(answer, items) or []
            token = answer.next_page_token or ""
            if not token or (limit is not None and len(found) >= limit):
                return found

    def link(self, kind: str, ident: str) -> str:
        """Address of a page of the UI; empty where the UI's is not known."""
        return f"{self.ui_address}/#/{kind}/details/{ident}" if self.ui_address else ""


@contextlib.contextmanager
def connected(connection: Connection, warn: Callable[[str], None]) -> Iterator[Kfp]:
    """A connection to KFP for the time of a block.

    Args:
        connection: The way.
        warn: Is given what is not as it should be, but does not keep it from working.

    Raises:
        ConnectionSettingsError: How to reach it is not said, or said wrongly.
        PortForwardError: kubectl opens no way.
        KfpError: It does not answer, refuses, or is no KFP.
    """
    address, read_token = connection.address, connection.token_reader()
    if read_token is not None and connection.is_in_clear(address):
        warn(f"{address} is not encrypted: the token can be read on the way")
    with contextlib.ExitStack() as stack:
        forward: PortForward | None = None
        if connection.port_forward:
            forward = stack.enter_context(forwarded(connection.kfp_namespace, SERVICE, API_PORT))
            address = forward.url
        found = Kfp(_client(connection, address, read_token, forward), connection, address)
        if not found.version.startswith(f"{KNOWN_VERSION}."):
            warn(
                f"KFP at {address} says it is version {found.version}; this was tried with {KNOWN_VERSION}, and an older one refuses "
                "pipelines whose parameters have drop-downs"
            )
        yield found


class _Client(kfp.Client):  # type: ignore[misc]  # kfp has no types
    """KFP's client without its file of settings in the home directory, and with the environment's proxy."""

    def _load_context_setting_or_default(self) -> None:
        # Not empty, or the constructor would ask the server for its mode, five times, and log each failure's traceback.
        self._context_setting = {"namespace": "not asked yet"}

    def _load_config(self, *words: Any, **more: Any) -> Any:
        config = super()._load_config(*words, **more)
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
    ca_file = connection.ca_file or os.environ.get("SSL_CERT_FILE") or None
    if ca_file and not os.access(ca_file, os.R_OK):
        raise KfpError(f"the certificates {ca_file} (--ca-file, SSL_CERT_FILE) can't be read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = _Client(host=address, credentials=_Token(read_token) if read_token else None, ssl_ca_cert=ca_file)
    api = client._run_api.api_client  # the one that all of its services share
    send = guarded(api.call_api, address, has_token=read_token is not None)

    def call_api(*words: Any, **more: Any) -> Any:
        if forward is not None:
            forward.ensure()
        return send(*words, **more)

    api.call_api = call_api
    api.deserialize = objects_only(api.deserialize, address)
    return client


def _health(client: kfp.Client, address: str) -> dict[str, Any]:
    """What the server says of itself. The client's own model of it leaves the version out."""
    try:
        answer = client._healthz_api.healthz_service_get_healthz(_preload_content=False)
        found = json.loads(answer.data)
    except KfpError as error:
        if error.status == 404:
            raise KfpError(
                f"there is no KFP API at {address} (404); the address is that of the UI, or of service {SERVICE}", 404
            ) from error
        raise
    except ValueError as error:
        raise page_error(address) from error
    if not isinstance(found, dict):
        raise page_error(address)
    return found


def _own_namespace() -> str:
    """Of this pod; empty outside."""
    try:
        with open(kfp.Client._NAMESPACE_PATH) as file:  # noqa: PTH123 - KFP's constant
            return file.read().strip()
    except OSError:
        return ""

"""Settings of the connection to KFP's API: its address, or `kubectl port-forward`, or the service inside the cluster; and the token.

A token comes from a file or the environment, never from an argument. The file is read again for each request: the
kubelet or a login helper renews it while a run of days is followed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from training.config.addresses import contains_password
from training.config.errors import UserError

ENDPOINT_VARIABLE = "KF_PIPELINES_ENDPOINT"
"""Address of the API; the name that KFP's own client reads."""
UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
"""Address of the UI if it differs; the name that KFP's own client reads."""
TOKEN_VARIABLE = "KFP_TOKEN"
"""The token itself."""
POD_TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
"""File of a pod's token for KFP; the name that KFP's own client reads."""

_POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
_KFP_NAMESPACE = "kubeflow"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
API_PORT = 8888
SERVICE = "ml-pipeline"


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """Settings of the connection, as a user gives them.

    Attributes:
        endpoint: Address of the API or the UI, like "https://kfp.example.com"; empty reads the environment.
        token_file: File with the token; empty reads the environment.
        port_forward: Connect through kubectl.
        kfp_namespace: Namespace of KFP.
        ca_file: Certificates to trust instead of the system's.
        namespace: The user's namespace, if KFP serves several users.
    """

    endpoint: str = ""
    token_file: str = ""
    port_forward: bool = False
    kfp_namespace: str = _KFP_NAMESPACE
    ca_file: str = ""
    namespace: str = ""

    @property
    def is_given(self) -> bool:
        """True if options or the environment name a KFP, also wrongly."""
        by_option = self.port_forward or self.token_file or self.ca_file or self.namespace or self.kfp_namespace != _KFP_NAMESPACE
        return bool(by_option or self._given_endpoint or os.environ.get("KUBERNETES_SERVICE_HOST"))

    @property
    def address(self) -> str:
        """Address of the API without a slash at its end; empty with `port_forward`, which chooses one.

        Raises:
            UserError: There is none, or it is malformed.
        """
        if self.port_forward:
            if self.endpoint:
                raise UserError("--endpoint and --port-forward exclude each other; give one")
            return ""
        if self._given_endpoint:
            return _normalized(self._given_endpoint)
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            return f"http://{SERVICE}.{self.kfp_namespace}.svc.cluster.local:{API_PORT}"
        raise UserError(
            f"the address of Kubeflow Pipelines is missing; give --endpoint https://..., set {ENDPOINT_VARIABLE}, or use --port-forward "
            "(with kubectl and a kubeconfig)"
        )

    @property
    def ui_address(self) -> str:
        """Address of the UI, for links; empty if it is not known (a forwarded port and a pod's service are the bare API)."""
        endpoint = os.environ.get(UI_VARIABLE) or ("" if self.port_forward else self._given_endpoint)
        return _normalized(endpoint) if endpoint else ""

    @property
    def _given_endpoint(self) -> str:
        return self.endpoint or os.environ.get(ENDPOINT_VARIABLE, "")

    @property
    def token_path(self) -> Path | None:
        """File of the token; None if there is none."""
        if self.token_file:
            return _expanded(self.token_file)
        if os.environ.get(TOKEN_VARIABLE) or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            return None
        path = Path(os.environ.get(POD_TOKEN_VARIABLE) or _POD_TOKEN)
        return path if path.exists() else None

    @property
    def ca_path(self) -> Path | None:
        """File of the certificates to trust; None takes the system's."""
        given = self.ca_file or os.environ.get("SSL_CERT_FILE")
        return _expanded(given) if given else None

    def token_reader(self) -> Callable[[], str] | None:
        """Return a function that reads the current token; None if no token was given. A file without one is refused."""
        path = self.token_path
        if path is not None:
            _read_token(path)
            return lambda: _read_token(path)
        token = os.environ.get(TOKEN_VARIABLE, "")
        return _checked_token(token, TOKEN_VARIABLE).strip if token else None


def is_unencrypted(address: str) -> bool:
    """Tell whether requests to an address leave this machine unencrypted. Inside a cluster that is the usual way."""
    split = urlsplit(address)
    return split.scheme == "http" and split.hostname not in _LOOPBACK and not os.environ.get("KUBERNETES_SERVICE_HOST")


def _expanded(path: str) -> Path:
    """Return a path with `~` expanded: the shell leaves it where an option is written `--token-file=~/token`."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises RuntimeError for a user who isn't there


def _normalized(address: str) -> str:
    bare = address.strip().rpartition("://")[2]
    if contains_password(address):  # first of all: the messages below show the address
        raise UserError(f"the endpoint must not contain a password; give a token by --token-file or {TOKEN_VARIABLE}")
    # Not every password is recognised in a malformed address. So an address with an @ is not shown, and no error that quotes it.
    is_shown = "@" not in address
    shown = f"the endpoint {address!r}" if is_shown else "the endpoint"
    usual = "write it like https://kfp.example.com"
    try:
        split = urlsplit(address.strip())
        host, _ = split.hostname, split.port
    except ValueError as error:
        raise UserError(f"{shown} is malformed{f': {error}' if is_shown else ''}; {usual}") from None
    if split.scheme not in ("http", "https"):
        scheme = "http" if address.startswith(_LOOPBACK) else "https"
        advice = f"did you mean {scheme}://{bare}?" if is_shown else usual
        raise UserError(f"{shown} starts with neither http:// nor https://; {advice}")
    if not host:
        raise UserError(f"{shown} has no host; {usual}")
    # The UI's address from a browser ("http://host/#/runs") is accepted: the UI passes requests on to the API.
    return urlunsplit((split.scheme, split.netloc, split.path, "", "")).rstrip("/")


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"--token-file {path} cannot be read: {reason}") from error
    return _checked_token(token, f"--token-file {path}")


def _checked_token(text: str, source: str) -> str:
    token = text.strip()
    if len(token.split()) != 1 or not token.isascii():
        raise UserError(f"{source} contains no token: a token is one word of ASCII characters")
    return token

"""How the KFP API is reached: at an address, from inside its cluster, or through `kubectl port-forward`; with which token.

A token comes from a file or the environment, never from an argument, and is read again for each request: what rotates
it - the kubelet, a login helper - writes the file anew while a run of days is followed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from training.config.addresses import holds_password

ENDPOINT_VARIABLE = "KF_PIPELINES_ENDPOINT"
"""Address of the API; the name that KFP's own client reads."""
UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
"""Address of the UI, where it differs; the name that KFP's own client reads."""
TOKEN_VARIABLE = "KFP_TOKEN"
"""The token itself."""
POD_TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
"""File of a pod's token for KFP; the name that KFP's own client reads."""

_POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
API_PORT = 8888
SERVICE = "ml-pipeline"


class ConnectionSettingsError(ValueError):
    """How to reach KFP is not said, or said wrongly; one line with the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """What a user says about the way to KFP.

    Attributes:
        endpoint: Address of the API or the UI, like "https://kfp.example.com"; empty reads the environment.
        token_file: File with the token; empty reads the environment.
        port_forward: Whether to reach the service through kubectl.
        kfp_namespace: Where KFP is installed.
        ca_file: Certificates to trust in place of the usual ones.
        namespace: The user's, where KFP serves several.
    """

    endpoint: str = ""
    token_file: str = ""
    port_forward: bool = False
    kfp_namespace: str = "kubeflow"
    ca_file: str = ""
    namespace: str = ""

    @property
    def address(self) -> str:
        """Address of the API without a slash at its end; empty with `port_forward`, which makes one.

        Raises:
            ConnectionSettingsError: There is none, or it is not one.
        """
        if self.port_forward:
            if self.endpoint:
                raise ConnectionSettingsError("--endpoint and --port-forward are two ways to KFP; give one")
            return ""
        said = self.endpoint or os.environ.get(ENDPOINT_VARIABLE, "")
        if said:
            return _checked(said)
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            return f"http://{SERVICE}.{self.kfp_namespace}.svc.cluster.local:{API_PORT}"
        raise ConnectionSettingsError(
            f"where is Kubeflow Pipelines? Give --endpoint https://..., set {ENDPOINT_VARIABLE}, or use --port-forward "
            "(with kubectl and a kubeconfig)"
        )

    @property
    def ui_address(self) -> str:
        """Address of the UI, for links; empty where none is known (a forwarded port and a pod's way lead to the bare API)."""
        ui = os.environ.get(UI_VARIABLE, "")
        if ui:
            return _checked(ui)
        return _checked(self.endpoint or os.environ[ENDPOINT_VARIABLE]) if self._has_address else ""

    @property
    def _has_address(self) -> bool:
        return not self.port_forward and bool(self.endpoint or os.environ.get(ENDPOINT_VARIABLE))

    def token_reader(self) -> Callable[[], str] | None:
        """Reads the token that now holds; None where none was given.

        Raises:
            ConnectionSettingsError: There is a file and it has none.
        """
        path = self._token_path()
        if path is None:
            token = os.environ.get(TOKEN_VARIABLE, "")
            if not token:
                return None
            _one_word(token, TOKEN_VARIABLE)
            return token.strip
        _read_token(path)
        return lambda: _read_token(path)

    def _token_path(self) -> Path | None:
        if self.token_file:
            return Path(self.token_file).expanduser()
        if os.environ.get(TOKEN_VARIABLE) or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            return None
        path = Path(os.environ.get(POD_TOKEN_VARIABLE) or _POD_TOKEN)
        return path if path.exists() else None

    def is_in_clear(self, address: str) -> bool:
        """Whether a token would leave this machine unencrypted, other than inside the cluster, where KFP is reached so."""
        split = urlsplit(address)
        in_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        return split.scheme == "http" and split.hostname not in _LOOPBACK and not in_pod


def _checked(address: str) -> str:
    bare = address.strip().rpartition("://")[2]
    if holds_password(address):  # first of all: no message below may show it
        raise ConnectionSettingsError(f"the endpoint must not hold a password; give a token by --token-file or {TOKEN_VARIABLE}")
    split = urlsplit(address.strip())
    if split.scheme not in ("http", "https"):
        scheme = "http" if address.startswith(_LOOPBACK) else "https"
        raise ConnectionSettingsError(f"the endpoint {address!r} begins with neither http:// nor https://; did you mean {scheme}://{bare}?")
    try:
        host, _ = split.hostname, split.port
    except ValueError as error:
        raise ConnectionSettingsError(f"the endpoint {address!r} is no address: {error}") from error
    if not host:
        raise ConnectionSettingsError(f"the endpoint {address!r} names no host; it reads https://kfp.example.com")
    # The UI's address from a browser ("http://host/#/runs") is as good: the UI hands on what is asked of the API.
    return urlunsplit((split.scheme, split.netloc, split.path, "", "")).rstrip("/")


def _read_token(path: Path) -> str:
    try:
        token = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConnectionSettingsError(f"--token-file {path} can't be read: {reason}") from error
    return _one_word(token, f"--token-file {path}")


def _one_word(token: str, where: str) -> str:
    word = token.strip()
    if not word or len(word.split()) != 1 or not word.isascii():
        raise ConnectionSettingsError(f"{where} holds no token: it must be one word")
    return word

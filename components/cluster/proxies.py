"""Find the proxy for an address in the environment, like curl and kubectl: https_proxy, http_proxy, all_proxy, no_proxy.

The clients of KFP and Kubernetes, and urllib3, do not read these variables; requests and boto3, which reach MLflow, Ray and S3, do.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import urllib3
from requests.utils import get_auth_from_url, get_environ_proxies, select_proxy  # type: ignore[import-untyped]

from training.config.errors import UserError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_IN_CLUSTER = (".svc", ".svc.cluster.local")


class ProxySettingsError(UserError):
    """A proxy of a kind that can't be used; one line with the remedy."""


class Proxy(NamedTuple):
    """A proxy.

    Attributes:
        url: Its URL, without a password.
        headers: Headers that it needs with each connection; secret.
    """

    url: str
    headers: dict[str, str]


def proxy_for(url: str, *, named: str = "") -> Proxy | None:
    """Return the proxy for an address, or None; `named` takes precedence over the environment's.

    Servers on this machine and Services of the cluster are reached without one.

    Raises:
        ProxySettingsError: The proxy is neither an http:// nor an https:// proxy.
    """
    host = urlsplit(url).hostname or ""
    inside = host in _LOOPBACK or host.endswith(_IN_CLUSTER)
    found = named or (None if inside else select_proxy(url, get_environ_proxies(url)))
    if not found:
        return None
    full = found if "://" in found else f"http://{found}"
    split = urlsplit(full)
    bare = urlunsplit((split.scheme, split.netloc.rpartition("@")[2], "", "", ""))
    if split.scheme not in ("http", "https"):
        raise ProxySettingsError(
            f"the proxy {bare} is neither http:// nor https://, which alone work here; no_proxy={host} connects without it"
        )
    user, password = get_auth_from_url(full)
    return Proxy(bare, dict(urllib3.make_headers(proxy_basic_auth=f"{user}:{password}")) if user else {})


def pool_for(url: str, **options: Any) -> urllib3.PoolManager:
    """Return a pool of connections to an address, through its proxy if it has one."""
    proxy = proxy_for(url)
    return urllib3.ProxyManager(proxy.url, proxy_headers=proxy.headers, **options) if proxy else urllib3.PoolManager(**options)

"""Addresses of services: find and hide users and passwords in them, and tell the addresses that only a cluster can open."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

# A password may contain slashes, as those of S3 do, and at signs. No bucket's name has a colon; elsewhere a port and a path may follow one.
_CREDENTIALS = re.compile(
    r"""(?:(?<=s3)://[^\s/@]*: | ://(?!\[)[^\s/?\#@:]*:(?!\d+[/?\#]))  # a user and a colon, and no IPv6 address
        (?:[^\s@:]|:(?!//))* (?:@[^\s/?\#@]*)*@                        # a password
    | ://[^\s/?\#]+@                                                   # a user alone""",
    re.IGNORECASE | re.VERBOSE,
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def contains_password(address: str) -> bool:
    """Return True for an address that contains a user or a password; its scheme may be missing."""
    address = address.strip()
    return _CREDENTIALS.search(address if _SCHEME.match(address) else f"://{address}") is not None


def without_passwords(text: str) -> str:
    """Return the text with stars for a user and a password before the host of an address."""
    return _CREDENTIALS.sub("://***@", text)


def is_cluster_internal(address: str) -> bool:
    """Return True for an address that no browser outside of a Kubernetes cluster can open."""
    return (urlsplit(address).hostname or "").endswith((".svc", ".cluster.local"))


def public_links(links: Mapping[str, str]) -> dict[str, str]:
    """Return the links, name -> address, without those that only a cluster knows."""
    return {name: address for name, address in links.items() if not is_cluster_internal(address)}

"""Users and passwords in service addresses, which no message and no log may show."""

from __future__ import annotations

import re

# An S3 secret may contain a slash, but no bucket name contains a colon.
_CREDENTIALS = re.compile(r"(?<=s3)://[^\s/@]*:[^\s@]*@|://[^\s/@]+@", re.IGNORECASE)


def contains_password(address: str) -> bool:
    """Return True for an address that contains a user or a password; its scheme may be missing."""
    return "@" in re.split(r"[/?#]", address.strip().rpartition("://")[2])[0]


def without_passwords(text: str) -> str:
    """Return the text with stars for a user and a password before the host of an address."""
    return _CREDENTIALS.sub("://***@", text)

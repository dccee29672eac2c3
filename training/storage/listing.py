"""An entry of a listing."""

from __future__ import annotations

from typing import NamedTuple


class Stored(NamedTuple):
    """An object in S3, or a file.

    Attributes:
        version: See `training.storage.version`.
        modified: Time of the last write, in seconds since 1970.
    """

    uri: str
    num_bytes: int
    version: str
    modified: float

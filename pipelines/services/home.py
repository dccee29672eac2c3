"""The folder that the local services live in: its lock, its secrets, the ports that were chosen."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.console import format_bytes, say

_MIN_FREE_BYTES = 512 * 2**20


class ServicesError(ValueError):
    """The services can't be started, stopped or found; the message is one line with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The one account of the local S3, made up at the first start."""

    key_id: str
    secret: str = field(repr=False)


def default_home() -> Path:
    """The folder that `IDDPM_HOME` names, else `.iddpm` where the command was given."""
    return Path(os.environ.get("IDDPM_HOME") or ".iddpm").expanduser().resolve()


def prepare(home: Path) -> None:
    """Makes the folder, readable by its owner alone.

    Raises:
        ServicesError: It can't be made or written, or its disk has no room to speak of.
    """
    remedy = "set IDDPM_HOME to a folder that you can write"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ServicesError(f"{home}: {error.strerror}; {remedy}") from error
    free = shutil.disk_usage(home).free
    if free < _MIN_FREE_BYTES:
        raise ServicesError(
            f"{home}: only {format_bytes(free)} are free on its disk and the services need {format_bytes(_MIN_FREE_BYTES)}; "
            "free some, or set IDDPM_HOME to a folder on another disk"
        )


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Holds the folder's lock, so that two commands at once take turns; the lock goes with its process."""
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command is starting or stopping the services; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def credentials(home: Path) -> Credentials:
    """The stored account; makes one up the first time.

    Raises:
        ServicesError: The file is damaged.
    """
    path = home / "credentials.json"
    if not path.exists():
        write_private(path, {"key_id": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)})
    path.chmod(0o600)
    value = _read(path)
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("key_id", "secret")):
        raise ServicesError(f"{path}: is damaged; stop the services (iddpm down) and delete this file, a new one is made at the next start")
    return Credentials(key_id=value["key_id"], secret=value["secret"])


def read_ports(home: Path) -> dict[str, int]:
    """The ports of the last start by name; empty where there was none, or the file is damaged (they can be chosen again)."""
    value = _read(home / "ports.json")
    if isinstance(value, dict) and all(isinstance(port, int) for port in value.values()):
        return value
    return {}


def write_ports(home: Path, ports: dict[str, int]) -> None:
    """Remembers the ports."""
    write_private(home / "ports.json", ports)


def write_private(path: Path, value: Any) -> None:
    """Stores `value` as JSON, whole or not at all, readable by the owner alone from the first byte."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(value, file, indent=2)
    partial.replace(path)


def tree_bytes(home: Path) -> int:
    """What the folder takes on the disk (files may have holes)."""
    total = 0
    for directory, _, names in os.walk(home):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118 - thousands of files
    return total


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None

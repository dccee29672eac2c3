"""The directory of the local services: its lock, its credentials, its ports, which are outside the ranges that others draw from."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from training.config.errors import UserError
from training.console import format_bytes, say

_MIN_FREE_BYTES = 512 * 2**20
# Above Ray's worker ports (10002-19999), below the ephemeral ports (from 32768) that any outgoing connection may take.
_RANGE = range(20100, 32000)
_USERS: dict[Path, IO[str]] = {}
"""The open file of each directory whose services this process uses; a shared lock on it counts its users."""


class ServicesError(UserError):
    """The services cannot be started, stopped or found. A command that can do without them catches exactly this."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The one account of the local S3, made at the first start."""

    key_id: str
    secret: str = field(repr=False)


def default_home() -> Path:
    """Return the directory that `IDDPM_HOME` names, or else `.iddpm` in the working directory.

    Raises:
        ServicesError: `IDDPM_HOME` is an address or leads nowhere, or the working directory was deleted.
    """
    name = os.environ.get("IDDPM_HOME") or ".iddpm"
    if "://" in name:
        raise ServicesError(f"IDDPM_HOME is {name}, an address; set it to a directory on this machine")
    try:
        return Path(name).expanduser().resolve()
    except FileNotFoundError as error:
        raise ServicesError("the working directory was deleted; change to one that exists, or set IDDPM_HOME to a whole path") from error
    except RuntimeError as error:  # pathlib's error for links that lead in a circle, and for a user who isn't there
        raise ServicesError(f"IDDPM_HOME is {name}: {error}; set it to a directory that you can write") from error


def prepare(home: Path) -> None:
    """Make the directory, for its owner alone; raise ServicesError if that fails, it has no file locks, or its disk is almost full."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / f".probe-{secrets.token_hex(4)}"
        with probe.open("w", encoding="utf-8") as file, contextlib.ExitStack() as stack:
            stack.callback(probe.unlink)
            no_locks = _no_locks(file)
    except OSError as error:
        raise ServicesError(f"{home}: {error.strerror}; set IDDPM_HOME to a directory that you can write") from error
    if no_locks is not None:
        raise ServicesError(f"{home}: its file system has no file locks ({no_locks}); set IDDPM_HOME to a directory on a local disk")
    disk = shutil.disk_usage(home)
    # SeaweedFS takes no more writes when less than a hundredth of its disk is free.
    needed = max(_MIN_FREE_BYTES, disk.total // 100 + _MIN_FREE_BYTES // 2)
    if disk.free < needed:
        raise ServicesError(
            f"{home}: its disk has {format_bytes(disk.free)} free and the services need {format_bytes(needed)}; "
            "free some space, or set IDDPM_HOME to a directory on another disk"
        )


def _no_locks(file: IO[str]) -> str | None:
    """Return the system's reason why a file can't be locked, or None if it can: network file systems may be mounted without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror
    return None


@contextlib.contextmanager
def lock(home: Path) -> Iterator[None]:
    """Lock the directory, so that two commands take turns. The lock ends with its process."""
    with (home / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command is starting or stopping the services; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def join_users(home: Path) -> None:
    """Count this process, until it ends, among those that use the services."""
    if home not in _USERS:
        _USERS[home] = (home / "users").open("a", encoding="utf-8")
        fcntl.flock(_USERS[home], fcntl.LOCK_SH)


def has_other_users(home: Path) -> bool:
    """Return True if another process uses the services."""
    join_users(home)
    try:
        fcntl.flock(_USERS[home], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        fcntl.flock(_USERS[home], fcntl.LOCK_SH)
    return False


def credentials(home: Path) -> Credentials:
    """Return the stored account; the first call makes it. Raise ServicesError if the file is damaged."""
    path = home / "credentials.json"
    if not path.exists():
        _write_private(path, {"key_id": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)})
    path.chmod(0o600)
    value = _read(path)
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("key_id", "secret")):
        raise ServicesError(f"{path} is damaged; stop the services (iddpm down) and delete this file, the next start makes a new one")
    return Credentials(key_id=value["key_id"], secret=value["secret"])


def read_ports(home: Path) -> dict[str, int]:
    """Return the ports of the last start by name; empty if there was none or the file is damaged."""
    value = _read(home / "ports.json")
    return value if isinstance(value, dict) and all(isinstance(port, int) for port in value.values()) else {}


def write_ports(home: Path, ports: dict[str, int]) -> None:
    """Store the ports."""
    _write_private(home / "ports.json", ports)


def disk_usage(home: Path) -> int:
    """Return the bytes that the directory occupies on its disk (files may have holes)."""
    total = 0
    for directory, _, names in os.walk(home):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118 - thousands of files
    return total


def _write_private(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all, readable by the owner alone from the first byte."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
    partial.replace(path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except PermissionError as error:  # of another user; who needs no services goes on without
        raise ServicesError(f"{path}: {error.strerror}; set IDDPM_HOME to a directory of your own") from error


def free_ports(count: int) -> list[int]:
    """Return `count` free ports at random, so that two programs rarely draw the same; raise OSError if too few are."""
    with contextlib.ExitStack() as listeners:
        found: list[int] = []
        for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
            if len(found) == count:
                return found
            if (listener := _bind(port)) is not None:
                listeners.enter_context(listener)
                found.append(port)
    raise OSError(
        f"{count} free ports are needed on 127.0.0.1 between {_RANGE.start} and {_RANGE.stop}; stop some programs that listen there"
    )


def are_free(ports: Iterable[int]) -> bool:
    """Tell whether nothing listens on any of the ports."""
    with contextlib.ExitStack() as listeners:
        for port in ports:
            if (listener := _bind(port)) is None:
                return False
            listeners.enter_context(listener)
    return True


def _bind(port: int) -> socket.socket | None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last connection is in TIME_WAIT is free
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        return None
    return listener

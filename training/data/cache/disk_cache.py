"""A bounded cache on a node's disk, shared by all processes of the node.

An entry is a file or directory, made completely by the first process that needs it. Each user of an entry has a shared lock on the
lock file next to it, and its maker the lock on another file too; the kernel releases both if the process dies. Only an entry without
users is ever evicted, the least recently used first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from training import storage
from training.config.errors import UserError
from training.console import format_bytes, say

TMPDIR_REMEDY = "free some space there, or point TMPDIR elsewhere"
STAGING_REMEDY = "free some space, choose another cache directory, or set a disk budget to stream the data"
_CACHE_REMEDY = "choose a cache directory, or point TMPDIR to one, in which this user may write and there is room"

_LOCK = ".lock"
_MAKER_LOCK = ".maker.lock"
_PARTIAL = ".partial"
_EVICTION_LOCK = "room.lock"
_NAME = re.compile(r"(archive-)?[0-9a-f]{32}(\.stream)?|group-\d{6,}\.npy")
"""The names of entries. A user may choose a directory in which other files and other locks are too."""


def default_cache_dir() -> Path:
    """Return the default cache directory: one per user and node, on the temporary disk."""
    return Path(tempfile.gettempdir()) / f"iddpm-data-{os.getuid()}"


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Lock the file `path` against other processes of this node; the kernel unlocks it if this process dies."""
    with contextlib.ExitStack() as stack:
        with explain_local_disk_errors(path.parent, _CACHE_REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w", encoding="utf-8"))
        _flock(file.fileno(), fcntl.LOCK_EX, path.parent)
        yield


def _flock(descriptor: int, kind: int, directory: Path) -> None:
    """Lock an open file; network file systems may be mounted without locks."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        raise UserError(
            f"{directory}: its file system has no file locks ({error.strerror}); choose a cache directory, or point TMPDIR to one, on a "
            "local disk"
        ) from error


class CacheEntry:
    """An entry in use: it is not evicted as long as this object exists, or until `release` is called."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.release = weakref.finalize(self, os.close, descriptor)


def get_or_make(path: Path, make: Callable[[Path], None], *, is_intact: Callable[[Path], bool] = Path.exists) -> CacheEntry:
    """Return the entry `path`, made by `make` unless it exists already.

    Args:
        path: The entry, which is evicted only if its name is one of `_NAME`; entries of one name always have the same content.
        make: Makes the entry at the path that it receives, while no other process makes it; after a failure the path is removed.
        is_intact: Checks an existing entry; a damaged one, for instance after a crash of the machine, is made again.

    Raises:
        UserError: The directory can't be written to.
    """
    with explain_local_disk_errors(path.parent, _CACHE_REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(_sibling(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Never the exclusive one: the maker of an entry keeps its shared lock, so who waits for it to end could wait for days.
        _flock(lock, fcntl.LOCK_SH, path.parent)
        if not (path.exists() and is_intact(path)):
            with file_lock(_sibling(path, _MAKER_LOCK)):
                if not (path.exists() and is_intact(path)):
                    _make(path, make)
        os.utime(path)
    except BaseException:
        os.close(lock)
        raise
    return CacheEntry(path, lock)


def _make(path: Path, make: Callable[[Path], None]) -> None:
    if path.exists():
        say(f"{path}: this node's copy is damaged, so it is made again")
        _remove(path)
    _remove_partial(path)
    partial = _sibling(path, _PARTIAL)
    try:
        make(partial)
        with explain_local_disk_errors(path.parent, _CACHE_REMEDY):
            _write_out(partial)
            partial.rename(path)
    finally:
        _remove(partial)


@contextlib.contextmanager
def reserve(directory: Path, num_bytes: int, budget_bytes: int | None = None, *, remedy: str = STAGING_REMEDY) -> Iterator[None]:
    """Evict entries until `num_bytes` more fit; during the block, no other process of this node can reserve the same space.

    Args:
        directory: Directory of the entries; made where it is missing.
        budget_bytes: Limit for all entries together, exceeded only by entries in use; None is no limit.

    Raises:
        UserError: The disk has too little space even after the eviction.
    """
    with file_lock(directory / _EVICTION_LOCK):
        for entry in sorted(_entries(directory), key=_last_use):
            fits_budget = budget_bytes is None or num_bytes + _size_of_entries(directory) <= budget_bytes
            if fits_budget and num_bytes <= shutil.disk_usage(directory).free:
                break
            _evict_unused(entry)
        free = shutil.disk_usage(directory).free
        if num_bytes > free:
            needed = format_bytes(num_bytes)
            raise UserError(f"{directory}: needs {needed} for a copy of the data, but {format_bytes(free)} are free; {remedy}")
        yield


@contextlib.contextmanager
def explain_local_disk_errors(subject: Path | str, remedy: str) -> Iterator[None]:
    """Turn the error of a full or failing disk into a `UserError`; those of storage pass."""
    try:
        yield
    except storage.StorageError:
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or error
        raise UserError(f"{subject}: {reason}; {remedy}") from error


def size_on_disk(path: Path, pattern: str = "*") -> int:
    """Return the bytes of a file, or of the files below a directory that match; files that disappear meanwhile count as 0."""
    if path.is_dir():
        # Unlike `rglob`, `walk` passes over a directory that disappears.
        found = [Path(directory, name) for directory, _, names in os.walk(path) for name in fnmatch.filter(names, pattern)]
    else:
        found = [path]
    total = 0
    for file in found:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _entries(directory: Path) -> list[Path]:
    paths = (path.with_name(path.name.removesuffix(_LOCK)) for path in directory.iterdir() if path.name.endswith(_LOCK))
    return [path for path in paths if _NAME.fullmatch(path.name) and (path.exists() or _sibling(path, _PARTIAL).exists())]


def _size_of_entries(directory: Path) -> int:
    """Return the bytes of all entries, and of incomplete ones, which have more after their names, or a dot before."""
    listed = [path for path in directory.iterdir() if _NAME.match(path.name.removeprefix("."))]
    incomplete = [path for path in listed if path.name.endswith(_PARTIAL)]
    # Another thread or process may give an entry its name meanwhile, so names are looked at last: it counts at least once.
    complete = {path.with_name(path.name.removesuffix(_PARTIAL).removesuffix(_LOCK)) for path in listed}
    return sum(size_on_disk(path) for path in (*incomplete, *complete))


def _evict_unused(path: Path) -> None:
    with _sibling(path, _LOCK).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _remove_partial(path)
        if path.exists():
            say(f"{path}: removed from this node's cache to make room for other data")
            path.rename(_sibling(path, _PARTIAL))  # a partly removed entry must not have the name of a complete one
            _remove_partial(path)


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _last_use(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def _remove_partial(path: Path) -> None:
    """Remove the remains of a process that died while it made or removed the entry; the caller keeps other processes from both."""
    for found in (_sibling(path, _PARTIAL), *path.parent.glob(f".{path.name}*{_PARTIAL}")):
        _remove(found)


def _write_out(path: Path) -> None:
    """Wait until the files are on the disk: after a crash of the machine an entry must not be there without its content."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""What a node keeps on its disk between runs, bounded: things that no process holds make room for new ones.

An entry is a file or directory, made whole by the first process that needs it. Whoever uses it holds a shared lock on
the file beside it, which the kernel gives up if the process dies; only an entry that nobody holds is ever removed, the
one that was used longest ago first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from training.console import format_bytes, say
from training.data.format.shards import DatasetError

REMEDY = "free some space, choose another cache directory, or set a disk budget to stream the data"

_LOCK = ".lock"
_PARTIAL = ".partial"
_ROOM = "room"  # the lock of whoever is making room


def default_cache_dir() -> Path:
    """Where data is staged unless somebody says otherwise: one directory a user and node, on the temporary disk."""
    return Path(tempfile.gettempdir()) / f"iddpm-data-{os.getuid()}"


@contextlib.contextmanager
def node_lock(path: Path) -> Iterator[None]:
    """Holds the lock file `path` against other processes of this node; the kernel frees it if this one dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Hold:
    """An entry that stays as long as this object does, or until it is released."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.release = weakref.finalize(self, os.close, descriptor)


def hold(path: Path, make: Callable[[Path], None], *, is_whole: Callable[[Path], bool] = Path.exists) -> Hold:
    """The entry `path`, made by `make` unless it is there already.

    Args:
        path: Where it is; one name, one content.
        make: Makes it at the path that it is given; called while no other process makes or holds the same entry. What
            it leaves there when it fails is removed.
        is_whole: Whether an entry is as it was made; one that isn't, after a crash of the machine for instance, is made again.

    Raises:
        Exception: What `make` raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(_beside(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            # Changing from one kind of lock to the other is not atomic, so after each change it is looked again.
            fcntl.flock(lock, fcntl.LOCK_SH)
            if path.exists() and is_whole(path):
                os.utime(path)
                return Hold(path, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path.exists() and is_whole(path)):
                if path.exists():
                    say(f"{path}: this node's copy is damaged, so it is made again")
                    _remove(path)
                _remove_leftovers(path)
                partial = _beside(path, _PARTIAL)
                try:
                    make(partial)
                    partial.rename(path)
                finally:
                    _remove(partial)
    except BaseException:
        os.close(lock)
        raise


def make_room(directory: Path, num_bytes: int, budget_bytes: int | None = None, *, remedy: str = REMEDY) -> None:
    """Removes entries that nobody holds, the one used longest ago first, until so many bytes more fit.

    Args:
        directory: The entries' directory; made where it is missing.
        num_bytes: What is about to be written there.
        budget_bytes: What all entries should take at most, while those that are held allow it; None is any amount.
        remedy: For the message.

    Raises:
        DatasetError: The disk has too little room, even so.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = sorted(_entries(directory), key=_last_use)
    while not _fits(directory, num_bytes, budget_bytes) and entries:
        _remove_unheld(entries.pop(0))
    free = shutil.disk_usage(directory).free
    if num_bytes > free:
        raise DatasetError(
            f"{directory}: needs {format_bytes(num_bytes)} for a copy of the data, but {format_bytes(free)} are free; {remedy}"
        )


def _fits(directory: Path, num_bytes: int, budget_bytes: int | None) -> bool:
    if num_bytes > shutil.disk_usage(directory).free:
        return False
    return budget_bytes is None or num_bytes + sum(map(_size, directory.iterdir())) <= budget_bytes


@contextlib.contextmanager
def making_room(directory: Path) -> Iterator[None]:
    """While it lasts, nobody else of this node counts on the same room."""
    with node_lock(directory / f"{_ROOM}{_LOCK}"):
        yield


def out_of_room(directory: Path, num_bytes: int, error: OSError) -> DatasetError:
    """The message for a disk that turned out to be full, or otherwise unfit, while data was written to it."""
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return DatasetError(f"{directory}: staging {format_bytes(num_bytes)} of data: {reason}; {REMEDY}")


def _entries(directory: Path) -> list[Path]:
    names = (path.with_name(path.name.removesuffix(_LOCK)) for path in directory.iterdir() if path.name.endswith(_LOCK))
    return [path for path in names if path.exists() or _beside(path, _PARTIAL).exists()]


def _remove_unheld(path: Path) -> None:
    with _beside(path, _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _remove_leftovers(path)
        if path.exists():
            partial = _beside(path, _PARTIAL)
            say(f"{path}: removed from this node's cache to make room for other data")
            path.rename(partial)  # so that half of an entry never has its name
            _remove(partial)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _last_use(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def _remove_leftovers(path: Path) -> None:
    """What a process that died left behind of making or removing the entry; its lock is held."""
    for found in (_beside(path, _PARTIAL), *path.parent.glob(f".{path.name}*{_PARTIAL}")):
        _remove(found)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = (found for found in path.rglob("*") if found.is_file()) if path.is_dir() else (path,)
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total

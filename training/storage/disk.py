"""The disk's half of `training.storage`: files below `file:///path` or a path, by the standard library alone."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from training.console import format_bytes
from training.storage.errors import StorageError, explained_disk

_PARTIAL_SUFFIX = ".partial"


def local_path(uri: str) -> Path:
    """The path of an address on disk.

    Raises:
        StorageError: It is of neither a file nor S3.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme != "file":
        raise StorageError(f"{uri}: {scheme}:// is not supported; use s3://, file:// or a path")
    return Path(unquote(rest.removeprefix("localhost")))


def read(uri: str) -> bytes:
    """The file's bytes."""
    with explained_disk(uri):
        return local_path(uri).read_bytes()


def write(uri: str, data: bytes, *, if_absent: bool) -> bool:
    """Puts a whole file in place; False where `if_absent` found another."""
    with explained_disk(uri), _partial_file(local_path(uri), num_bytes=len(data)) as partial:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the new name must not reach the disk before the data
        return _put_in_place(partial, local_path(uri), if_absent=if_absent)


def size(uri: str) -> int:
    """The file's bytes, counted."""
    with explained_disk(uri):
        path = local_path(uri)
        if path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "is a directory", str(path))
        return path.stat().st_size


def version(uri: str) -> str:
    """Size, time and inode."""
    with explained_disk(uri):
        found = local_path(uri).stat()
        return f"{found.st_size}-{found.st_mtime_ns}-{found.st_dev}-{found.st_ino}"


def files(prefix_uri: str) -> Iterator[str]:
    """Addresses of all files below a directory."""
    with explained_disk(prefix_uri):
        root = local_path(prefix_uri)
        yield from (_uri_of(path, root, prefix_uri) for path in _files_below(root))


def directories(prefix_uri: str) -> Iterator[str]:
    """Addresses of the directories directly below one that hold a file."""
    with explained_disk(prefix_uri):
        root = local_path(prefix_uri)
        children = root.iterdir() if root.is_dir() else ()
        yield from (_uri_of(child, root, prefix_uri) for child in children if child.is_dir() and any(_files_below(child)))


def delete(uri: str) -> None:
    """Removes the file, if it is there."""
    with explained_disk(uri):
        local_path(uri).unlink(missing_ok=True)


def delete_below(uri: str) -> int:
    """Removes a directory; how many files it held."""
    root = local_path(uri).absolute()
    if root == Path(root.anchor):
        raise StorageError(f"{uri}: is the root of the disk; name a directory below it")
    with explained_disk(uri):
        count = sum(1 for _ in _files_below(root))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(root)
        return count


def delete_leftovers(uri: str, *, older_than_seconds: float) -> None:
    """Removes what writers that were killed left below a directory."""
    with explained_disk(uri):
        for path in local_path(uri).rglob(f".*{_PARTIAL_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > older_than_seconds:
                    path.unlink()


@contextlib.contextmanager
def whole_file(target: Path, what: str, *, num_bytes: int) -> Iterator[Path]:
    """A path to write to, which becomes `target` at the end of the block; `what` is what an error is about."""
    with explained_disk(what), _partial_file(target, num_bytes=num_bytes) as partial:
        yield partial
        partial.replace(target)


def _uri_of(path: Path, root: Path, root_uri: str) -> str:
    if "://" not in root_uri:
        return str(path)
    # Only what `local_path` would read as an escape is escaped, so that a listing equals what `storage.join` makes.
    return f"{root_uri.rstrip('/')}/{path.relative_to(root).as_posix().replace('%', '%25')}"


def _files_below(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.suffix != _PARTIAL_SUFFIX and path.is_file())


@contextlib.contextmanager
def _partial_file(target: Path, *, num_bytes: int) -> Iterator[Path]:
    """A new name beside `target` to write to; whatever is left under it afterwards goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if num_bytes > free:
        raise OSError(errno.ENOSPC, f"needs {format_bytes(num_bytes)}, {format_bytes(free)} free", str(target))
    partial = target.parent / f".{target.name[:100]}.{secrets.token_hex(6)}{_PARTIAL_SUFFIX}"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _put_in_place(partial: Path, target: Path, *, if_absent: bool) -> bool:
    if not if_absent:
        partial.replace(target)
        return True
    try:
        os.link(partial, target)  # unlike a rename, fails where the name is taken
    except FileExistsError:
        return False
    return True

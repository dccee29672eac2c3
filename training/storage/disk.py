"""The disk backend of `training.storage`, which says what each function does. It needs only the standard library."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from training.console import format_bytes
from training.storage.errors import ObjectNotFoundError, StorageError, explain_disk_errors
from training.storage.listing import Stored

_PARTIAL_SUFFIX = ".partial"
_ADDRESS_AS_PATH = re.compile("s3:/|(file|gs|https?):/(?!/)")
"""An address that went through `Path`, which makes one slash of two. As a path it would make a folder named like the scheme."""
_ABANDONED_SECONDS = 60.0
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # a FAT disk, a share, a bucket that is mounted as a directory


def local_path(uri: str) -> Path:
    """Return the path of a URI on disk.

    Raises:
        StorageError: It has another scheme than file://, or is an address that was read as a path.
    """
    if _ADDRESS_AS_PATH.match(uri):
        raise StorageError(
            f"{uri}: is neither a path nor a whole address; name a path on this machine, or where an address is taken, "
            "s3://bucket/key or file:///path"
        )
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme != "file":
        raise StorageError(f"{uri}: {scheme}:// is not supported; use s3://, file:// or a path")
    return Path(unquote(rest.removeprefix("localhost")))


def absolute(uri: str) -> str:
    """Return the whole address of a path on this machine, which means the same in every folder; an address with a scheme stays as it is.

    Raises:
        StorageError: It is an address that was read as a path, such as s3:/bucket.
    """
    return str(local_path(uri).absolute()) if uri and "://" not in uri else uri


def make_directory(path: str | Path) -> None:
    """Make a directory on this machine where it is missing: before long work, so that a place that can't be written is refused early."""
    with explain_disk_errors(str(path)):
        directory = local_path(str(path))
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def check_directory(path: Path) -> None:
    """Refuse a directory that can't be made or written, and make none."""
    with explain_disk_errors(str(path)):
        existing = next(each for each in (path, *path.parents) if each.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
    if not shutil.disk_usage(existing).total:  # /proc refuses files even to root; a share that tells no size is tried
        trial = existing / f".{secrets.token_hex(6)}{_PARTIAL_SUFFIX}"
        try:
            trial.touch()
            trial.unlink()
        except OSError as error:
            raise StorageError(f"{existing}: no file can be made in this directory; name another directory") from error


def read_bytes(uri: str) -> bytes:
    with _explain_read_errors(uri):
        return local_path(uri).read_bytes()


def open_seekable(uri: str) -> BinaryIO:
    with _explain_read_errors(uri):
        return local_path(uri).open("rb")


def write_bytes(uri: str, data: bytes, *, if_absent: bool) -> bool:
    with explain_disk_errors(uri), _partial_file(local_path(uri), num_bytes=len(data)) as partial:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the new name must not reach the disk before the data
        if not if_absent:
            partial.replace(local_path(uri))
            return True
        try:
            os.link(partial, local_path(uri))  # unlike a rename, fails where the name is taken
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            with _locked(local_path(uri).parent):
                if local_path(uri).exists():
                    return False
                partial.replace(local_path(uri))
        return True


def update_bytes(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    directory = local_path(uri).parent
    make_directory(directory)
    with _locked(directory):
        try:
            stored = read_bytes(uri)
        except ObjectNotFoundError:
            stored = None
        write_bytes(uri, change(stored), if_absent=False)


def size(uri: str) -> int:
    with _explain_read_errors(uri):
        path = local_path(uri)
        if path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "is a directory", str(path))
        return path.stat().st_size


def version(uri: str) -> str:
    with explain_disk_errors(uri):
        found = local_path(uri).stat()
        return f"{found.st_size}-{found.st_mtime_ns}-{found.st_dev}-{found.st_ino}"


def list_objects(prefix_uri: str) -> Iterator[Stored]:
    with explain_disk_errors(prefix_uri):
        root = local_path(prefix_uri)
        for path in _files_below(root):
            with contextlib.suppress(FileNotFoundError, ObjectNotFoundError):  # deleted meanwhile
                uri, found = _uri_of(path, root, prefix_uri), path.stat()
                yield Stored(uri, found.st_size, version(uri), found.st_mtime)


def list_dirs(prefix_uri: str) -> Iterator[str]:
    with explain_disk_errors(prefix_uri):
        root = local_path(prefix_uri)
        children = root.iterdir() if root.is_dir() else ()
        yield from (_uri_of(child, root, prefix_uri) for child in children if child.is_dir() and any(_files_below(child)))


def delete(uri: str) -> None:
    with explain_disk_errors(uri):
        local_path(uri).unlink(missing_ok=True)


def delete_prefix(uri: str) -> int:
    if uri in ("", "file://", "file://localhost"):  # as a path it is the working directory, which an empty value hardly means
        raise StorageError(f"{uri!r}: names no directory; name the one to delete")
    root = local_path(uri).absolute()
    if Path(os.path.realpath(root)) == Path(root.anchor):
        raise StorageError(f"{uri}: is the root of the disk; name a directory below it")
    with explain_disk_errors(uri):
        count = sum(1 for _ in _files_below(root))
        shutil.rmtree(root, onerror=lambda function, path, reason: _raise_unless_gone(reason[1]))
        return count


def delete_partial_files(uri: str) -> None:
    with explain_disk_errors(uri):
        for path in _paths_below(local_path(uri)):
            with contextlib.suppress(FileNotFoundError):
                if path.name.startswith(".") and path.suffix == _PARTIAL_SUFFIX and _is_abandoned(path):
                    path.unlink()


def copy_to(uri: str, path: Path, num_bytes: int) -> None:
    shutil.copyfile(local_path(uri), path)


def upload(path: Path, uri: str) -> None:
    with complete_file(local_path(uri), f"{path} to {uri}", num_bytes=size(str(path))) as partial:
        shutil.copyfile(path, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # as in `write_bytes`


@contextlib.contextmanager
def complete_file(target: Path, subject: str, *, num_bytes: int) -> Iterator[Path]:
    """Provide a path to write to, which becomes `target` at the end of the block; errors name `subject`."""
    with explain_disk_errors(subject), _partial_file(target, num_bytes=num_bytes) as partial:
        yield partial
        partial.replace(target)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes out of the block for the same directory; a file system without such locks keeps nobody out."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explain_read_errors(uri: str) -> Iterator[None]:
    """Explain the errors of a read: a name below a file is missing, as in S3. For a write it is another error."""
    with explain_disk_errors(uri):
        try:
            yield
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), error.filename) from error


def _uri_of(path: Path, root: Path, root_uri: str) -> str:
    """Return a file's address, which equals the result of `storage.join` on the address of the directory, however that is written."""
    name = path.relative_to(root).as_posix()
    if "://" in root_uri:
        name = name.replace("%", "%25")  # only what `local_path` would unescape
    return f"{root_uri.rstrip('/')}/{name}" if root_uri else name


def _files_below(directory: Path) -> Iterator[Path]:
    return (path for path in _paths_below(directory) if path.suffix != _PARTIAL_SUFFIX and path.is_file())


def _paths_below(directory: Path) -> Iterator[Path]:
    """Yield everything below a directory but directories; what another process deletes meanwhile may be missing."""
    for folder, _, names in os.walk(directory, onerror=_raise_unless_gone):
        yield from (Path(folder, name) for name in names)


def _raise_unless_gone(error: BaseException) -> None:
    """Raise an error about a path, unless the path does not exist (any more) or is a file, which has nothing below it."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _is_abandoned(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS


@contextlib.contextmanager
def _partial_file(target: Path, *, num_bytes: int) -> Iterator[Path]:
    """Provide a new name next to `target` to write to; a file that still has it at the end is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    space = shutil.disk_usage(target.parent)
    if num_bytes > space.free and space.total:  # /proc has no size, nor have some shares
        raise OSError(errno.ENOSPC, f"needs {format_bytes(num_bytes)}, {format_bytes(space.free)} free", str(target))
    # A name may have 255 bytes, and a character up to four.
    partial = target.parent / f".{target.name[:50]}.{secrets.token_hex(6)}{_PARTIAL_SUFFIX}"
    try:
        yield partial
    except FileNotFoundError as error:
        if space.total:
            raise
        raise StorageError(f"{target}: no file can be made in this directory; name another directory") from error
    finally:
        partial.unlink(missing_ok=True)

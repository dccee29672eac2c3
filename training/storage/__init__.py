"""Read and write bytes by URI, in S3 (`s3://bucket/key`) or on disk (`file:///path` or a path), with the same behaviour in both.

`from training import storage` is how every other package reads and writes. This is the only package that imports boto3: its module `s3`
is imported at the first S3 URI, so that local paths need the standard library alone. The environment selects the server and credentials.

A write is seen completely or not at all. A directory is only a common prefix of names, so there are no empty directories.
A function that finds nothing under the URI that it needs raises `ObjectNotFoundError`. Every other failure (refused credentials,
a missing bucket, no answer, a full disk) is a `StorageError` whose one line names the URI and the remedy.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from training.config.errors import UserError
from training.config.validation import parse_json, validate_stored
from training.storage import disk
from training.storage.disk import absolute as absolute
from training.storage.disk import local_path as local_path
from training.storage.disk import make_directory as make_directory
from training.storage.errors import MissingKeyError as MissingKeyError
from training.storage.errors import ObjectNotFoundError as ObjectNotFoundError
from training.storage.errors import StorageError as StorageError
from training.storage.listing import Stored as Stored
from training.storage.retry import OUTAGE_SECONDS as OUTAGE_SECONDS
from training.storage.retry import retry as retry
from training.storage.scratch import scratch_directory as scratch_directory

_Record = TypeVar("_Record")


class _Backend(Protocol):
    """The functions that the modules `s3` and `disk` share; each does what the function of the same name below says."""

    def read_bytes(self, uri: str) -> bytes: ...
    def open_seekable(self, uri: str) -> BinaryIO: ...
    def write_bytes(self, uri: str, data: bytes, *, if_absent: bool) -> bool: ...
    def update_bytes(self, uri: str, change: Callable[[bytes | None], bytes]) -> None: ...
    def size(self, uri: str) -> int: ...
    def version(self, uri: str) -> str: ...
    def list_objects(self, prefix_uri: str) -> Iterable[Stored]: ...
    def list_dirs(self, prefix_uri: str) -> Iterable[str]: ...
    def delete(self, uri: str) -> None: ...
    def delete_prefix(self, uri: str) -> int: ...
    def copy_to(self, uri: str, path: Path, num_bytes: int) -> None: ...
    def upload(self, path: Path, uri: str) -> None: ...


def _backend(uri: str) -> _Backend:
    if not is_s3(uri):
        return disk
    from training.storage import s3

    return s3


def join(uri: str, *parts: str) -> str:
    """Return `uri` with `parts` below it, one slash between each."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def is_s3(uri: str) -> bool:
    """Return True for a URI in S3, False for one on disk."""
    return uri.startswith("s3://")


def is_same(uri: str, other: str) -> bool:
    """Return True if two addresses name one place, however a path on this machine is written."""
    first, second = (each.rstrip("/") if is_s3(each) else str(local_path(each).resolve()) for each in (uri, other))
    return first == second


def read_bytes(uri: str) -> bytes:
    """Read everything stored under `uri`."""
    return _backend(uri).read_bytes(uri)


def open_seekable(uri: str) -> BinaryIO:
    """Open what is stored under `uri` for reading in parts; in S3 each read is a request for its range alone."""
    return _backend(uri).open_seekable(uri)


def write_bytes(uri: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Store `data` under `uri`; readers see the old content or the new, never a part.

    Args:
        uri: The address. Missing directories on disk are made; a bucket must exist.
        if_absent: Write only where nothing is stored yet, atomically: only one of several writers succeeds. (If
            the answer to its request is lost and the request is sent again, it too receives False.)

    Returns:
        True if it was written; False only with `if_absent`, where something was there.
    """
    return _backend(uri).write_bytes(uri, data, if_absent=if_absent)


def update_bytes(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    """Replace what is stored under `uri` by what `change` makes of it; of several writers at once, each changes what the one before left.

    Args:
        uri: The address.
        change: Gets what is stored, None where nothing is. In S3 it is called again if another writer came between. (If the answer
            to its request is lost and the request is sent again, it gets what it made itself.)
    """
    _backend(uri).update_bytes(uri, change)


class _Object(dict[str, Any]):
    """A stored JSON object, or one inside it, so that an error about a key that it has not names the file."""

    uri = ""

    def __missing__(self, key: str) -> Any:
        raise MissingKeyError(f"{self.uri}: has no {key!r}; {_CHECK}")


_CHECK = "it is damaged or another kind of file, so check the address"


def read_json(uri: str, shape: type | None = None) -> dict[str, Any]:
    """Read the JSON object stored under `uri`.

    Args:
        uri: The address.
        shape: A dataclass with the types of fields, by which the object is checked with pydantic; other fields are not.

    Raises:
        StorageError: It is no JSON object, or not of that shape. To ask it, or an object inside it, for a missing key is one too.
    """
    data = read_bytes(uri)

    def named(value: dict[str, Any]) -> _Object:
        found = _Object(value)
        found.uri = uri
        return found

    try:
        value = parse_json(data, object_hook=named)
    except ValueError as error:
        raise StorageError(f"{uri}: is not JSON ({error}); {_CHECK}") from error
    if not isinstance(value, _Object):
        raise StorageError(f"{uri}: is not a JSON object (it begins with {data[:20]!r}); {_CHECK}")
    if shape is not None:
        _require(shape, uri, data)
    return value


def read_record(uri: str, cls: type[_Record]) -> _Record:
    """Read the JSON object under `uri` as an object of a dataclass; a missing field, or a wrong type, is a `StorageError`."""
    return parse_record(uri, read_bytes(uri), cls)


def parse_record(uri: str, data: bytes, cls: type[_Record]) -> _Record:
    """Return `data`, which was read from `uri`, as `read_record` returns it."""
    return cast(_Record, _require(cls, uri, data))


def _require(cls: type, uri: str, data: bytes) -> Any:
    try:
        return validate_stored(cls, data)
    except UserError as error:
        raise StorageError(f"{uri}: {error}; {_CHECK}") from error


def write_json(uri: str, value: Any, *, if_absent: bool = False) -> bool:
    """Store `value` as JSON, indented by two spaces, with a newline at the end; otherwise like `write_bytes`."""
    return write_bytes(uri, (json.dumps(value, indent=2) + "\n").encode(), if_absent=if_absent)


def exists(uri: str) -> bool:
    """Return True if something is stored under exactly `uri`; a directory does not count."""
    try:
        size(uri)
    except ObjectNotFoundError:
        return False
    return True


def check_destination(uri: str) -> None:
    """Refuse a place where no file can be written: before long work, so that its result is not lost. Nothing is left there.

    Raises:
        StorageError: `uri` is a directory, its own directory can't be written, or its bucket is missing or refused.
    """
    if is_s3(uri):
        exists(uri)
        return
    if local_path(uri).is_dir():
        raise StorageError(f"{uri}: is a directory; name the file to write")
    disk.check_directory(local_path(uri).parent)


def size(uri: str) -> int:
    """Return the number of bytes stored under `uri`."""
    return _backend(uri).size(uri)


def version(uri: str) -> str:
    """Return a string that changes whenever something else is stored under `uri`, even of the same size.

    In S3 it consists of size, entity tag (which follows the content) and time; on disk, of size, time and inode.
    """
    return _backend(uri).version(uri)


def list_objects(prefix_uri: str) -> list[Stored]:
    """List like `list_uris`, each with its size in bytes, its `version` and the time of its last write."""
    return sorted(_backend(prefix_uri).list_objects(prefix_uri))


def list_uris(prefix_uri: str) -> list[str]:
    """List everything stored below the directory `prefix_uri`, at any depth, sorted; empty where there is no such directory."""
    return [stored.uri for stored in list_objects(prefix_uri)]


def list_dirs(prefix_uri: str) -> list[str]:
    """List the directories directly below `prefix_uri` that contain something, sorted, without a slash at the end."""
    return sorted(_backend(prefix_uri).list_dirs(prefix_uri))


def delete(uri: str) -> None:
    """Delete what is stored under exactly `uri`; it is no error if there is nothing."""
    _backend(uri).delete(uri)


def delete_prefix(uri: str) -> int:
    """Delete everything below the directory `uri`; return the number of objects or files."""
    return _backend(uri).delete_prefix(uri)


def delete_partial_files(uri: str) -> None:
    """Delete the unfinished files of killed writers below a directory on disk; S3 shows no unfinished object."""
    if not is_s3(uri):
        disk.delete_partial_files(uri)


def download(uri: str, path: str | Path, *, num_bytes: int | None = None) -> Path:
    """Copy what is stored under `uri` to the file `path`, which appears completely or not at all; a known size saves a request."""
    target, num_bytes = Path(path), size(uri) if num_bytes is None else num_bytes
    with disk.complete_file(target, f"{uri} to {target}", num_bytes=num_bytes) as partial:
        _backend(uri).copy_to(uri, partial, num_bytes)
    return target


def upload(path: str | Path, uri: str) -> None:
    """Store the file `path` under `uri`, in parallel parts where it is large; it is seen completely or not at all."""
    _backend(uri).upload(Path(path), uri)


@contextlib.contextmanager
def open_local(uri: str) -> Iterator[Path]:
    """Provide a local file with the content of `uri`, to read only: the file itself, or a copy that is deleted at the end."""
    if not is_s3(uri):
        size(uri)
        yield local_path(uri)
        return
    with scratch_directory("copy") as directory:
        yield download(uri, directory / uri.rpartition("/")[2])

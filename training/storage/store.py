"""Bytes by name, in S3 (`s3://bucket/key`) or on disk (`file:///path` or a path): one meaning for both.

A write is seen whole or not at all. A directory is only a common beginning of names, so an empty one doesn't exist.
Every failure is a `StorageError` whose one line names the thing and the remedy. S3 is whatever the environment says:
`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`; credentials come from nowhere else in
this project. Each end is a module of its own, `training.storage.s3` and `training.storage.disk`; the former, and with it boto3, is
imported at the first S3 address, so that local paths need the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.storage import disk
from training.storage.disk import local_path as local_path
from training.storage.errors import ObjectNotFoundError as ObjectNotFoundError
from training.storage.errors import StorageError as StorageError


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it, one slash between each."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def is_s3(uri: str) -> bool:
    """Whether `uri` lies in S3 rather than on disk."""
    return uri.startswith("s3://")


def read_bytes(uri: str) -> bytes:
    """Everything stored under `uri`.

    Raises:
        ObjectNotFoundError: There is nothing.
        StorageError: It can't be read.
    """
    if is_s3(uri):
        from training.storage import s3

        return s3.read(uri)
    return disk.read(uri)


def write_bytes(uri: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Stores `data` under `uri`; readers see the old content or the new, never a part.

    Args:
        uri: Where. Missing directories on disk are made; a bucket has to exist.
        data: What.
        if_absent: Write only where nothing is stored yet, atomically: of any number of writers one succeeds. (If
            that one's answer is lost on the way and the request sent again, even it is told False.)

    Returns:
        Whether it was written: False only with `if_absent`, where something was there.

    Raises:
        StorageError: It can't be written.
    """
    if is_s3(uri):
        from training.storage import s3

        return s3.write(uri, data, if_absent=if_absent)
    return disk.write(uri, data, if_absent=if_absent)


def read_json(uri: str) -> Any:
    """The JSON value stored under `uri`.

    Raises:
        ObjectNotFoundError: There is nothing.
        StorageError: It can't be read, or isn't JSON.
    """
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(f"{uri}: is not JSON ({error}); it was damaged, or isn't the file that was meant") from error


def write_json(uri: str, value: Any, *, if_absent: bool = False) -> bool:
    """Stores `value` as JSON with two spaces and a newline at the end; the rest is `write_bytes`."""
    return write_bytes(uri, (json.dumps(value, indent=2) + "\n").encode(), if_absent=if_absent)


def exists(uri: str) -> bool:
    """Whether something is stored under exactly `uri`; a directory is not something.

    Raises:
        StorageError: It can't be told: missing bucket, refused credentials, no answer.
    """
    try:
        size(uri)
    except ObjectNotFoundError:
        return False
    return True


def size(uri: str) -> int:
    """Bytes stored under `uri`.

    Raises:
        ObjectNotFoundError: There is nothing.
        StorageError: It can't be told.
    """
    if is_s3(uri):
        from training.storage import s3

        return s3.size(uri)
    return disk.size(uri)


def version(uri: str) -> str:
    """A word that changes whenever something else is stored under `uri`, even of the same size.

    In S3 it is the entity tag, which follows the content, with size and time; on disk, size, time and inode.

    Raises:
        ObjectNotFoundError: There is nothing.
        StorageError: It can't be told.
    """
    if is_s3(uri):
        from training.storage import s3

        return s3.version(uri)
    return disk.version(uri)


def list_objects(prefix_uri: str) -> list[tuple[str, int, str]]:
    """As `list_uris`, each with its bytes and what `version` says of it."""
    if is_s3(prefix_uri):
        from training.storage import s3

        return sorted(s3.objects(prefix_uri))
    return [(uri, size(uri), version(uri)) for uri in list_uris(prefix_uri)]


def list_uris(prefix_uri: str) -> list[str]:
    """Everything stored below the directory `prefix_uri`, at any depth, sorted; empty where there is no such thing."""
    if is_s3(prefix_uri):
        from training.storage import s3

        return sorted(s3.keys(prefix_uri))
    return sorted(disk.files(prefix_uri))


def list_dirs(prefix_uri: str) -> list[str]:
    """The directories directly below `prefix_uri` that hold something, sorted, without a slash at the end."""
    if is_s3(prefix_uri):
        from training.storage import s3

        return sorted(s3.directories(prefix_uri))
    return sorted(disk.directories(prefix_uri))


def delete(uri: str) -> None:
    """Removes what is stored under exactly `uri`; nothing there is no error.

    Raises:
        StorageError: It can't be removed.
    """
    if is_s3(uri):
        from training.storage import s3

        s3.delete(uri)
        return
    disk.delete(uri)


def delete_prefix(uri: str) -> int:
    """Removes everything below the directory `uri`.

    Returns:
        How many objects or files were removed.

    Raises:
        StorageError: Something can't be removed, or `uri` is a whole bucket or the root of the disk.
    """
    if is_s3(uri):
        from training.storage import s3

        return s3.delete_below(uri)
    return disk.delete_below(uri)


def delete_leftovers(uri: str, *, older_than_seconds: float = 60.0) -> None:
    """Removes what writers that were killed left below a directory on disk; S3 shows nothing of theirs."""
    if not is_s3(uri):
        disk.delete_leftovers(uri, older_than_seconds=older_than_seconds)


def download(uri: str, path: str | Path) -> Path:
    """Copies what is stored under `uri` to the file `path`, which appears whole or not at all.

    Raises:
        ObjectNotFoundError: There is nothing.
        StorageError: It can't be read, or the disk has no room for it.
    """
    target = Path(path)
    num_bytes = size(uri)
    with disk.whole_file(target, f"{uri} to {target}", num_bytes=num_bytes) as partial:
        if is_s3(uri):
            from training.storage import s3

            s3.download(uri, partial)
        else:
            shutil.copyfile(local_path(uri), partial)
    return target


def upload(path: str | Path, uri: str) -> None:
    """Stores the file `path` under `uri`, in parallel parts where it is large; seen whole or not at all.

    Raises:
        StorageError: The file can't be read, or the other end can't be written.
    """
    source = Path(path)
    num_bytes = size(str(source))
    if is_s3(uri):
        from training.storage import s3

        s3.upload(source, uri)
        return
    with disk.whole_file(local_path(uri), f"{source} to {uri}", num_bytes=num_bytes) as partial:
        shutil.copyfile(source, partial)


@contextlib.contextmanager
def open_local(uri: str) -> Iterator[Path]:
    """A local file with the content of `uri`, to read only: the file itself, or a copy that goes at the end.

    Raises:
        ObjectNotFoundError: There is nothing.
        StorageError: It can't be read, or the disk has no room for it.
    """
    if not is_s3(uri):
        size(uri)
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="iddpm-") as directory:
        yield download(uri, Path(directory) / uri.rpartition("/")[2])

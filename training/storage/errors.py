"""The ways in which reading and writing fail, each as one line that names the thing and the remedy."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from training.config.addresses import without_passwords


class StorageError(OSError):
    """A read, write or listing that failed; the message is one line with the remedy, and without a password.

    Attributes:
        transient: Trying again later may succeed (no answer, a server's own error), unlike a wrong name or secret.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(without_passwords(message))
        self.transient = transient


class ObjectNotFoundError(StorageError):
    """Nothing is stored under that name (the bucket itself exists)."""


@contextlib.contextmanager
def explained_disk(what: str) -> Iterator[None]:
    """Turns the system's errors about files into a `StorageError` about `what`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _explain(what, error) from error


def _explain(what: str, error: OSError) -> StorageError:
    where = f" ({error.filename})" if error.filename and str(error.filename) not in what else ""
    if error.errno == errno.ENOENT:
        return ObjectNotFoundError(f"{what}{where}: there is no such file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        detail = "" if error.strerror == os.strerror(error.errno) else f" ({error.strerror})"
        return StorageError(f"{what}{where}: the disk is full{detail}; free some space, or name a directory on another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{what}{where}: {error.strerror}; give this user the right to it, or name another directory")
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return StorageError(f"{what}{where}: {error.strerror}; a file and a directory can't have one name, so use another")
    return StorageError(f"{what}{where}: {error.strerror or error}; look at the disk")

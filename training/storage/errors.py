"""The errors of reading and writing, each in one line that names the URI and the remedy.

They are not `UserError`s: a storage that does not answer is not the user's mistake, and retries must know which error may pass.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from training.config.addresses import without_passwords


class StorageError(OSError):
    """A read, write or listing that failed; the message is one line with the remedy, and without a password.

    Attributes:
        transient: True where a later attempt may succeed: no answer, or an error of the server itself. False for a wrong name or secret.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(without_passwords(message))
        self.transient = transient


class ObjectNotFoundError(StorageError):
    """Nothing is stored under that name (the bucket itself exists).

    Attributes:
        uri: The name, or both names of a copy; empty if unknown.
    """

    def __init__(self, message: str, *, uri: str = "") -> None:
        super().__init__(message)
        self.uri = uri


class MissingKeyError(StorageError, KeyError):
    """A stored JSON object has no such key; also a `KeyError`, for those who look whether a key is there."""


@contextlib.contextmanager
def explain_disk_errors(subject: str) -> Iterator[None]:
    """Turn the system's errors about files into a `StorageError` about `subject`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _explain(subject, error) from error


def _explain(uri: str, error: OSError) -> StorageError:
    subject = uri
    if error.filename and str(error.filename) not in subject:
        subject += f" ({error.filename})"
    if error.errno == errno.ENOENT:
        return ObjectNotFoundError(f"{subject}: there is no such file", uri=uri)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        detail = "" if error.strerror == os.strerror(error.errno) else f" ({error.strerror})"
        return StorageError(f"{subject}: the disk is full{detail}; free some space, or name a directory on another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{subject}: {error.strerror}; give this user the right to it, or name another directory")
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return StorageError(f"{subject}: {error.strerror}; a file and a directory can't have one name, so use another")
    return StorageError(f"{subject}: {error.strerror or error}; check the disk")

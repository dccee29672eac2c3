"""Directories for temporary files, which are removed also where their process was killed: by the next process that makes one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from training.storage.errors import StorageError

_LOCK = "lock"
_GRACE_SECONDS = 60.0


@contextlib.contextmanager
def scratch_directory(kind: str) -> Iterator[Path]:
    """Make a directory on the temporary disk, after removing those of killed processes, which would fill the disk.

    Beside it is the file `lock`, which this process has locked; the kernel unlocks it if the process dies.

    Args:
        kind: Part of the name: only directories of the same kind are removed.

    Raises:
        StorageError: The temporary disk is full or can't be written.
    """
    prefix = f"iddpm-{kind}-"
    with contextlib.ExitStack() as stack:
        with _explain_disk_errors():
            _remove_abandoned(prefix)
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix))
            lock = stack.enter_context(Path(directory, _LOCK).open("w", encoding="utf-8"))
            with contextlib.suppress(OSError):  # a file system without locks: nobody else gets one either
                fcntl.flock(lock, fcntl.LOCK_EX)
            files = Path(directory, "files")
            files.mkdir()
        yield files


def _remove_abandoned(prefix: str) -> None:
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError), (old / _LOCK).open() as lock:
            if time.time() - old.stat().st_mtime > _GRACE_SECONDS:  # a younger one may be about to be locked
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old)


@contextlib.contextmanager
def _explain_disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or error
        raise StorageError(f"{error.filename or 'temporary files'}: {reason}; free some space there, or point TMPDIR elsewhere") from error

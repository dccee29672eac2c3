"""Directories for temporary files, which are removed also where their process was killed: by the next process that makes one."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
_GRACE_SECONDS = 60.0


@contextlib.contextmanager
def scratch_directory(kind: str) -> Iterator[Path]:
    """Make a directory on the temporary disk, after removing those of killed processes, which would fill the disk.

    Beside it is the file `lock`, which this process has locked; the kernel unlocks it if the process dies.

    Args:
        kind: Part of the name: only directories of the same kind are removed.
    """
    prefix = f"iddpm-{kind}-"
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError), (old / _LOCK).open() as lock:
            if time.time() - old.stat().st_mtime > _GRACE_SECONDS:  # a younger one may be about to be locked
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=prefix) as directory, Path(directory, _LOCK).open("w", encoding="utf-8") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: nobody else gets one either
            fcntl.flock(lock, fcntl.LOCK_EX)
        files = Path(directory, "files")
        files.mkdir()
        yield files

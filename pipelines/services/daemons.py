"""Background processes that outlive the command that started them, found again without pid files.

Each process has its home and name in its environment (`IDDPM_DAEMON=<home>:<name>`), and so have its children. The
process table is the only record of what runs, so a stale file, a reused pid or a killed parent cannot mislead.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from training.distributed.signals import stop_flag

_MARK = "IDDPM_DAEMON"
_LOG_LIMIT = 16 * 2**20
_TERMINATE_SECONDS = 15.0
_KILL_ATTEMPTS = 3
_KILL_SECONDS = 5.0


def start(home: Path, name: str, command: Sequence[str], *, env: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start `command` in its own session, which Ctrl-C in the terminal and a closed terminal do not reach.

    Args:
        home: Directory that the process belongs to.
        name: Name of the process within `home`.
        env: The whole environment; the mark is added.
        log_path: File that its output is appended to. A log larger than 16 MiB is first renamed to `<log>.1`.
    """
    if log_path.exists() and log_path.stat().st_size > _LOG_LIMIT:
        log_path.replace(log_path.with_name(log_path.name + ".1"))
    with log_path.open("ab") as log, stop_flag():
        # Deferred: an exception between the fork and the return would lose the child.
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**env, _MARK: f"{home}:{name}"},
            cwd=home,
            start_new_session=True,
        )
        # Linux shows a new program's environment a moment after Popen returns. Until then `find` would not see it.
        while process.poll() is None and not _environment(psutil.Process(process.pid)):
            time.sleep(0.001)
    return process


def find(home: Path, name: str) -> list[psutil.Process]:
    """Return the running processes that were started under that name and their children, the oldest first."""
    found = [process for process in psutil.process_iter() if _environment(process).get(_MARK) == f"{home}:{name}"]
    return sorted(found, key=lambda process: process.create_time())


def stop(home: Path, names: Sequence[str]) -> int:
    """Terminate the processes of all those names, then kill those that remain; return how many there were.

    Raises:
        RuntimeError: A process does not end (it belongs to another user, or hangs in the kernel).
    """

    def processes() -> list[psutil.Process]:
        return [process for name in names for process in find(home, name)]

    found = processes()
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(found, timeout=_TERMINATE_SECONDS)
    return len({process.pid for process in found} | kill_all(processes))


def kill_all(find_processes: Callable[[], Sequence[psutil.Process]]) -> set[int]:
    """Kill processes until none is found, and return their ids.

    A dying process may start another one, so they are looked for up to three times.

    Raises:
        RuntimeError: Some remain.
    """
    killed: set[int] = set()
    for _ in range(_KILL_ATTEMPTS):
        processes = find_processes()
        if not processes:
            return killed
        for process in processes:
            killed.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=_KILL_SECONDS)
    if remaining := find_processes():
        raise RuntimeError(f"processes {sorted(process.pid for process in remaining)} do not end; stop them by hand, then try again")
    return killed


def _environment(process: psutil.Process) -> dict[str, str]:
    """Return a process's environment; empty for a zombie, for another user's process, and for one that has ended."""
    try:
        return {} if process.status() == psutil.STATUS_ZOMBIE else process.environ()
    except (psutil.Error, OSError):
        return {}

"""Background processes that outlive the command that started them, found again without pid files.

Each carries its name in its environment (`IDDPM_DAEMON=<home>:<name>`), and so do its children. Finding one is asking
the process table, so a stale file, a reused pid, a killed parent or a command that died half-way can't mislead.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

_MARK = "IDDPM_DAEMON"
_LOG_LIMIT = 16 * 2**20


def start(home: Path, name: str, command: Sequence[str], *, env: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Starts `command` in its own session, so that the terminal's Ctrl-C and closing don't reach it.

    Args:
        home: Directory that the process belongs to.
        name: What to call it within `home`.
        command: Program and arguments.
        env: Its whole environment; the mark is added.
        log_path: Where its output is appended. A log beyond 16 MiB is put aside first, as `<log>.1`.
    """
    if log_path.exists() and log_path.stat().st_size > _LOG_LIMIT:
        log_path.replace(log_path.with_name(log_path.name + ".1"))
    with log_path.open("ab") as log, signals_deferred():
        # Deferred: an exception between the fork and this assignment would lose sight of the child.
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**env, _MARK: _mark(home, name)},
            cwd=home,
            start_new_session=True,
        )
    return process


def find(home: Path, name: str) -> list[psutil.Process]:
    """The running processes that were started under that name, oldest first, their children among them."""
    mark, found = _mark(home, name), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def stop(home: Path, names: Sequence[str], *, timeout_seconds: float = 15.0) -> int:
    """Asks the processes of all those names to end, then makes them; returns how many there were.

    Raises:
        RuntimeError: One of them is still there (another user's, or stuck in the kernel).
    """
    seen: set[int] = set()
    for attempt in range(3):  # again for what a dying process started meanwhile
        processes = [process for name in names for process in find(home, name)]
        if not processes:
            return len(seen)
        seen.update(process.pid for process in processes)
        _end(processes, timeout_seconds if attempt == 0 else 0.0)
    raise RuntimeError(f"{', '.join(names)} of {home} did not end; look at processes {sorted(seen)}")


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back until the block is over, then lets them act; nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    with _handlers(lambda number, _: received.append(number), (signal.SIGINT, signal.SIGTERM)):
        yield
    for number in received[:1]:
        signal.raise_signal(signal.Signals(number))


@contextlib.contextmanager
def termination_raised() -> Iterator[None]:
    """Lets SIGTERM and a closed terminal raise `SystemExit` in the block, so that its clean-up runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    with _handlers(leave, ours):
        yield


def _end(processes: Sequence[psutil.Process], timeout_seconds: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=timeout_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5.0)


@contextlib.contextmanager
def _handlers(handler: signal._HANDLER, numbers: Sequence[signal.Signals]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _mark(home: Path, name: str) -> str:
    return f"{home}:{name}"

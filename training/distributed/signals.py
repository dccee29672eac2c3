"""SIGTERM and Ctrl-C as a flag, which a program reads at points where it can stop safely.

A handler that raises is only for commands that may end at any point but in an import (`termination_raised`): an exception in the middle of
an import can leave Python's import lock locked for ever, and Python ignores one in a hook, such as at a fork. The handlers of `stop_flag`
only set the flag. Only the main thread receives signals, so it waits while the work runs in another thread (`run_stoppable`).
"""

from __future__ import annotations

import _thread
import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any, TypeVar

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_SECONDS = 0.1
_IMPORT_SECONDS = 10.0
"""The longest time for which a signal that raises waits for the end of an import."""

_Result = TypeVar("_Result")


class StopFlag:
    """A flag that the first of the given signals sets, or another thread of the program; it is never reset.

    It has no lock: the handler runs in the main thread, which could already own the lock.
    """

    def __init__(self, numbers: Collection[int] = ()) -> None:
        self._numbers = numbers
        self._received: list[int] = []
        self._error: Exception | None = None
        self.install()

    def install(self) -> None:
        """Install the handlers. Repeated while Ray starts, whose C++ code replaces Python's handler by its own."""
        for number in self._numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    def stop_with(self, error: Exception) -> None:
        """Set the flag for a reason of the program's own; `raise_if_set` raises that error, unless a signal has arrived too."""
        self._error = error

    @property
    def is_set(self) -> bool:
        """True once a signal has arrived, or the program itself has to stop."""
        return bool(self._received) or self._error is not None

    @property
    def is_urgent(self) -> bool:
        """True once Ctrl-C was pressed after an earlier signal: the user wants the program to end at once."""
        return signal.SIGINT in self._received[1:]

    def raise_if_set(self) -> None:
        """Raise the exception that ends the program, if the flag is set.

        Raises:
            KeyboardInterrupt: The first signal was Ctrl-C.
            SystemExit: The first signal was another; the code is 128 and its number (143 for SIGTERM), as a shell reports a killed process.
            Exception: That of `stop_with`, without a signal.
        """
        if self._received:
            raise KeyboardInterrupt if self._received[0] == signal.SIGINT else SystemExit(128 + self._received[0])
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Turn SIGTERM, Ctrl-C and a closed terminal (SIGHUP) into a flag inside the block.

    If a signal has arrived and the block ends normally, the signal is sent again to the previous handler; so a block that does not read
    the flag defers signals. If the block ends by SystemExit or KeyboardInterrupt, later SIGTERMs are ignored, so that they do not change
    the exit code. Outside the main thread nothing is changed. A signal that was ignored before, such as SIGHUP under `nohup`, stays
    ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield StopFlag()
        return
    before = {number: handler for number in _STOP_SIGNALS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    flag, is_ending = StopFlag(before), False
    try:
        yield flag
    except (SystemExit, KeyboardInterrupt):
        is_ending = flag.is_set
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if is_ending and number == signal.SIGTERM else handler or signal.SIG_DFL)
    if flag._received:
        signal.raise_signal(signal.Signals(flag._received[0]))


@contextlib.contextmanager
def termination_raised() -> Iterator[None]:
    """Raise `SystemExit` on SIGTERM and SIGHUP within the block, so that its clean-up runs.

    For a command that can end at any point, as Ctrl-C ends it; training uses `stop_flag`. A signal that arrives during an import is sent
    again until the import is done. A signal that has a handler or is ignored stays as it is, and so do all outside the main thread.
    """
    received: list[float] = []

    def end_program(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        if not _is_importing(frame) or received[-1] - received[0] > _IMPORT_SECONDS:
            raise SystemExit(128 + number)
        _thread.start_new_thread(send_again, (number,))  # threading.Thread takes a lock, which the interrupted code may own

    def send_again(number: int) -> None:
        time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if in_main_thread and signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end_program)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def run_stoppable(
    work: Callable[[], _Result],
    stop: StopFlag,
    *,
    on_stop: Callable[[], bool] = lambda: False,
    grace_seconds: float = 20.0,
) -> _Result:
    """Run `work` in a thread and return its result or raise its exception; signals are received at any time.

    Args:
        work: The function. If it does not end after a signal, it goes on in a daemon thread.
        stop: The flag; `work` may read it too.
        on_stop: Called once when the flag is set. It returns True if `work` will end by itself; then the wait has no limit.
        grace_seconds: Time that `work` has to end after a signal where `on_stop` returned False; 20 of the 30 that Kubernetes gives.

    Raises:
        KeyboardInterrupt, SystemExit: As `StopFlag.raise_if_set`, where the flag was set before, `work` did not end in time or failed
            after `on_stop` returned False, or Ctrl-C was pressed again.
    """
    stop.raise_if_set()
    result: concurrent.futures.Future[_Result] = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="iddpm-work", daemon=True).start()
    while not _is_done(result) and not stop.is_set:
        stop.install()
    if result.done():
        return result.result()
    ends_by_itself = on_stop()
    deadline = time.monotonic() + (float("inf") if ends_by_itself else grace_seconds)
    while not stop.is_urgent and time.monotonic() < deadline and not _is_done(result):
        pass
    if not result.done() or (result.exception() is not None and not ends_by_itself):
        stop.raise_if_set()
    return result.result()


def _is_done(future: concurrent.futures.Future[Any]) -> bool:
    return bool(concurrent.futures.wait([future], timeout=_POLL_SECONDS).done)

"""SIGTERM and Ctrl-C as a flag that a program reads where it can stop in good order.

A handler that raises is only for short commands (`termination_raised`): an exception in the middle of an import can leave Python's import
lock taken for good, and Python swallows one in a hook, such as at a fork. The handlers of `stop_flag` only set the flag, and the main
thread, which alone receives signals, waits while the work runs in another thread (`run_stoppable`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any, TypeVar

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_SECONDS = 0.1

_Result = TypeVar("_Result")


class StopFlag:
    """Set by the first of the given signals, and never unset.

    It has no lock: a handler runs in the main thread, which may own that lock already.
    """

    def __init__(self, numbers: Collection[int] = ()) -> None:
        self._numbers = numbers
        self._received: list[int] = []
        self.install()

    def install(self) -> None:
        """Install the handlers. Repeated while Ray starts, whose C++ code replaces Python's handler by its own."""
        for number in self._numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    @property
    def is_set(self) -> bool:
        """True once a signal has arrived."""
        return bool(self._received)

    @property
    def is_urgent(self) -> bool:
        """True once Ctrl-C was pressed after an earlier signal: the user does not want to wait any longer."""
        return signal.SIGINT in self._received[1:]

    def raise_if_set(self) -> None:
        """Raise what ends the program, in the caller's own line.

        Raises:
            KeyboardInterrupt: The first signal was Ctrl-C.
            SystemExit: The first signal was another; the code is 128 and its number (143 for SIGTERM), as a shell reports a killed process.
        """
        if self._received:
            raise KeyboardInterrupt if self._received[0] == signal.SIGINT else SystemExit(128 + self._received[0])


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Turn SIGTERM, Ctrl-C and a closed terminal (SIGHUP) into a flag for the time of the block.

    Where the block ends normally although a signal has arrived, the signal is sent again to the handler that was there before; so a block
    that does not read the flag defers signals. Where it ends by SystemExit or KeyboardInterrupt, later SIGTERMs are ignored, so that they
    do not change the exit code of a program that is ending. Outside the main thread signals are left alone. A signal that the program
    was started to ignore, as `nohup` does with SIGHUP, stays ignored.
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
    if flag.is_set:
        signal.raise_signal(signal.Signals(flag._received[0]))


@contextlib.contextmanager
def termination_raised() -> Iterator[None]:
    """Raise `SystemExit` on SIGTERM and SIGHUP within the block, so that its clean-up runs.

    For a short command in one thread, whose clean-up bears an exception anywhere; a training uses `stop_flag`. A signal that has a handler
    or is ignored is left alone, and so are all outside the main thread.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if in_main_thread and signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def run_stoppable(
    work: Callable[[], _Result],
    stop: StopFlag,
    *,
    on_stop: Callable[[], bool] = lambda: False,
    grace_seconds: float = 20.0,
) -> _Result:
    """Run `work` in a thread, and return or raise what it does; a signal is received whatever it is doing.

    Args:
        work: May be left running in a daemon thread, if it does not end after a signal.
        stop: The flag. `work` may read it, too.
        on_stop: Called once when the flag is set. It returns True if `work` will end without help; then there is no limit to the wait.
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

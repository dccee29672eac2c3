"""SIGTERM and Ctrl-C as exceptions, raised only where a program can bear one."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOPPED_EXIT_CODE = 128 + 15
"""Of a program that SIGTERM ended in good order: what a shell makes of a process that SIGTERM ended."""

_SECONDS_BETWEEN_LOOKS = 0.05
_LONGEST_HOLD_SECONDS = 20.0  # of the thirty that Kubernetes gives


class Stop:
    """When a signal may be raised: not in the middle of an import, nor while it is held; and it must not be lost.

    An exception in the middle of an import can leave Python's import lock taken for good. A thread that imports something
    later, as MLflow's client does with every request, would wait for it for ever. So an import ends first, however long it takes.
    An exception in a hook that Python runs between two lines, as at a fork (Ray starts by several), goes no further than
    `sys.unraisablehook`.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._waiting_since: dict[int, float] = {}
        self._raised: BaseException | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds signals back, for what must be known by whoever cleans up; they are raised a moment after the block."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raises `SystemExit` or `KeyboardInterrupt`; where that can't be now, comes again."""
        since = self._waiting_since.get(number, time.monotonic())
        if _is_importing(frame) or (self._is_held and time.monotonic() - since < _LONGEST_HOLD_SECONDS):
            self._wait(number)
            return
        self._waiting_since.pop(number, None)
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        self._raised = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(STOPPED_EXIT_CODE)
        raise self._raised

    def comes_again(self, lost: BaseException | None) -> bool:
        """Whether an exception that has reached nobody was raised here; if so, it is raised again a moment later."""
        if lost is None or lost is not self._raised:
            return False
        number = signal.SIGINT if isinstance(lost, KeyboardInterrupt) else signal.SIGTERM
        signal.signal(number, self.handle)
        self._wait(number)
        return True

    def _wait(self, number: int) -> None:
        if number not in self._waiting_since:  # else a thread is at it, however often somebody insists
            self._waiting_since[number] = time.monotonic()
            _thread.start_new_thread(self._send_again, (number,))  # `threading` has locks, which the main thread may hold here

    def _send_again(self, number: int) -> None:
        """Until it is raised; somebody else's handler gets it once."""
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        while number in self._waiting_since:
            if signal.getsignal(number) != self.handle:
                del self._waiting_since[number]
            os.kill(os.getpid(), number)
            time.sleep(_SECONDS_BETWEEN_LOOKS)


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[Stop]:
    """Within it SIGTERM raises `SystemExit`, so that what is open is closed; a second one changes nothing.

    Ctrl-C raises `KeyboardInterrupt` as ever, where it does no harm. While workers train, `training.launch.ray_train` takes SIGTERM
    in its place, for the sake of a last checkpoint. Outside the main thread signals are left alone.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    report_lost = sys.unraisablehook

    def look_at_lost(unraisable: sys.UnraisableHookArgs) -> None:
        if not stop.comes_again(unraisable.exc_value):
            report_lost(unraisable)

    on_interrupt, on_term = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, stop.handle)
    if on_interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop.handle)
    sys.unraisablehook = look_at_lost
    after: Any = on_term
    try:
        yield stop
    except SystemExit:
        after = signal.SIG_IGN  # nor may it change the code of a program that is ending
        raise
    finally:
        sys.unraisablehook = report_lost
        signal.signal(signal.SIGTERM, after)
        if on_interrupt is signal.default_int_handler:
            signal.signal(signal.SIGINT, on_interrupt)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False

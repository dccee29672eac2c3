"""Messages that a background thread delivers in order, again and again while the other end is away.

Whoever puts a message never waits for the network, so a server that restarts costs training nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from training.console import say

_GATHER_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 30.0
_HURRIED_PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class _Message:
    what: str
    send: Callable[[], None]


class Outbox:
    """An ordered queue with one sender.

    A message is sent until it arrives, fails for good or the process ends; so sending it twice has to be harmless.
    """

    def __init__(self, destination: str, is_transient: Callable[[Exception], bool], *, capacity: int = 512) -> None:
        """Starts no thread yet.

        Args:
            destination: What to call the other end in a warning.
            is_transient: Whether a failure may pass, so that the message is worth sending again.
            capacity: Messages that wait at most; more are dropped with a warning rather than fill the memory.
        """
        self._destination = destination
        self._is_transient = is_transient
        self._capacity = capacity
        self._changed = threading.Condition()
        self._messages: deque[_Message] = deque()
        self._thread: threading.Thread | None = None
        self._hurried = 0
        self._failures = 0
        self._overflowed = False

    def put(self, what: str, send: Callable[[], None]) -> None:
        """Queues a message.

        Args:
            what: What to call it in a warning.
            send: Delivers it; called in the sender's thread.
        """
        with self._changed:
            if len(self._messages) >= self._capacity:
                if not self._overflowed:
                    say(f"{self._destination} has been away for so long that {what} and what follows is not kept for it")
                self._overflowed = True
                return
            self._messages.append(_Message(what, send))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"outbox to {self._destination}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until everything put so far and since has arrived; False where it hadn't in that time."""
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._messages, timeout=timeout_seconds)
            finally:
                self._hurried -= 1

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._messages:
                    self._changed.wait_for(lambda: bool(self._messages))
                    self._changed.wait_for(lambda: self._hurried > 0, timeout=_GATHER_SECONDS)  # more may come to go with it
                message = self._messages[0]
            if self._deliver(message):
                with self._changed:
                    self._messages.popleft()
                    self._overflowed = False
                    self._changed.notify_all()
            else:
                self._pause()

    def _deliver(self, message: _Message) -> bool:
        """Sends it once; True where it arrived or never will."""
        try:
            message.send()
        except Exception as error:  # whatever a client library raises, training must not end by it
            reason = " ".join(str(error).split())[:300]
            if not self._is_transient(error):
                say(f"{self._destination} refused {message.what}: {reason}")
                return True
            if self._failures == 0:
                say(f"{self._destination} does not answer; work goes on, and what it should know waits ({reason})")
            self._failures += 1
            return False
        if self._failures:
            say(f"{self._destination} answers again")
        self._failures = 0
        return True

    def _pause(self) -> None:
        end = time.monotonic() + min(2.0 ** min(self._failures - 1, 10), _MAX_PAUSE_SECONDS)
        with self._changed:
            while (now := time.monotonic()) < end:
                if self._hurried:  # somebody waits in `flush`: an attempt every half second
                    end = min(end, now + _HURRIED_PAUSE_SECONDS)
                self._changed.wait(timeout=end - now)

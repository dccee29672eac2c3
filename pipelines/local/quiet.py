"""Progress alone on the terminal, everything else in a log: for work in this process, as the local runner does it for steps."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from training.console import heard, marking


class ProgressOnly(io.TextIOBase):
    """Stands in for standard output and error: all of it goes into the log, and what `say` wrote is shown too.

    Args:
        shown: Where progress goes.
        log: Where everything goes.
        title: Put before each line of progress; called in the thread that wrote it.
    """

    def __init__(self, shown: TextIO, log: TextIO, title: Callable[[], str]) -> None:
        self._shown = shown
        self._log = log
        self._title = title
        self._lock = threading.Lock()
        self._partial: dict[int, str] = {}

    def write(self, text: str) -> int:
        """Takes any piece of text; acts on whole lines."""
        with self._lock:
            thread = threading.get_ident()
            *lines, self._partial[thread] = (self._partial.get(thread, "") + text).split("\n")
            for line in lines:
                self._log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
                if (message := heard(line)) is not None:
                    self._shown.write(f"[{self._title()}] {message}\n")
                    self._shown.flush()
        return len(text)

    def flush(self) -> None:
        """Both are written line by line, so there is nothing to do."""


@contextlib.contextmanager
def only_progress(log_path: Path, title: Callable[[], str]) -> Iterator[None]:
    """For the time of the block, shows progress lines alone.

    Args:
        log_path: File that takes everything, at its end; its directory is made.
        title: As for `ProgressOnly`.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    before = sys.stdout, sys.stderr
    with log_path.open("a", buffering=1, encoding="utf-8", errors="replace") as log, marking(True):
        sys.stdout = sys.stderr = ProgressOnly(before[0], log, title)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before

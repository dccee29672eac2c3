"""Divide output: progress lines to the terminal, everything to a log file."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from training.console import output_marks, parse_marked_line


class LineFilter(io.TextIOBase):
    """A stream in place of standard output. It passes on whole lines without their breaks, and does not mix those of two threads."""

    def __init__(self, handle: Callable[[str], None]) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        self._partial: dict[int, str] = {}

    def write(self, text: str) -> int:
        """Take any piece of text."""
        with self._lock:
            thread = threading.get_ident()
            *lines, self._partial[thread] = (self._partial.get(thread, "") + text).split("\n")
            for line in lines:
                self._handle(line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every line is passed on at once."""


@contextlib.contextmanager
def show_progress(log_path: Path, title: str) -> Iterator[None]:
    """Show only progress lines for the duration of the block, and write all output to a log.

    Args:
        log_path: File that all output is appended to; its directory is made.
        title: The text in front of a progress line.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    before = sys.stdout, sys.stderr
    with log_path.open("a", buffering=1, encoding="utf-8", errors="replace") as log, output_marks(True):

        def handle(line: str) -> None:
            write_log_line(log, line)
            if (message := parse_marked_line(line)) is not None:
                before[0].write(f"[{title}] {message}\n")
                before[0].flush()

        sys.stdout = sys.stderr = LineFilter(handle)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def write_log_line(log: TextIO, line: str) -> None:
    """Write a line with the time in front of it."""
    log.write(f"{time.strftime('%H:%M:%S')} {line}\n")

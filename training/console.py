"""Progress lines for a person who watches a run, and numbers formatted for people.

The local runner shows only those output lines of its steps that begin with `MARK`, so that log lines of libraries do
not hide them. In a command that does the work itself the lines go to standard error, without the mark.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

MARK = "iddpm| "

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SECONDS_BETWEEN_LINES = 5.0
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, and the halves of characters by which Python names the bytes of a path that is not UTF-8."""

T = TypeVar("T")

_marked = True
_label = ""


def printable(text: str) -> str:
    r"""Return a text with its control characters written out, like \n and \x1b, and bytes that are not UTF-8: a path may have both."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(message: str) -> None:
    """Print a message at once: to standard output with the mark before each line, or as `output_marks` set it.

    A closed pipe and a full disk are ignored: training goes on without a reader.
    """
    stream, mark = (sys.stdout, MARK) if _marked else (sys.stderr, "")
    text = "".join(f"{mark}{_label}{printable(line)}\n" for line in message.splitlines() or [""])
    with contextlib.suppress(OSError):
        stream.write(text)
        stream.flush()


@contextlib.contextmanager
def output_marks(enabled: bool) -> Iterator[None]:
    """Turn the marks on or off inside the block; without marks, lines go to standard error and standard output is left to results."""
    global _marked
    before, _marked = _marked, enabled
    try:
        yield
    finally:
        _marked = before


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Begin each line of this process with "label: " inside the block, where several processes write to one terminal."""
    global _label
    before, _label = _label, f"{label}: "
    try:
        yield
    finally:
        _label = before


def parse_marked_line(line: str) -> str | None:
    """Return the message of an output line that `say` wrote, or None for any other line.

    A prefix that a logger put before the mark is dropped.
    """
    _, mark, message = line.rstrip("\r\n").partition(MARK)
    return message if mark else None


def format_duration(seconds: float) -> str:
    """Format seconds: "0.4 s", "12 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"


def format_rate(count: float, seconds: float, unit: str) -> str:
    """Format a rate to three digits: "1,230 images/s", "4.56 steps/s"; "- images/s" where no time has passed."""
    if seconds <= 0:
        return f"- {unit}/s"
    rate = count / seconds
    digits = 0 if rate >= 99.95 else 1 if rate >= 9.995 else 2
    return f"{rate:,.{digits}f} {unit}/s"


def format_bytes(num_bytes: float) -> str:
    """Format bytes in binary units to three digits: "512 B", "1.50 MiB", "23.4 GiB"."""
    value, unit = float(num_bytes), _BYTE_UNITS[0]
    for larger in _BYTE_UNITS[1:]:
        if value < 999.5:
            break
        value, unit = value / 1024, larger
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def format_remaining(done: int, total: int, seconds: float) -> str:
    """Format the time left at the speed so far: "1 min 10 s left"; empty before anything is done, and when all is.

    Args:
        done: Units finished in `seconds`.
        total: All units, counted from the same start as `done`.
        seconds: Time since that start.
    """
    if not 0 < done < total:
        return ""
    return f"{format_duration(seconds * (total - done) / done)} left"


def with_progress(items: Iterable[T], activity: str, total: int, count: Callable[[T], int]) -> Iterator[T]:
    """Yield the items, and print every five seconds how many images are done, how fast, and the time left.

    Args:
        items: Batches of images; the caller works on one before it asks for the next.
        activity: What is done with an image, like "drew".
        total: Images in all batches.
        count: Returns the number of images of a batch.
    """
    started = shown = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += count(item)
        now = time.monotonic()
        if now - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            rate, left = format_rate(done, now - started, "images"), format_remaining(done, total, now - started)
            say(f"{activity} {done:,}/{total:,} images  {rate}  {left}".rstrip())

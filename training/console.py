"""What a person watching a run sees: short lines, and numbers written for people.

The local runner filters the output of its steps and shows exactly the lines that carry the mark written here, so a
library's chatter can't bury them. In a command that does the work itself they go to standard error, without the mark.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

MARK = "iddpm| "

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

_marked = True


def say(message: str) -> None:
    """Prints `message` at once: to standard output, every line of it behind the mark, unless `marking` says otherwise.

    A reader that has gone away (a closed pipe) is not the run's trouble: training goes on unseen.
    """
    stream, mark = (sys.stdout, MARK) if _marked else (sys.stderr, "")
    text = "".join(f"{mark}{line}\n" for line in message.splitlines() or [""])
    with contextlib.suppress(BrokenPipeError):
        stream.write(text)
        stream.flush()


@contextlib.contextmanager
def marking(marked: bool) -> Iterator[None]:
    """For the time of the block, whether somebody reads the marks; without them standard output is left to results."""
    global _marked
    before, _marked = _marked, marked
    try:
        yield
    finally:
        _marked = before


def heard(line: str) -> str | None:
    """The message of one output line that `say` wrote, or None for any other line.

    Loggers that run the process may put their own words before the mark; they are dropped.
    """
    _, mark, message = line.rstrip("\r\n").partition(MARK)
    return message if mark else None


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: "0.4 s", "12 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"."""
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
    """`count` per second to three digits: "1,230 images/s", "4.56 steps/s"; "- images/s" where no time has passed."""
    if seconds <= 0:
        return f"- {unit}/s"
    rate = count / seconds
    digits = 0 if rate >= 99.95 else 1 if rate >= 9.995 else 2
    return f"{rate:,.{digits}f} {unit}/s"


def format_bytes(num_bytes: float) -> str:
    """Bytes in binary units to three digits: "512 B", "1.50 MiB", "23.4 GiB"."""
    value, unit = float(num_bytes), _BYTE_UNITS[0]
    for larger in _BYTE_UNITS[1:]:
        if value < 999.5:
            break
        value, unit = value / 1024, larger
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def format_remaining(done: int, total: int, seconds: float) -> str:
    """Time left at the speed so far: "1 min 10 s left"; "? left" before anything is done.

    Args:
        done: Units finished in `seconds`.
        total: Units in all, counted from where `done` began.
        seconds: Time that they took.
    """
    if done <= 0:
        return "? left"
    return f"{format_duration(seconds * max(total - done, 0) / done)} left"

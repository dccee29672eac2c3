"""Progress lines for work on images that takes longer than a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from training.console import format_rate, format_remaining, say

_SECONDS_BETWEEN_LINES = 5.0

T = TypeVar("T")


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

"""What a person sees of a data set that is being prepared."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from training.console import format_bytes, format_rate, format_remaining, say
from training.data.format.shards import Unreadable
from training.data.preparation.shard_job import ShardJob, ShardRecord

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Images and bytes done, at most a line every few seconds, and each image that is left out."""

    def __init__(self, name: str, jobs: Sequence[ShardJob]) -> None:
        """Args: what to call the work; the pieces that are still to do."""
        self._name = name
        self._parts = {job.number: len(job.items) for job in jobs}
        self._total = sum(self._parts.values())
        self._total_bytes = sum(item.num_bytes for job in jobs for item in job.items)
        self._start = self._last = time.monotonic()
        self._images = self._bytes = 0

    def finished(self, number: int, records: Mapping[int, ShardRecord]) -> None:
        """A piece is done: its number, and its record by image size."""
        self._images += self._parts[number]
        self._bytes += next(iter(records.values())).num_bytes_read
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self._images == self._total:
            self._last = now
            rate = format_rate(self._images, now - self._start, "images")
            left = format_remaining(self._images, self._total, now - self._start)
            all_bytes = f" of {format_bytes(self._total_bytes)}" if self._total_bytes else ""  # an lmdb doesn't list sizes
            num_bytes = f"{format_bytes(self._bytes)}{all_bytes} read"
            say(f"{self._name}: {self._images:,} of {self._total:,} images, {num_bytes}, {rate}, {left}")

    def left_out(self, records: Mapping[int, ShardRecord]) -> tuple[Unreadable, ...]:
        """Says which images of a piece could not be used, and why; returns them."""
        errors = next(iter(records.values())).errors
        for error in errors:
            say(f"{self._name}: left out {error.source}, which {error.reason}")
        return errors

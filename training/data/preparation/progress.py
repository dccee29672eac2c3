"""Progress lines of a preparation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from training.console import format_bytes, format_rate, format_remaining, say
from training.data.format.manifest import UnreadableImage
from training.data.preparation.shard_job import ShardJob, ShardRecord

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Prints the images and bytes done, at most one line every few seconds, and each image that is left out."""

    def __init__(self, name: str, jobs: Sequence[ShardJob]) -> None:
        """Set the name of the work and the jobs that are still to do."""
        self._name = name
        self._num_items = {job.number: len(job.items) for job in jobs}
        self._total = sum(self._num_items.values())
        self._total_bytes = sum(item.num_bytes for job in jobs for item in job.items)
        self._start = self._last = time.monotonic()
        self._images = self._bytes = 0

    def add_finished(self, number: int, records: Mapping[int, ShardRecord]) -> None:
        """Count a finished job: its number, and its record by image size."""
        self._images += self._num_items[number]
        self._bytes += next(iter(records.values())).num_bytes_read
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self._images == self._total:
            self._last = now
            rate = format_rate(self._images, now - self._start, "images")
            left = format_remaining(self._images, self._total, now - self._start)
            total_bytes = f" of {format_bytes(self._total_bytes)}" if self._total_bytes else ""  # an lmdb lists no sizes
            parts = [f"{self._images:,} of {self._total:,} images", f"{format_bytes(self._bytes)}{total_bytes} read", rate, left]
            say(f"{self._name}: {', '.join(part for part in parts if part)}")

    def report_unreadable(self, records: Mapping[int, ShardRecord]) -> tuple[UnreadableImage, ...]:
        """Print the images of a job that could not be used, with the reasons; return them."""
        errors = next(iter(records.values())).errors
        for error in errors:
            say(f"{self._name}: left out {error.source}: it {error.reason}")
        return errors

"""Stream a data set that is larger than this node's disk budget: a cache of its row groups, the least recently used deleted first."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.config.errors import UserError
from training.console import format_bytes
from training.data.cache.disk_cache import STAGING_REMEDY, CacheEntry, explain_local_disk_errors, get_or_make, reserve, size_on_disk
from training.data.format.manifest import Images, Manifest
from training.data.loading.row_groups import RowGroups

GROUPS_PER_BLOCK = 8
"""Row groups in a block, whose rows are shuffled together (8,192 images). The order depends on it, so it is a constant."""

_BLOCKS_ON_DISK = 3
"""The current block, the next, and the previous, which a batch across the border still needs."""

_LABEL_BYTES = 8
_HEADER_BYTES = 256


class StreamedRows:
    """Rows of a data set; on the disk are only as many of its row groups as the budget allows."""

    def __init__(self, dataset_uri: str, manifest: Manifest, cache_dir: Path, disk_budget_bytes: int, retry_seconds: float) -> None:
        """Reserve the budget on the disk.

        Args:
            retry_seconds: Seconds for which a batch waits for a storage that does not answer.

        Raises:
            UserError: The budget is smaller than the row groups that the order needs at once, or the disk is smaller than the budget.
        """
        self._groups = RowGroups(dataset_uri, manifest)
        self._retry_seconds = retry_seconds
        self._directory = cache_dir / f"{manifest.content_digest[:32]}.stream"
        self._budget = disk_budget_bytes
        sizes = self._groups.sizes
        group_bytes = max(sizes) * (manifest.image_bytes + _LABEL_BYTES) + _HEADER_BYTES
        needed = min(len(sizes), _BLOCKS_ON_DISK * GROUPS_PER_BLOCK) * group_bytes
        if disk_budget_bytes < needed:
            raise UserError(
                f"data.disk_budget_bytes: {disk_budget_bytes} is too small to stream {dataset_uri}; give at least {needed} "
                f"({format_bytes(needed)}), or 0 to stage all of it"
            )
        self._entry = get_or_make(self._directory, Path.mkdir)
        with reserve(cache_dir, max(0, disk_budget_bytes - size_on_disk(self._directory, "*.npy"))):
            pass
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="iddpm-stream")
        self._prefetched: dict[int, Future[Any]] = {}

    def close(self) -> None:
        """End the thread that fetches ahead, after the row group that it is at; else the process could not end before all are fetched."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def prefetch(self, groups: Iterable[int]) -> None:
        """Start to fetch row groups in the background, each by one attempt; the batch that needs it repeats one that failed."""
        for group in map(int, groups):
            if group not in self._prefetched:
                self._prefetched[group] = self._pool.submit(lambda number: self._fetch(number, 0).release(), group)

    def gather(self, rows: npt.NDArray[np.int64]) -> tuple[Images, npt.NDArray[np.int64]]:
        """Return copies of these rows' images `[rows, channels, height, width]` and labels."""
        try:
            return self._groups.gather(rows, self._load)
        except BaseException:
            for started in self._prefetched.values():
                started.cancel()  # or the process would fetch them before it can end
            self._prefetched.clear()
            raise

    def _load(self, group: int) -> npt.NDArray[np.void]:
        started = self._prefetched.pop(group, None)
        if started is not None and not started.cancel():
            wait([started])  # a failure is raised by the fetch below, unless its cause is gone
        entry = self._fetch(group, self._retry_seconds)
        loaded: npt.NDArray[np.void] = np.load(entry.path, mmap_mode="r")
        entry.release()  # another process may delete the file now; the mapping stays valid
        return loaded

    def _fetch(self, group: int, retry_seconds: float) -> CacheEntry:
        def make(partial: Path) -> None:
            rows = self._groups.read(group, retry_seconds)
            with (
                explain_local_disk_errors(f"{self._directory}: staging {format_bytes(rows.nbytes)} of data", STAGING_REMEDY),
                reserve(self._directory, rows.nbytes + _HEADER_BYTES, self._budget),
                partial.open("wb") as file,
            ):
                np.save(file, rows)

        return get_or_make(self._directory / f"group-{group:06d}.npy", make)

"""Stream a data set that is larger than this node's disk budget: row groups are fetched, and the least recently used deleted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.config.errors import UserError
from training.console import format_bytes
from training.data.cache.disk_cache import disk_error, file_lock, get_or_make, reserve, size_on_disk
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

    def __init__(self, dataset_uri: str, manifest: Manifest, cache_dir: Path, disk_budget_bytes: int) -> None:
        """Reserve the budget on the disk.

        Raises:
            UserError: The budget is smaller than the row groups that the order needs at once, or the disk is smaller than the budget.
        """
        self._groups = RowGroups(dataset_uri, manifest)
        self._directory = cache_dir / f"{manifest.content_digest[:32]}.stream"
        self._budget = disk_budget_bytes
        sizes = self._groups.sizes
        group_bytes = max(sizes) * (manifest.image_bytes + _LABEL_BYTES) + _HEADER_BYTES
        needed = min(len(sizes), _BLOCKS_ON_DISK * GROUPS_PER_BLOCK) * group_bytes
        if disk_budget_bytes < needed:
            raise UserError(f"a disk budget of {format_bytes(disk_budget_bytes)} is too small to stream; it needs {format_bytes(needed)}")
        self._entry = get_or_make(self._directory, Path.mkdir)
        with reserve(cache_dir, max(0, disk_budget_bytes - size_on_disk(self._directory, "*.npy"))):
            pass
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="iddpm-stream")
        self._prefetched: dict[int, Future[Path]] = {}

    def prefetch(self, groups: Iterable[int]) -> None:
        """Start to fetch row groups in the background."""
        for group in map(int, groups):
            if group not in self._prefetched:
                self._prefetched[group] = self._pool.submit(self._fetch, group)

    def gather(self, rows: npt.NDArray[np.int64]) -> tuple[Images, npt.NDArray[np.int64]]:
        """Return copies of these rows' images `[rows, channels, height, width]` and labels.

        Raises:
            UserError: A row group is missing or damaged, or the disk is full.
            StorageError: The storage refuses, or does not answer for longer than `training.storage.retry` waits.
        """
        return self._groups.gather(rows, self._load)

    def _load(self, group: int) -> npt.NDArray[np.void]:
        started = self._prefetched.pop(group, None)
        if started is not None:
            wait([started])  # a failure is raised by the fetch below, unless its cause is gone
        while True:
            path = self._fetch(group)
            # Another process may delete the file between these lines; then it is fetched again.
            with contextlib.suppress(FileNotFoundError):
                loaded: npt.NDArray[np.void] = np.load(path, mmap_mode="r")
                os.utime(path)
                return loaded

    def _fetch(self, group: int) -> Path:
        path = self._directory / f"group-{group:06d}.npy"
        if path.exists():
            return path
        with file_lock(self._directory / f"{path.stem}.lock"):
            if not path.exists():
                rows = self._groups.read(group)
                self._delete_oldest(rows.nbytes)
                self._write(rows, path)
        return path

    def _write(self, rows: npt.NDArray[np.void], path: Path) -> None:
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                np.save(file, rows)
            partial.rename(path)
        except OSError as error:
            raise disk_error(self._directory, rows.nbytes, error) from error
        finally:
            partial.unlink(missing_ok=True)

    def _delete_oldest(self, num_bytes: int) -> None:
        with file_lock(self._directory / "room.lock"):
            files = sorted((path.stat().st_mtime_ns, path, path.stat().st_size) for path in self._directory.glob("*.npy"))
            total = sum(size for *_, size in files)
            for _, path, size in files:
                if total + num_bytes <= self._budget:
                    break
                path.unlink()
                total -= size

"""Batches as pure arithmetic: the batch of a step is a function of the data set, the seed and the step alone.

Global position g = step * global_batch_size + offset; g divided by the data set's size gives the epoch and the place in
that epoch's permutation. A worker of any number of workers takes its part of the global batch, so that the batch is
the same for any world size, and a run resumes at any step without a state.

Images are uint8 NCHW here; they become float32 in [-1, 1] where the model is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.data.cache.disk_cache import default_cache_dir
from training.data.format.order import BlockOrder, GlobalOrder
from training.data.format.shards import DatasetError, Manifest, read_manifest
from training.data.loading.staging import StagedRows
from training.data.loading.streaming import GROUPS_PER_BLOCK, StreamedRows, group_sizes
from training.shapes import Int64, UInt8

_BATCHES_AHEAD = 2

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""Row numbers, images and labels, in that order."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A worker's part of one global batch.

    Attributes:
        images: uint8 NCHW.
        labels: int64, None for an unlabelled data set.
        indices: Global positions, from which every random draw for the image is keyed; never the same twice in a run.
    """

    images: UInt8[Tensor, "batch channels height width"]
    labels: Int64[Tensor, " batch"] | None
    indices: Int64[Tensor, " batch"]


class Loader:
    """The batches of a data set in S3 or on disk.

    Attributes:
        manifest: What the data set is.
        global_batch_size: Images an update, over all workers.
    """

    def __init__(
        self,
        dataset_uri: str,
        *,
        seed: int,
        global_batch_size: int,
        cache_dir: str | Path | None = None,
        disk_budget_bytes: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Stages the data on this node, once for all its processes.

        Args:
            dataset_uri: Directory of a prepared data set.
            seed: Seed of the order.
            global_batch_size: Images an update, over all workers.
            cache_dir: Where on this node's disk; None takes a directory for this user under the temporary directory.
            disk_budget_bytes: A data set larger than this is not staged but streamed, a block of row groups after
                another; its order is then a shuffle within blocks. Data sets that no process of this node uses any more
                are removed from the cache as far as this needs room. None stages any size, and removes them only
                where the disk is full.
            device: Keep the whole data set in this device's memory and draw batches there (small data on a GPU);
                None keeps it on disk.

        Raises:
            DatasetError: There is no data set, or it is damaged, or doesn't fit.
            StorageError: It can't be read.
        """
        if global_batch_size < 1:
            raise DatasetError(f"global_batch_size must be at least 1, got {global_batch_size}")
        self.manifest: Manifest = read_manifest(dataset_uri)
        self.global_batch_size = global_batch_size
        cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._order: GlobalOrder | BlockOrder
        self._store: StagedRows | StreamedRows
        self._resident: tuple[Tensor, Tensor] | None = None
        if disk_budget_bytes is not None and self.manifest.num_images * self.manifest.image_bytes > disk_budget_bytes:
            order = BlockOrder(group_sizes(self.manifest), seed, groups_per_block=GROUPS_PER_BLOCK)
            self._order, self._store = order, StreamedRows(dataset_uri, self.manifest, cache, disk_budget_bytes)
        else:
            self._order = GlobalOrder(self.manifest.num_images, seed)
            self._store = StagedRows(dataset_uri, self.manifest, cache, disk_budget_bytes)
            if device is not None:
                images, labels = self._store.gather(np.arange(self.manifest.num_images))
                self._resident = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)

    @property
    def num_images(self) -> int:
        """Images in the data set, the length of an epoch."""
        return self.manifest.num_images

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """The images `start` up to `stop` of the global batch of a step.

        Args:
            step: Update, from 0.
            start: First offset in the global batch.
            stop: Offset after the last; None is the end of the global batch.
        """
        stop = self.global_batch_size if stop is None else stop
        if step < 0 or not 0 <= start <= stop <= self.global_batch_size:
            raise DatasetError(f"step {step}, images {start} to {stop}: not in a global batch of {self.global_batch_size}")
        positions = np.arange(start, stop, dtype=np.int64) + step * self.global_batch_size
        rows = self._order.rows(positions)
        if isinstance(self._store, StreamedRows) and isinstance(self._order, BlockOrder) and len(positions):
            self._store.fetch_ahead(self._order.groups(*self._order.next_block(*self._order.last_block(positions))))
        return self._take(rows, positions)

    def batches(
        self, first_step: int, num_steps: int, start: int = 0, stop: int | None = None, *, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """The same batches one after another, made by a thread while the caller is busy.

        Args:
            first_step: Update of the first.
            num_steps: How many.
            start: As for `batch`.
            stop: As for `batch`.
            pin_memory: Put them into page-locked memory, from which a GPU copies without waiting.
        """

        def make(step: int) -> Batch:
            made = self.batch(step, start, stop)
            return _pinned(made) if pin_memory and self._resident is None else made

        pool = ThreadPoolExecutor(1, thread_name_prefix="iddpm-loader")
        pending: deque[Future[Batch]] = deque()
        try:
            for step in range(first_step, first_step + num_steps):
                pending.append(pool.submit(make, step))
                if len(pending) > _BATCHES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def iterate(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Rows]:
        """Every image once, in the data set's own order, which is a fixed random one.

        Args:
            batch_size: Images at a time; the last part may be smaller.
            start: First row.
            stop: Row after the last; None is the end.

        Yields:
            Row numbers (int64), images (uint8 NCHW), labels (int64, or None for an unlabelled data set).
        """
        if batch_size < 1:
            raise DatasetError(f"batch_size must be at least 1, got {batch_size}")
        stop = self.num_images if stop is None else min(stop, self.num_images)
        for first in range(start, stop, batch_size):
            rows = np.arange(first, min(first + batch_size, stop), dtype=np.int64)
            batch = self._take(rows, rows)
            yield batch.indices, batch.images, batch.labels

    def _take(self, rows: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> Batch:
        if self._resident is not None:
            images, labels = self._resident
            chosen = torch.from_numpy(rows).to(images.device)
            return Batch(
                images[chosen], labels[chosen] if self.manifest.num_classes else None, torch.from_numpy(positions).to(images.device)
            )
        pixels, names = self._store.gather(rows)
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(names) if self.manifest.num_classes else None,
            torch.from_numpy(positions),
        )


def iterate(
    dataset_uri: str, batch_size: int, *, start: int = 0, stop: int | None = None, cache_dir: str | Path | None = None
) -> Iterator[Rows]:
    """Every image of a data set once, in the data set's own order; see `Loader.iterate`."""
    return Loader(dataset_uri, seed=0, global_batch_size=1, cache_dir=cache_dir).iterate(batch_size, start, stop)


def _pinned(batch: Batch) -> Batch:
    labels = None if batch.labels is None else batch.labels.pin_memory()
    return Batch(batch.images.pin_memory(), labels, batch.indices.pin_memory())

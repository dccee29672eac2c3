"""Batches for training as pure arithmetic: the batch of a step is a function of the data set, the seed and the step alone.

The global position is g = step * global_batch_size + offset; g divided by the data set's size gives the epoch, and the remainder the
position in that epoch's permutation. Each worker, of any number, takes its part of the global batch. So the batch is the same for any
world size, and a run can resume at any step without stored loader state.

Images are uint8 NCHW here; they become float32 in [-1, 1] where the model is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import storage
from training.config.errors import UserError
from training.data.cache.disk_cache import default_cache_dir
from training.data.format.manifest import Manifest, read_manifest
from training.data.format.order import BlockOrder, GlobalOrder
from training.data.format.shards import row_group_sizes
from training.data.loading.row_groups import prefetch
from training.data.loading.staging import StagedRows
from training.data.loading.streaming import GROUPS_PER_BLOCK, StreamedRows
from training.diffusion.pixels import Batch


class Loader:
    """The batches of a data set in S3 or on disk."""

    def __init__(
        self,
        dataset_uri: str,
        *,
        seed: int,
        global_batch_size: int,
        cache_dir: str | Path | None = None,
        disk_budget_bytes: int | None = None,
        device: torch.device | str | None = None,
        retry_seconds: float = storage.OUTAGE_SECONDS,
    ) -> None:
        """Stage the data on this node, once for all its processes.

        A storage that does not answer is asked again for ten minutes, for each shard.

        Args:
            cache_dir: Directory on this node's disk; None takes one of this user below the temporary directory.
            disk_budget_bytes: A data set larger than this is not staged but streamed, one block of row groups after
                another; its order is then a shuffle within blocks. Unused data sets in the cache are evicted where
                this needs their room. None stages any size, and evicts only where the disk is full.
            device: Keep the whole data set in this device's memory and draw batches there (small data on a GPU);
                None keeps it on the disk. A streamed data set stays on the disk.
            retry_seconds: Seconds for which a streamed batch waits for a storage that does not answer.

        Raises:
            UserError: There is no data set, or it is damaged, or the disk has too little room for it.
        """
        if global_batch_size < 1:
            raise UserError(f"global_batch_size must be at least 1, got {global_batch_size}")
        self.manifest: Manifest = storage.retry(lambda: read_manifest(dataset_uri))
        self.global_batch_size = global_batch_size
        try:
            cache = storage.local_path(str(cache_dir)).expanduser() if cache_dir is not None else default_cache_dir()
        except RuntimeError as error:  # pathlib finds no such user
            raise UserError(f"cache_dir {cache_dir}: there is no home directory of that user; write the whole path") from error
        self._order: GlobalOrder | BlockOrder
        self._store: StagedRows | StreamedRows
        self._resident: tuple[Tensor, Tensor] | None = None
        if disk_budget_bytes is not None and self.manifest.num_images * self.manifest.image_bytes > disk_budget_bytes:
            self._order = BlockOrder(row_group_sizes(self.manifest), seed, groups_per_block=GROUPS_PER_BLOCK)
            self._store = StreamedRows(dataset_uri, self.manifest, cache, disk_budget_bytes, retry_seconds)
        else:
            self._order = GlobalOrder(self.manifest.num_images, seed)
            self._store = StagedRows(dataset_uri, self.manifest, cache, disk_budget_bytes)
            if device is not None:
                images, labels = self._store.gather(np.arange(self.manifest.num_images))
                self._resident = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)

    def close(self) -> None:
        """Fetch nothing ahead any more, so that the process can end at once; no batch can be made afterwards."""
        if isinstance(self._store, StreamedRows):
            self._store.close()

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """Return the images `start` up to `stop` of the global batch of a step."""
        stop = self.global_batch_size if stop is None else stop
        if step < 0 or not 0 <= start <= stop <= self.global_batch_size:
            raise UserError(f"step {step}, images {start} to {stop}: not in a global batch of {self.global_batch_size}")
        positions = np.arange(start, stop, dtype=np.int64) + step * self.global_batch_size
        rows = self._order.rows(positions)
        indices = torch.from_numpy(positions)
        if self._resident is not None:
            all_images, all_labels = self._resident
            chosen = torch.from_numpy(rows).to(all_images.device)
            images, labels, indices = all_images[chosen], all_labels[chosen], indices.to(all_images.device)
        else:
            if isinstance(self._store, StreamedRows) and isinstance(self._order, BlockOrder) and len(positions):
                self._store.prefetch(self._order.groups(*self._order.next_block(*self._order.last_block(positions))))
            images, labels = map(torch.from_numpy, self._store.gather(rows))
        return Batch(images, labels if self.manifest.num_classes else None, indices)

    def batches(
        self, first_step: int, num_steps: int, start: int = 0, stop: int | None = None, *, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """Yield what `batch` returns for each step in turn, made ahead by a thread."""
        pin = pin_memory and self._resident is None

        def make(step: int) -> Batch:
            batch = self.batch(step, start, stop)
            return batch.pin_memory() if pin else batch

        yield from prefetch(make, range(first_step, first_step + num_steps))

"""Read a data set by row groups, the smallest parts of a shard that can be fetched alone."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from training import storage
from training.config.errors import UserError, lines_of
from training.data.format.manifest import Images, Manifest, Shard, make_again, read_manifest
from training.data.format.shards import ROW_GROUP_ROWS, Rows, decode_row_group, row_group_sizes

_GROUPS_IN_MEMORY = 2
_RESULTS_AHEAD = 2

_Result = TypeVar("_Result")

RowTensors: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""Row numbers (int64), images (uint8 NCHW) and labels (int64, None for an unlabelled data set)."""


def read_row_group(dataset_uri: str, manifest: Manifest, shard: Shard, number: int) -> Rows:
    """Read one row group of a shard, of which only its bytes are fetched; refuse a missing or damaged one."""
    uri = storage.join(dataset_uri, shard.file)
    try:
        # The manifest's sha256 covers the whole file; the checksums of the pages protect a part of it.
        with storage.open_seekable(uri) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            return decode_row_group(file.read_row_group(number), manifest.image_shape)
    except storage.ObjectNotFoundError as error:
        raise UserError(f"{uri}: the shard is missing, but the manifest lists it; {make_again(dataset_uri)}") from error
    except storage.StorageError:
        raise
    except (OSError, pa.ArrowException) as error:
        reason = lines_of(error)[0]
        raise UserError(
            f"{uri}: row group {number} can't be read, so the shard is damaged ({reason}); {make_again(dataset_uri)}"
        ) from error


class RowGroups:
    """The row groups of a data set, numbered over all shards."""

    def __init__(self, dataset_uri: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self.sizes = row_group_sizes(manifest)
        self._dataset_uri = dataset_uri
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._positions = [(shard, group) for shard in manifest.shards for group in range(-(-shard.num_rows // ROW_GROUP_ROWS))]

    def read(self, group: int, retry_seconds: float = storage.OUTAGE_SECONDS) -> npt.NDArray[np.void]:
        """Read a row group as records of `image` (uint8 `[channels, height, width]`) and `label` (int64), with retries."""
        shard, number = self._positions[group]
        images, labels, _ = storage.retry(lambda: read_row_group(self._dataset_uri, self.manifest, shard, number), seconds=retry_seconds)
        if len(labels) != self.sizes[group]:
            uri = storage.join(self._dataset_uri, shard.file)
            raise UserError(
                f"{uri}: row group {number} has {len(labels):,} rows instead of {self.sizes[group]:,}, so the file is not the shard that "
                f"the manifest lists; {make_again(self._dataset_uri)}"
            )
        height, width, channels = self.manifest.image_shape
        rows = np.empty(len(labels), dtype=[("image", np.uint8, (channels, height, width)), ("label", np.int64)])
        rows["image"] = images.transpose(0, 3, 1, 2)
        rows["label"] = labels
        return rows

    def gather(self, rows: npt.NDArray[np.int64], load: Callable[[int], npt.NDArray[np.void]]) -> tuple[Images, npt.NDArray[np.int64]]:
        """Return images uint8 `[rows, channels, height, width]` and labels of these rows, from the groups that `load` returns."""
        height, width, channels = self.manifest.image_shape
        images = np.empty((len(rows), channels, height, width), dtype=np.uint8)
        labels = np.empty(len(rows), dtype=np.int64)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups):
            chosen = groups == group
            within = rows[chosen] - self._starts[group]
            loaded = load(int(group))
            images[chosen] = loaded["image"][within]
            labels[chosen] = loaded["label"][within]
        return images, labels


class RowReader:
    """Rows of a data set by number, read directly from its shards; only the latest row groups stay in memory, none on the disk."""

    def __init__(self, dataset_uri: str) -> None:
        """Read the manifest."""
        self.manifest = read_manifest(dataset_uri)
        self._groups = RowGroups(dataset_uri, self.manifest)
        self._load = functools.lru_cache(maxsize=_GROUPS_IN_MEMORY)(self._groups.read)

    def rows(self, rows: npt.NDArray[np.int64]) -> RowTensors:
        """Return these rows, in the given order."""
        images, labels = self._groups.gather(rows, self._load)
        return torch.from_numpy(rows), torch.from_numpy(images), torch.from_numpy(labels) if self.manifest.num_classes else None


def iterate(dataset_uri: str, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[RowTensors]:
    """Yield every row once, in the data set's own random order; fetch only the row groups that are needed, and refuse damaged ones."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    reader = RowReader(dataset_uri)
    end = reader.manifest.num_images if stop is None else min(stop, reader.manifest.num_images)
    yield from prefetch(lambda first: reader.rows(np.arange(first, min(first + batch_size, end))), range(start, end, batch_size))


def prefetch(make: Callable[[int], _Result], numbers: Iterable[int]) -> Iterator[_Result]:
    """Yield `make(number)` for each number in order, made by a thread up to two results ahead."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="iddpm-prefetch")
    pending: deque[Future[_Result]] = deque()
    try:
        for number in numbers:
            pending.append(pool.submit(make, number))
            if len(pending) > _RESULTS_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

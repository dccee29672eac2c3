"""A data set on this node's disk: every shard fetched and checked once, memory-mapped by every process that reads it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training import storage
from training.console import format_bytes, say
from training.data.cache.disk_cache import hold, make_room, making_room, out_of_room
from training.data.format.shards import DatasetError, Images, Manifest, Shard, file_sha256, row_groups

_DOWNLOADS = 4
_LABEL_BYTES = 8
_HEADER_BYTES = 8192  # of two files, and what a disk rounds them up by
_QUIET_BYTES = 256 * 1024**2  # below this, staging is over before anybody wonders


class StagedRows:
    """All rows of a data set, memory-mapped.

    Attributes:
        images: uint8 `[rows, channels, height, width]`.
        labels: int64 `[rows]`, -1 where there is none.
    """

    def __init__(self, dataset_uri: str, manifest: Manifest, cache_dir: Path, budget_bytes: int | None = None) -> None:
        """Stages the data set unless an earlier process of this node did; it stays as long as this object does.

        Args:
            dataset_uri: Directory of the data set.
            manifest: Its manifest.
            cache_dir: Where to.
            budget_bytes: What this node's cache should take at most; see `training.data.cache.disk_cache.make_room`.

        Raises:
            DatasetError: A shard is missing or damaged, or the disk has too little room.
            StorageError: The data set can't be read.
        """
        entry = cache_dir / manifest.content_digest[:32]
        self._hold = hold(
            entry,
            lambda partial: _stage(dataset_uri, manifest, partial, budget_bytes),
            is_whole=lambda path: _is_whole(path, manifest),
        )
        self.images, self.labels = _opened(entry)

    def gather(self, rows: npt.NDArray[np.int64]) -> tuple[Images, npt.NDArray[np.int64]]:
        """Copies of these rows' images and labels."""
        return np.take(self.images, rows, axis=0), self.labels[rows]


def _opened(entry: Path) -> tuple[Images, npt.NDArray[np.int64]]:
    return np.load(entry / "images.npy", mmap_mode="r"), np.load(entry / "labels.npy")


def _is_whole(entry: Path, manifest: Manifest) -> bool:
    height, width, channels = manifest.image_shape
    try:
        images, labels = _opened(entry)
    except (OSError, ValueError, EOFError):
        return False
    return images.shape == (manifest.num_images, channels, height, width) and labels.shape == (manifest.num_images,)


def _stage(dataset_uri: str, manifest: Manifest, partial: Path, budget_bytes: int | None) -> None:
    cache_dir = partial.parent
    num_bytes = manifest.num_images * (manifest.image_bytes + _LABEL_BYTES) + _HEADER_BYTES
    downloads = sorted((shard.num_bytes for shard in manifest.shards), reverse=True)[:_DOWNLOADS] if storage.is_s3(dataset_uri) else []
    if num_bytes > _QUIET_BYTES:
        say(f"{manifest.name}: staging {format_bytes(num_bytes)} on this node's disk")
    try:
        with making_room(cache_dir):
            make_room(cache_dir, num_bytes + sum(downloads), budget_bytes)
            partial.mkdir()
            images = _allocated(partial / "images.npy", manifest)
        _fill(dataset_uri, manifest, partial, images)
    except OSError as error:
        if isinstance(error, storage.StorageError):
            raise
        raise out_of_room(cache_dir, num_bytes, error) from error


def _allocated(path: Path, manifest: Manifest) -> np.memmap[Any, np.dtype[np.uint8]]:
    height, width, channels = manifest.image_shape
    shape = (manifest.num_images, channels, height, width)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        # The map's file has its size, but no room on the disk yet; to find the disk full later would end the process.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _fill(dataset_uri: str, manifest: Manifest, partial: Path, images: np.memmap[Any, np.dtype[np.uint8]]) -> None:
    labels = np.empty(manifest.num_images, dtype=np.int64)
    starts = np.cumsum([0, *(shard.num_rows for shard in manifest.shards)])

    def fetch(number: int) -> None:
        shard = manifest.shards[number]
        with local_shard(dataset_uri, shard, partial) as path, _parquet(dataset_uri, shard, path) as file:
            row = int(starts[number])
            for pixels, group_labels, _ in row_groups(file, manifest.image_shape):
                images[row : row + len(pixels)] = pixels.transpose(0, 3, 1, 2)
                labels[row : row + len(pixels)] = group_labels
                row += len(pixels)

    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        for _ in pool.map(fetch, range(len(manifest.shards))):
            pass
    images.flush()
    np.save(partial / "labels.npy", labels)


@contextlib.contextmanager
def local_shard(dataset_uri: str, shard: Shard, directory: Path) -> Iterator[Path]:
    """A verified local file of the shard; a copy in `directory` that goes at the end, where the data set isn't local.

    Raises:
        DatasetError: The shard is missing, or its bytes are not those that the manifest promises.
    """
    uri = storage.join(dataset_uri, shard.file)
    copy = directory / shard.file
    try:
        with contextlib.ExitStack() as stack:
            path = storage.download(uri, copy) if storage.is_s3(uri) else stack.enter_context(storage.open_local(uri))
            found = path.stat().st_size
            if found != shard.num_bytes:
                raise DatasetError(f"{uri}: has {found:,} bytes, the manifest says {shard.num_bytes:,}; prepare the data set again")
            if file_sha256(path) != shard.sha256:
                raise DatasetError(f"{uri}: its sha256 is not the manifest's, so it was damaged; prepare the data set again")
            yield path
    except storage.ObjectNotFoundError as error:
        raise DatasetError(f"{uri}: the shard is missing, but the manifest lists it; prepare the data set again") from error
    finally:
        copy.unlink(missing_ok=True)


@contextlib.contextmanager
def _parquet(dataset_uri: str, shard: Shard, path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            if file.metadata.num_rows != shard.num_rows:
                raise DatasetError(
                    f"{storage.join(dataset_uri, shard.file)}: has {file.metadata.num_rows:,} rows, the manifest says {shard.num_rows:,}"
                )
            yield file
    except pa.ArrowException as error:
        raise DatasetError(f"{storage.join(dataset_uri, shard.file)}: is not a shard ({error})") from error

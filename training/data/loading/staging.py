"""Stage a data set on this node's disk: every shard fetched and checked once, memory-mapped by every process that reads it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training import storage
from training.config.errors import UserError
from training.console import format_bytes, say
from training.data.cache.disk_cache import STAGING_REMEDY, explain_local_disk_errors, get_or_make, reserve
from training.data.format.manifest import Images, Manifest, Shard, make_again
from training.data.format.shards import file_sha256, read_row_groups
from training.storage.retry import is_transient_storage_error

_DOWNLOADS = 4
_LABEL_BYTES = 8
_HEADER_BYTES = 8192  # of two files, and the disk's rounding
_SILENT_BYTES = 256 * 1024**2  # a smaller data set is staged at once, without a message


class StagedRows:
    """All rows of a data set, memory-mapped.

    Attributes:
        images: uint8 `[rows, channels, height, width]`.
        labels: int64 `[rows]`, -1 where there is none.
    """

    def __init__(self, dataset_uri: str, manifest: Manifest, cache_dir: Path, budget_bytes: int | None = None) -> None:
        """Stage the data set, unless an earlier process of this node did; it is not evicted while this object exists."""
        self._entry = get_or_make(
            cache_dir / manifest.content_digest[:32],
            lambda partial: _stage(dataset_uri, manifest, partial, budget_bytes),
            is_intact=lambda path: _is_intact(path, manifest),
        )
        self.images, self.labels = _open(self._entry.path)

    def gather(self, rows: npt.NDArray[np.int64]) -> tuple[Images, npt.NDArray[np.int64]]:
        """Return copies of these rows' images and labels."""
        return np.take(self.images, rows, axis=0), self.labels[rows]


@contextlib.contextmanager
def local_shard(dataset_uri: str, shard: Shard, directory: Path) -> Iterator[Path]:
    """Provide a local file of the shard, verified by the manifest; for a data set in S3, a temporary copy in `directory`."""
    uri = storage.join(dataset_uri, shard.file)
    copy = directory / shard.file
    try:
        with contextlib.ExitStack() as stack:
            is_in_s3 = storage.is_s3(uri)
            path = storage.download(uri, copy, num_bytes=shard.num_bytes) if is_in_s3 else stack.enter_context(storage.open_local(uri))
            found = path.stat().st_size
            if found != shard.num_bytes:
                raise UserError(f"{uri}: has {found:,} bytes, the manifest says {shard.num_bytes:,}; {make_again(dataset_uri)}")
            if file_sha256(path) != shard.sha256:
                raise UserError(f"{uri}: its sha256 is not the manifest's, so it was damaged; {make_again(dataset_uri)}")
            yield path
    except storage.ObjectNotFoundError as error:
        raise UserError(f"{uri}: the shard is missing, but the manifest lists it; {make_again(dataset_uri)}") from error
    finally:
        copy.unlink(missing_ok=True)


def _open(entry: Path) -> tuple[Images, npt.NDArray[np.int64]]:
    return np.load(entry / "images.npy", mmap_mode="r"), np.load(entry / "labels.npy")


def _is_intact(entry: Path, manifest: Manifest) -> bool:
    height, width, channels = manifest.image_shape
    try:
        images, labels = _open(entry)
    except (OSError, ValueError, EOFError):
        return False
    return images.shape == (manifest.num_images, channels, height, width) and labels.shape == (manifest.num_images,)


def _stage(dataset_uri: str, manifest: Manifest, partial: Path, budget_bytes: int | None) -> None:
    num_bytes = manifest.num_images * (manifest.image_bytes + _LABEL_BYTES) + _HEADER_BYTES
    downloads = sorted((shard.num_bytes for shard in manifest.shards), reverse=True)[:_DOWNLOADS] if storage.is_s3(dataset_uri) else []
    if num_bytes > _SILENT_BYTES:
        say(f"{manifest.name}: staging {format_bytes(num_bytes)} on this node's disk")
    with explain_local_disk_errors(f"{partial.parent}: staging {format_bytes(num_bytes)} of data", STAGING_REMEDY):
        with reserve(partial.parent, num_bytes + sum(downloads), budget_bytes):
            partial.mkdir()
            images = _allocate(partial / "images.npy", manifest)
        _fill(dataset_uri, manifest, partial, images)


def _allocate(path: Path, manifest: Manifest) -> np.memmap[Any, np.dtype[np.uint8]]:
    height, width, channels = manifest.image_shape
    shape = (manifest.num_images, channels, height, width)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        # The file is sparse: blocks must be reserved now, or writing to the map on a full disk would kill the process.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _fill(dataset_uri: str, manifest: Manifest, partial: Path, images: np.memmap[Any, np.dtype[np.uint8]]) -> None:
    labels = np.empty(manifest.num_images, dtype=np.int64)
    starts = np.cumsum([0, *(shard.num_rows for shard in manifest.shards)])
    has_failed = threading.Event()

    def is_worth_waiting(error: BaseException) -> bool:
        return not has_failed.is_set() and is_transient_storage_error(error)

    def fetch(number: int) -> None:
        shard, row = manifest.shards[number], int(starts[number])
        uri = storage.join(dataset_uri, shard.file)
        try:
            with local_shard(dataset_uri, shard, partial) as path, pq.ParquetFile(path, memory_map=True) as file:
                if file.metadata.num_rows != shard.num_rows:
                    raise UserError(f"{uri}: has {file.metadata.num_rows:,} rows, not {shard.num_rows:,}; {make_again(dataset_uri)}")
                for pixels, group_labels, _ in read_row_groups(file, manifest.image_shape):
                    images[row : row + len(pixels)] = pixels.transpose(0, 3, 1, 2)
                    labels[row : row + len(pixels)] = group_labels
                    row += len(pixels)
        except pa.ArrowException as error:
            raise UserError(f"{uri}: is not a shard ({error}); {make_again(dataset_uri)}") from error

    def fetch_with_retries(number: int) -> None:
        storage.retry(lambda: fetch(number), is_transient=is_worth_waiting)  # each shard alone: all of them may take hours

    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        jobs = [pool.submit(fetch_with_retries, number) for number in range(len(manifest.shards))]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            has_failed.set()  # or the others would wait on for storage, and this process for them
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    images.flush()
    np.save(partial / "labels.npy", labels)

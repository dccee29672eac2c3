"""A data set that is larger than this node's disk budget: row groups come and go, the latest ones kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from training import storage
from training.console import format_bytes
from training.data.cache.disk_cache import hold, make_room, making_room, node_lock, out_of_room
from training.data.format.shards import ROW_GROUP_ROWS, DatasetError, Images, Manifest, Shard, decode_row_group

GROUPS_PER_BLOCK = 8
"""Row groups whose rows are mixed (8,192 images); part of the order, so the same on every machine."""

_BLOCKS_ON_DISK = 3
"""The one that is read, the next, and the one that a batch across their border still needs."""

_LABEL_BYTES = 8
_HEADER_BYTES = 256


def group_sizes(manifest: Manifest) -> list[int]:
    """Rows of each row group of the data set, shard after shard."""
    return [min(ROW_GROUP_ROWS, shard.num_rows - first) for shard in manifest.shards for first in range(0, shard.num_rows, ROW_GROUP_ROWS)]


class StreamedRows:
    """Rows of a data set by way of row groups, of which no more stay on disk than the budget allows."""

    def __init__(self, dataset_uri: str, manifest: Manifest, cache_dir: Path, disk_budget_bytes: int) -> None:
        """Checks that the budget holds what the order needs at once.

        Raises:
            DatasetError: It doesn't, or the disk has less room than the budget.
        """
        self._dataset_uri = dataset_uri
        self._manifest = manifest
        self._directory = cache_dir / f"{manifest.content_digest[:32]}.stream"
        self._budget = disk_budget_bytes
        sizes = group_sizes(manifest)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._origins = [(shard, group) for shard in manifest.shards for group in range(-(-shard.num_rows // ROW_GROUP_ROWS))]
        group_bytes = int(max(sizes)) * (manifest.image_bytes + _LABEL_BYTES) + _HEADER_BYTES
        needed = min(len(sizes), _BLOCKS_ON_DISK * GROUPS_PER_BLOCK) * group_bytes
        if disk_budget_bytes < needed:
            raise DatasetError(
                f"a disk budget of {format_bytes(disk_budget_bytes)} is too small to stream; it needs {format_bytes(needed)}"
            )
        self._hold = hold(self._directory, Path.mkdir)
        with making_room(cache_dir):
            present = _num_bytes(self._directory)
            make_room(cache_dir, max(0, disk_budget_bytes - present))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="iddpm-stream")
        self._ahead: dict[int, Future[Path]] = {}

    def fetch_ahead(self, groups: Iterable[int]) -> None:
        """Starts to fetch row groups that will be needed, in the background."""
        for group in groups:
            if int(group) not in self._ahead:
                self._ahead[int(group)] = self._pool.submit(self._fetched, int(group))

    def gather(self, rows: npt.NDArray[np.int64]) -> tuple[Images, npt.NDArray[np.int64]]:
        """Copies of these rows' images `[rows, channels, height, width]` and labels.

        Raises:
            DatasetError: A row group is missing or damaged.
            StorageError: The data set can't be read, and a store that doesn't answer has been waited for.
        """
        size, channels = self._manifest.image_size, self._manifest.image_channels
        images = np.empty((len(rows), channels, size, size), dtype=np.uint8)
        labels = np.empty(len(rows), dtype=np.int64)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups):
            chosen = groups == group
            within = rows[chosen] - self._starts[group]
            stored = self._load(int(group))
            images[chosen] = stored["image"][within]
            labels[chosen] = stored["label"][within]
        return images, labels

    def _load(self, group: int) -> npt.NDArray[np.void]:
        started = self._ahead.pop(group, None)
        if started is not None:
            wait([started])  # if it failed, so does the line below, unless the reason has passed
        while True:
            path = self._fetched(group)
            # Another process may make room between the two lines; then it is fetched again.
            with contextlib.suppress(FileNotFoundError):
                loaded: npt.NDArray[np.void] = np.load(path, mmap_mode="r")
                os.utime(path)
                return loaded

    def _fetched(self, group: int) -> Path:
        path = self._directory / f"group-{group:06d}.npy"
        if path.exists():
            return path
        with node_lock(self._directory / f"{path.stem}.lock"):
            if not path.exists():
                rows = storage.retry(lambda: self._read(group))
                self._make_room(rows.nbytes)
                self._keep(rows, path)
        return path

    def _keep(self, rows: npt.NDArray[np.void], path: Path) -> None:
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                np.save(file, rows)
            partial.rename(path)
        except OSError as error:
            raise out_of_room(self._directory, rows.nbytes, error) from error
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        with node_lock(self._directory / "room.lock"):
            kept = sorted((path.stat().st_mtime_ns, path) for path in self._directory.glob("*.npy"))
            sizes = {path: path.stat().st_size for _, path in kept}
            total = sum(sizes.values())
            for _, path in kept:
                if total + num_bytes <= self._budget:
                    break
                path.unlink()
                total -= sizes[path]

    def _read(self, group: int) -> npt.NDArray[np.void]:
        images, labels, _ = read_row_group(self._dataset_uri, self._manifest, *self._origins[group])
        size, channels = self._manifest.image_size, self._manifest.image_channels
        rows = np.empty(len(labels), dtype=[("image", np.uint8, (channels, size, size)), ("label", np.int64)])
        rows["image"] = images.transpose(0, 3, 1, 2)
        rows["label"] = labels
        return rows


def _num_bytes(directory: Path) -> int:
    """Of the row groups there; one that another process takes away meanwhile counts nothing."""
    total = 0
    for path in directory.glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def read_row_group(dataset_uri: str, manifest: Manifest, shard: Shard, number: int) -> tuple[Images, npt.NDArray[np.int32], list[str]]:
    """Images `[rows, height, width, channels]`, labels and source ids of one row group, fetching no more than it.

    Raises:
        DatasetError: The shard is missing, or the row group is damaged.
        StorageError: The store doesn't answer, or refuses.
    """
    uri = storage.join(dataset_uri, shard.file)
    try:
        filesystem, path = _filesystem(uri)
        # The manifest's sha256 is of the whole file; what guards a part of it is the checksum of its pages.
        with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file:
            return decode_row_group(file.read_row_group(number), manifest.image_shape)
    except (FileNotFoundError, storage.ObjectNotFoundError) as error:
        raise DatasetError(f"{uri}: the shard is missing, but the manifest lists it; prepare the data set again") from error
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        if "AWS Error" in reason:  # Arrow has no error of its own for what the store answered
            storage.size(uri)  # says in our words what is wrong, unless it has passed
            raise storage.StorageError(f"{uri}: can't be read ({reason}); try again", transient=True) from error
        raise DatasetError(
            f"{uri}: row group {number} can't be read, so the shard was damaged ({reason}); prepare the data set again"
        ) from error


def _filesystem(uri: str) -> tuple[pafs.FileSystem | None, str]:
    """Arrow's own reader of S3, which fetches only the bytes of a row group; its credentials come from the environment."""
    if not storage.is_s3(uri):
        with storage.open_local(uri) as path:
            return None, str(path)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return pafs.S3FileSystem(**({"endpoint_override": endpoint} if endpoint else {})), uri.removeprefix("s3://")

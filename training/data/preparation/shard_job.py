"""One shard of a data set as a piece of work that any process can do: read, decode, resize, write, upload, record."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from training import storage
from training.config.experiment import Resize
from training.console import format_bytes
from training.data.format.shards import MANIFEST, DatasetError, Images, Shard, ShardWriter, Unreadable, read_manifest
from training.data.images.decoding import ImageError, Prepared, prepare_image
from training.data.sources.source import Item, Reader, Source, items_digest

PARTIAL = "_partial"
"""Directory below a data set that is being made, with a record of each shard that is done."""

_SCRATCH = "iddpm-shard-"
_LOCK = "lock"
_YOUNG_SECONDS = 60.0
_MOST_PIXEL_BYTES = 12  # 16 bits, four channels, and half as much again for what else is in a file

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One size of the images, and where it goes.

    Attributes:
        dataset_uri: Directory of the data set.
        image_size: Height and width in pixels.
        plan_sha256: Of everything that decides its images; a record of another plan does not count.
        rows_per_shard: Where they are cut; neither does a record of another cut.
    """

    dataset_uri: str
    image_size: int
    plan_sha256: str
    rows_per_shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard's part of the plan.

    Attributes:
        number: Position of the shard in the data set.
        source: Where its images are read.
        items: They, in their final order.
        targets: What to make of them.
        image_channels, resize, allow_upscale, reduced_decode, max_pixels: See `training.data.images.decoding.prepare_image`.
        max_errors: Unreadable images to skip before giving up; -1 gives up at the first.
    """

    number: int
    source: Source
    items: Sequence[Item]
    targets: tuple[Target, ...]
    image_channels: int
    resize: Resize
    allow_upscale: bool
    reduced_decode: bool
    max_pixels: int
    max_errors: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What became of a shard at one size; stored beside it, it lets a later run skip the work.

    Attributes:
        plan_sha256: The plan that it belongs to.
        rows_per_shard: The cut that it belongs to.
        source_sha256: Of the files that it was made of (`items_digest`); one of files that were overwritten since does not count.
        shard: The file.
        label_counts: Images by label.
        num_upscaled: Images that were enlarged.
        num_bytes_read: Bytes of the images as they came from the source.
        errors: Images that were left out.
    """

    plan_sha256: str
    rows_per_shard: int
    source_sha256: str
    shard: Shard
    label_counts: dict[int, int]
    num_upscaled: int
    num_bytes_read: int
    errors: tuple[Unreadable, ...]


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.parquet"


def record_uri(target: Target, number: int) -> str:
    """Where the record of a shard is kept while the data set is incomplete."""
    return storage.join(target.dataset_uri, PARTIAL, f"shard-{number:05d}.json")


def read_record(target: Target, number: int, items: Sequence[Item]) -> ShardRecord | None:
    """The record of a shard that an earlier run of the same plan made of the same files, or None."""
    try:
        value = storage.read_json(record_uri(target, number))
        record = ShardRecord(
            plan_sha256=value["plan_sha256"],
            rows_per_shard=value["rows_per_shard"],
            source_sha256=value["source_sha256"],
            shard=Shard(**value["shard"]),
            label_counts={int(label): count for label, count in value["label_counts"].items()},
            num_upscaled=value["num_upscaled"],
            num_bytes_read=value["num_bytes_read"],
            errors=tuple(Unreadable(**error) for error in value["errors"]),
        )
        wanted = (target.plan_sha256, target.rows_per_shard, items_digest(items))
        if (record.plan_sha256, record.rows_per_shard, record.source_sha256) != wanted:
            return None
        stored = storage.size(storage.join(target.dataset_uri, record.shard.file))
    except (storage.ObjectNotFoundError, KeyError, TypeError):
        return None
    return record if stored == record.shard.num_bytes else None


def make_shard(job: ShardJob) -> dict[int, ShardRecord]:
    """Makes a shard at every size, and records it once it is stored.

    Returns:
        The record by image size.

    Raises:
        DatasetError: An image can't be read and none may be skipped, or too many can't.
        StorageError: The result can't be stored.
    """
    cv2.setNumThreads(1)  # the pieces of work are what runs in parallel
    _keep_freed_memory()
    sizes = [target.image_size for target in job.targets]
    counts: collections.Counter[int] = collections.Counter()
    upscaled = np.zeros(len(sizes), dtype=np.int64)
    errors: list[Unreadable] = []
    num_bytes_read = 0
    with _scratch() as directory, job.source.open() as reader:
        paths = [Path(directory) / f"{size}.parquet" for size in sizes]
        with _room(directory):
            writers = [ShardWriter(path, size * size * job.image_channels) for path, size in zip(paths, sizes, strict=True)]
        for item, data in _read_ahead(reader, job):
            try:
                prepared, num_bytes = _prepared(data, sizes, job)
            except ImageError as error:
                errors.append(Unreadable(source=item.key, reason=str(error)))
                if len(errors) > job.max_errors:
                    raise too_many_errors(job.source.place, errors, job.max_errors) from error
                continue
            with _room(directory):
                for writer, image in zip(writers, prepared.images, strict=True):
                    writer.add(image, item.label, item.key)
            counts[item.label] += 1
            upscaled += prepared.upscaled
            num_bytes_read += num_bytes
        with _room(directory):
            shards = [writer.close(shard_name(job.number)) for writer in writers]
        records = {}
        source_sha256 = items_digest(job.items)
        for target, path, shard, num_upscaled in zip(job.targets, paths, shards, upscaled, strict=True):
            record = ShardRecord(
                plan_sha256=target.plan_sha256,
                rows_per_shard=target.rows_per_shard,
                source_sha256=source_sha256,
                shard=shard,
                label_counts=dict(counts),
                num_upscaled=int(num_upscaled),
                num_bytes_read=num_bytes_read,
                errors=tuple(errors),
            )
            _store(target, job.number, path, record)
            records[target.image_size] = record
    return records


def _store(target: Target, number: int, path: Path, record: ShardRecord) -> None:
    if not _is_published(target):
        storage.upload(path, storage.join(target.dataset_uri, record.shard.file))
        storage.write_json(record_uri(target, number), dataclasses.asdict(record))


def _is_published(target: Target) -> bool:
    """Whether another run of the same plan has finished meanwhile; a finished data set is never written to."""
    if not storage.exists(storage.join(target.dataset_uri, MANIFEST)):
        return False
    if read_manifest(target.dataset_uri).plan_sha256 != target.plan_sha256:
        raise DatasetError(f"{target.dataset_uri}: another run has put another data set there meanwhile; choose another place")
    return True


def _keep_freed_memory() -> None:
    """Has glibc reuse an image's pixels for the next image's.

    In a worker of Ray it gives each large block back to the system and gets it again zeroed, page by page: a third of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes


def _prepared(data: bytes | Images | ImageError, sizes: Sequence[int], job: ShardJob) -> tuple[Prepared, int]:
    if isinstance(data, ImageError):
        raise data
    prepared = prepare_image(
        data,
        sizes,
        job.resize,
        channels=job.image_channels,
        allow_upscale=job.allow_upscale,
        reduced_decode=job.reduced_decode,
        max_pixels=job.max_pixels,
    )
    return prepared, len(data) if isinstance(data, bytes) else data.nbytes


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A directory on the temporary disk; those of processes that were killed go first, or each kill would cost a shard's room."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError), (left / _LOCK).open() as lock:
            if time.time() - left.stat().st_mtime > _YOUNG_SECONDS:  # a younger one may be about to be locked
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
    with contextlib.ExitStack() as stack:
        with _room(str(parent)):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=_SCRATCH))
            lock = stack.enter_context(Path(directory, _LOCK).open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


@contextlib.contextmanager
def _room(directory: str) -> Iterator[None]:
    """A disk that is full while a shard is written there gets the remedy."""
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{directory}: {error.strerror or error}; free some space there, or point TMPDIR elsewhere") from error


def too_many_errors(place: str, errors: Sequence[Unreadable], max_errors: int) -> DatasetError:
    """The message that ends a preparation, with the first few images by name."""
    first = "; ".join(f"{error.source} {error.reason}" for error in errors[:5])
    if max_errors < 0:
        return DatasetError(f"{place}: {first}. Mend or remove it, or skip such images (--on-error skip)")
    more = f" and {len(errors) - 5} more" if len(errors) > 5 else ""
    return DatasetError(f"{place}: more than {max_errors} images can't be used: {first}{more}. Mend the source, or raise --max-errors")


def _read_ahead(reader: Reader, job: ShardJob) -> Iterator[tuple[Item, bytes | Images | ImageError]]:
    """Each item with its data or the reason why it has none, in order, as many reads in flight as the source wants."""
    most_bytes = _MOST_PIXEL_BYTES * job.max_pixels

    def read(item: Item) -> bytes | Images | ImageError:
        if item.num_bytes > most_bytes:
            return ImageError(f"is too large: {format_bytes(item.num_bytes)}, more than any image of {job.max_pixels:,} pixels")
        try:
            return reader(item.locator)
        except ImageError as error:
            return error

    concurrency = job.source.concurrency
    if concurrency <= 1:
        yield from ((item, read(item)) for item in job.items)
        return
    pending: collections.deque[tuple[Item, Future[Any]]] = collections.deque()
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(concurrency)
        stack.callback(pool.shutdown, cancel_futures=True)
        for item in job.items:
            pending.append((item, pool.submit(read, item)))
            if len(pending) >= concurrency:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()

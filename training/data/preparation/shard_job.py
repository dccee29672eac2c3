"""One shard of a data set as a job that any process can do: read, decode, resize, write, upload, record."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from training import storage
from training.config.errors import UserError
from training.config.validation import adapter
from training.data.cache.disk_cache import TMPDIR_REMEDY, explain_local_disk_errors
from training.data.format.manifest import MANIFEST, Shard, UnreadableImage, read_manifest
from training.data.format.shards import ShardWriter
from training.data.images.decode import ImageError
from training.data.images.resize import prepare_image
from training.data.preparation.options import Options
from training.data.sources.source import Item, Source, is_digest_of, items_digest, read_items

PARTIAL = "_partial"
"""Directory below an unfinished data set, with a record of each finished shard."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One size of the images, and its directory.

    Attributes:
        plan_sha256: Digest of everything that decides its images; records of another plan are ignored.
        rows_per_shard: Division into shards; records of another division are ignored.
    """

    dataset_uri: str
    image_size: int
    plan_sha256: str
    rows_per_shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """The work on one shard.

    Attributes:
        items: The images, in their final order.
        options: The options; without `image_channels`, the images have those of the source.
    """

    number: int
    source: Source
    items: Sequence[Item]
    targets: tuple[Target, ...]
    options: Options


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """The result of a job at one size; stored in `PARTIAL`, it lets a later run skip the work.

    Attributes:
        source_sha256: Digest of the files that it was made from (`items_digest`); a record of overwritten files is ignored.
        num_bytes_read: Bytes of the images in the source.
    """

    plan_sha256: str
    rows_per_shard: int
    source_sha256: str
    shard: Shard
    label_counts: dict[int, int]
    num_upscaled: int
    num_bytes_read: int
    errors: tuple[UnreadableImage, ...]


def read_record(target: Target, number: int, items: Sequence[Item]) -> ShardRecord | None:
    """Read the record of a shard that an earlier run of the same plan made from the same files; None if there is none."""
    from pydantic import ValidationError

    try:
        record: ShardRecord = adapter(ShardRecord).validate_json(storage.read_bytes(_record_uri(target, number)))
        is_of_plan = (record.plan_sha256, record.rows_per_shard) == (target.plan_sha256, target.rows_per_shard)
        if not (is_of_plan and is_digest_of(record.source_sha256, items)):
            return None
        stored_bytes = storage.size(storage.join(target.dataset_uri, record.shard.file))
    except (storage.ObjectNotFoundError, ValidationError):
        return None
    return record if stored_bytes == record.shard.num_bytes else None


def make_shard(job: ShardJob) -> tuple[int, dict[int, ShardRecord]]:
    """Make a shard at every size, store it, and record it; return the number of the job, and the record by image size.

    Raises:
        UserError: Too many images can't be read, or the temporary disk becomes full.
        StorageError: The temporary disk is full or can't be written, or storage fails.
    """
    cv2.setNumThreads(1)  # the jobs themselves run in parallel
    _keep_freed_memory()
    options, channels = job.options, job.options.image_channels or job.source.image_channels
    sizes = [target.image_size for target in job.targets]
    label_counts: collections.Counter[int] = collections.Counter()
    num_upscaled = np.zeros(len(sizes), dtype=np.int64)
    errors: list[UnreadableImage] = []
    num_bytes_read = 0
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(storage.scratch_directory("shard"))
        paths = [directory / f"{size}.parquet" for size in sizes]
        with explain_local_disk_errors(directory, TMPDIR_REMEDY):
            writers = [ShardWriter(path, size * size * channels) for path, size in zip(paths, sizes, strict=True)]
        for item, data in read_items(job.source, job.items, max_pixels=options.max_pixels):
            try:
                if isinstance(data, ImageError):
                    raise data
                prepared = prepare_image(
                    data,
                    sizes,
                    options.resize,
                    channels=channels,
                    allow_upscale=options.allow_upscale,
                    reduced_decode=options.reduced_decode,
                    max_pixels=options.max_pixels,
                    background=options.background,
                )
            except ImageError as error:
                if not isinstance(data, bytes | ImageError):  # pixels are all of one size, and can't be repaired or removed one by one
                    raise UserError(f"{job.source.address}: {item.key} {error}") from error
                errors.append(UnreadableImage(source=item.key, reason=str(error)))
                if options.on_error == "fail" or len(errors) > options.max_errors:
                    raise too_many_errors(job.source.address, errors, options) from error
                continue
            with explain_local_disk_errors(directory, TMPDIR_REMEDY):
                for writer, image in zip(writers, prepared.images, strict=True):
                    writer.add(image, item.label, item.key)
            label_counts[item.label] += 1
            num_upscaled += prepared.upscaled
            num_bytes_read += len(data) if isinstance(data, bytes) else data.nbytes
        with explain_local_disk_errors(directory, TMPDIR_REMEDY):
            shards = [writer.close(_shard_name(job.number)) for writer in writers]
        records = {}
        source_sha256 = items_digest(job.items)
        for target, path, shard, upscaled in zip(job.targets, paths, shards, num_upscaled, strict=True):
            records[target.image_size] = record = ShardRecord(
                plan_sha256=target.plan_sha256,
                rows_per_shard=target.rows_per_shard,
                source_sha256=source_sha256,
                shard=shard,
                label_counts=dict(label_counts),
                num_upscaled=int(upscaled),
                num_bytes_read=num_bytes_read,
                errors=tuple(errors),
            )
            if not _is_complete(target):
                storage.upload(path, storage.join(target.dataset_uri, shard.file))
                storage.write_json(_record_uri(target, job.number), dataclasses.asdict(record))
    return job.number, records


def delete_unfinished(target: Target, numbers: Iterable[int]) -> None:
    """Delete the shards and records of jobs whose data set is refused; a finished data set stays."""
    if _is_complete(target):
        return
    for number in numbers:
        storage.delete(storage.join(target.dataset_uri, _shard_name(number)))
        storage.delete(_record_uri(target, number))
    if not storage.is_s3(target.dataset_uri):
        directory = storage.local_path(target.dataset_uri)
        for path in (directory / PARTIAL, directory):
            with contextlib.suppress(OSError):  # it contains something else
                path.rmdir()


def is_shard_name(name: str) -> bool:
    """Return True for the name of a file that a job could have written."""
    return re.fullmatch(r"shard-\d{5,}\.parquet", name) is not None


def too_many_errors(address: str, errors: Sequence[UnreadableImage], options: Options) -> UserError:
    """Return the error that ends a preparation, with the names of the first images."""
    first = "; ".join(f"{error.source} {error.reason}" for error in errors[:5])
    if options.on_error == "fail":
        remedy = 'Repair or remove it, or skip such images (on_error "skip" in data_options; --on-error skip of `iddpm preprocess`)'
        return UserError(f"{address}: {first}. {remedy}")
    more = f" and {len(errors) - 5} more" if len(errors) > 5 else ""
    return UserError(
        f"{address}: more than {options.max_errors} images can't be used: {first}{more}. Repair the source, or raise max_errors"
    )


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.parquet"


def _record_uri(target: Target, number: int) -> str:
    return storage.join(target.dataset_uri, PARTIAL, f"shard-{number:05d}.json")


def _is_complete(target: Target) -> bool:
    """Return True if the data set is finished, for instance by another run; a finished data set must not be written to."""
    if not storage.exists(storage.join(target.dataset_uri, MANIFEST)):
        return False
    if read_manifest(target.dataset_uri).plan_sha256 != target.plan_sha256:
        raise UserError(f"{target.dataset_uri}: another run has made another data set there meanwhile; choose another directory")
    return True


def _keep_freed_memory() -> None:
    """Make glibc reuse the memory of one image for the next.

    Otherwise, in a Ray worker, it returns each large block to the system and receives it again page by page, zeroed. That takes a third
    of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts

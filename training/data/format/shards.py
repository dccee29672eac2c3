"""The form of a prepared data set: Parquet shards of raw pixels, and the manifest that makes them a data set.

A shard holds one row an image: `image` (uint8, height x width x channels, as fixed-size binary), `label` (int32, -1
where there is none) and `source` (where the image came from). Rows were shuffled over the whole data set once, by the
seed in the manifest. `manifest.json` is written last: a directory without it is no data set.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training import storage

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ROW_GROUP_ROWS = 1024
UNLABELLED = -1

_SHARD_BYTES = 160_000_000
_LEAST_SHARD_BYTES = 128_000_000

Images = npt.NDArray[np.uint8]
"""uint8, `[..., height, width, channels]`."""


class DatasetError(ValueError):
    """A data set that is missing, damaged, or not the one that was asked for; the message has the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of the data set.

    Attributes:
        file: Its name below the data set's directory.
        num_rows: Images in it.
        num_bytes: Size of the file.
        sha256: Of the file; changes with the Parquet library's version.
        rows_sha256: Of its rows (pixels, label, source id, in order); doesn't.
    """

    file: str
    num_rows: int
    num_bytes: int
    sha256: str
    rows_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """An image that was left out, and why."""

    source: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a data set is.

    Attributes:
        schema_version: Of this file and the shards; readers refuse one that they don't know.
        name: The data set and its release ("digits", "imagenet64-official", ...).
        split: "train" or "test".
        image_size: Height and width in pixels.
        image_channels: 1 (grey) or 3 (RGB).
        num_images: Rows in all shards.
        num_classes: Number of labels; 0 for an unlabelled data set.
        class_names: Name of each label, in the labels' order.
        class_counts: Images of each label.
        resize: How a larger image became `image_size`; see `training.data.images.decoding`.
        reduced_decode: Whether the JPEG decoder was allowed to halve large images itself, which is faster and less exact.
        num_upscaled: Images that were smaller than `image_size`, and enlarged because an option allowed it.
        shuffle_seed: Seed of the global order of the rows.
        split_seed: Seed that drew the test images out of a source that has no test split; None where it has one.
        plan_sha256: Of everything that decides the images and their order: the source's listing and the options.
        content_digest: Of the content itself and its cut into shards, independent of workers, restarts and library
            versions.
        shards: The files, in the order of the rows.
        errors: Images that could not be read and were skipped.
        source_sha256: Of the source's files with their times or checksums: another one where a file was written since, if only
            as a copy, and so no part of what makes two data sets equal. Empty where it was not noted yet.
    """

    schema_version: int
    name: str
    split: str
    image_size: int
    image_channels: int
    num_images: int
    num_classes: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    resize: str
    reduced_decode: bool
    num_upscaled: int
    shuffle_seed: int
    split_seed: int | None
    plan_sha256: str
    content_digest: str
    shards: tuple[Shard, ...]
    errors: tuple[Unreadable, ...]
    source_sha256: str = dataclasses.field(default="", compare=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a row."""
        return self.image_size, self.image_size, self.image_channels

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.image_size * self.image_size * self.image_channels

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_IDENTITY = ("name", "split", "image_size", "image_channels", "resize", "reduced_decode", "shuffle_seed", "split_seed", "class_names")


def manifest_digest(manifest: Manifest) -> str:
    """The content digest that a manifest ought to have: of what the data set is, and of its shards' rows in order."""
    identity: dict[str, Any] = {name: getattr(manifest, name) for name in _IDENTITY}
    identity["shards"] = [[shard.num_rows, shard.rows_sha256] for shard in manifest.shards]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_manifest(dataset_uri: str) -> Manifest:
    """The manifest of the data set in that directory.

    Raises:
        DatasetError: There is no complete data set, or its form is not known here.
        StorageError: The place can't be read.
    """
    uri = storage.join(dataset_uri, MANIFEST)
    try:
        text = storage.read_bytes(uri)
    except storage.ObjectNotFoundError as error:
        below = [split for split in ("train", "test") if storage.exists(storage.join(dataset_uri, split, MANIFEST))]
        if below:
            choice = " or ".join(storage.join(dataset_uri, split) for split in below)
            raise DatasetError(f"{dataset_uri}: holds the splits of a data set; name one of them: {choice}") from error
        raise DatasetError(f"{dataset_uri}: there is no data set ({MANIFEST} is missing); prepare one with `iddpm preprocess`") from error
    return parse_manifest(text, uri)


def parse_manifest(text: bytes | str, uri: str) -> Manifest:
    """Reads what `Manifest.to_json` wrote.

    Args:
        text: The JSON.
        uri: Where it came from, for the message.

    Raises:
        DatasetError: It is not a manifest, or one of another schema version.
    """
    from pydantic import ValidationError

    try:
        value = json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{uri}: is not JSON ({error}); the data set is damaged, prepare it again") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise DatasetError(f"{uri}: schema version {version!r}, but this program reads {SCHEMA_VERSION}; prepare the data set again")
    try:
        manifest: Manifest = _adapter().validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DatasetError(f"{uri}: {where}: {first['msg']}; the manifest is damaged, prepare the data set again") from error
    _check_consistent(manifest, uri)
    return manifest


def _check_consistent(manifest: Manifest, uri: str) -> None:
    """What the manifest says twice it has to say alike: readers make room for as many rows as it says."""
    agree = {
        "num_images": manifest.num_images == sum(shard.num_rows for shard in manifest.shards) > 0,
        "num_classes": manifest.num_classes == len(manifest.class_names),
        "class_counts": manifest.num_classes == len(manifest.class_counts) and sum(manifest.class_counts) <= manifest.num_images,
        "image_size": manifest.image_size > 0,
        "image_channels": manifest.image_channels in (1, 3),
    }
    for name, agrees in agree.items():
        if not agrees:
            raise DatasetError(f"{uri}: {name} does not fit what else it says; the manifest is damaged, prepare the data set again")
    if manifest_digest(manifest) != manifest.content_digest:
        raise DatasetError(f"{uri}: its content digest does not fit what else it says; the manifest is damaged, prepare the data set again")


@functools.cache
def _adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def rows_per_shard(image_bytes: int) -> int:
    """How many images make 128 to 256 MB: whole row groups, or a part of one where the images are that large."""
    group_bytes = image_bytes * ROW_GROUP_ROWS
    if group_bytes > 2 * _LEAST_SHARD_BYTES:
        return max(1, _SHARD_BYTES // image_bytes)
    groups = max(1, _SHARD_BYTES // group_bytes)
    return ROW_GROUP_ROWS * (groups if groups * group_bytes >= _LEAST_SHARD_BYTES else groups + 1)


class RowsDigest:
    """sha256 over rows: pixels, label (int32, little endian), source id (UTF-8) and its length, in order."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, image: bytes, label: int, source: str) -> None:
        """Adds one row."""
        name = source.encode()
        self._sha256.update(image)
        self._sha256.update(label.to_bytes(4, "little", signed=True) + len(name).to_bytes(4, "little"))
        self._sha256.update(name)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._sha256.hexdigest()


class ShardWriter:
    """Writes one shard to a local file, a row group at a time, so that memory stays bounded."""

    def __init__(self, path: Path, image_bytes: int) -> None:
        self._path = path
        self._schema = pa.schema(
            [
                pa.field("image", pa.binary(image_bytes), nullable=False),
                pa.field("label", pa.int32(), nullable=False),
                pa.field("source", pa.string(), nullable=False),
            ]
        )
        # Raw pixels do not compress and have no use for statistics; the checksums guard a reader of single row groups.
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="NONE", use_dictionary=False, write_statistics=False, write_page_checksum=True
        )
        self._rows: list[tuple[bytes, int, str]] = []
        self._digest = RowsDigest()
        self._num_rows = 0

    def add(self, image: Images, label: int, source: str) -> None:
        """Appends one image, `[height, width, channels]`."""
        pixels = image.tobytes()
        self._digest.update(pixels, label, source)
        self._rows.append((pixels, label, source))
        self._num_rows += 1
        if len(self._rows) == ROW_GROUP_ROWS:
            self._write_row_group()

    def close(self, name: str) -> Shard:
        """Finishes the file and describes it.

        Args:
            name: What the file will be called in the data set.
        """
        if self._rows:
            self._write_row_group()
        self._writer.close()
        return Shard(
            file=name,
            num_rows=self._num_rows,
            num_bytes=self._path.stat().st_size,
            sha256=file_sha256(self._path),
            rows_sha256=self._digest.hexdigest(),
        )

    def _write_row_group(self) -> None:
        images, labels, sources = zip(*self._rows, strict=True)
        table = pa.table([images, labels, sources], schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._rows.clear()


def file_sha256(path: Path) -> str:
    """sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_groups(file: pq.ParquetFile, image_shape: Sequence[int]) -> Iterator[tuple[Images, npt.NDArray[np.int32], list[str]]]:
    """The rows of a shard, one row group at a time: images `[rows, height, width, channels]`, labels, source ids."""
    for index in range(file.num_row_groups):
        yield decode_row_group(file.read_row_group(index), image_shape)


def decode_row_group(table: pa.Table, image_shape: Sequence[int]) -> tuple[Images, npt.NDArray[np.int32], list[str]]:
    """Images `[rows, height, width, channels]`, labels and source ids of a table of shard rows, without a copy of the pixels."""
    column = table.column("image").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    width = int(np.prod(image_shape))
    if column.type.byte_width != width:
        raise DatasetError(f"a row has {column.type.byte_width} bytes, but the manifest's image shape {tuple(image_shape)} has {width}")
    start = column.offset * width
    pixels = np.frombuffer(column.buffers()[1], dtype=np.uint8)[start : start + len(column) * width]
    return (
        pixels.reshape(len(column), *image_shape),
        table.column("label").to_numpy().astype(np.int32),
        table.column("source").to_pylist(),
    )

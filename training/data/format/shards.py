"""Parquet shards of raw pixels.

A shard has one row per image: `image` (uint8, height x width x channels, as fixed-size binary), `label` (int32, -1 where there is
none) and `source` (the image's name in its source). The rows were shuffled over the whole data set once, by the manifest's seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.format.manifest import Images, Manifest, Shard

ROW_GROUP_ROWS = 1024
UNLABELLED = -1

_SHARD_BYTES = 160_000_000
_MIN_SHARD_BYTES = 128_000_000

Rows = tuple[Images, npt.NDArray[np.int32], list[str]]
"""Images `[rows, height, width, channels]`, labels and source names."""


def rows_per_shard(image_bytes: int) -> int:
    """Return the number of images that make 128 to 256 MB: whole row groups, or a part of one for very large images."""
    group_bytes = image_bytes * ROW_GROUP_ROWS
    if group_bytes > 2 * _MIN_SHARD_BYTES:
        return max(1, _SHARD_BYTES // image_bytes)
    groups = max(1, _SHARD_BYTES // group_bytes)
    return ROW_GROUP_ROWS * (groups if groups * group_bytes >= _MIN_SHARD_BYTES else groups + 1)


def row_group_sizes(manifest: Manifest) -> list[int]:
    """Return the number of rows of each row group of the data set, shard after shard."""
    return [min(ROW_GROUP_ROWS, shard.num_rows - first) for shard in manifest.shards for first in range(0, shard.num_rows, ROW_GROUP_ROWS)]


class RowsDigest:
    """sha256 over rows: pixels, label (int32, little endian), length of the source name, the name (UTF-8), in order."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, image: bytes, label: int, source: str) -> None:
        """Add one row."""
        name = source.encode()
        self._sha256.update(image)
        self._sha256.update(label.to_bytes(4, "little", signed=True) + len(name).to_bytes(4, "little"))
        self._sha256.update(name)

    def hexdigest(self) -> str:
        """Return 64 hexadecimal digits."""
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
        # Raw pixels neither compress nor have useful statistics; page checksums protect readers of single row groups.
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="NONE", use_dictionary=False, write_statistics=False, write_page_checksum=True
        )
        self._rows: list[tuple[bytes, int, str]] = []
        self._digest = RowsDigest()
        self._num_rows = 0

    def add(self, image: Images, label: int, source: str) -> None:
        """Append one image, `[height, width, channels]`."""
        pixels = image.tobytes()
        self._digest.update(pixels, label, source)
        self._rows.append((pixels, label, source))
        self._num_rows += 1
        if len(self._rows) == ROW_GROUP_ROWS:
            self._write_row_group()

    def close(self, name: str) -> Shard:
        """Finish the file and describe it under the name that it will have in the data set."""
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
    """Return the sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_row_groups(file: pq.ParquetFile, image_shape: Sequence[int]) -> Iterator[Rows]:
    """Yield the rows of a shard, one row group at a time."""
    for index in range(file.num_row_groups):
        yield decode_row_group(file.read_row_group(index), image_shape)


def decode_row_group(table: pa.Table, image_shape: Sequence[int]) -> Rows:
    """Return the rows of a table, without copying the pixels; raise `pa.ArrowInvalid` if the images have another shape."""
    column = table.column("image").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    width = int(np.prod(image_shape))
    if column.type.byte_width != width:
        raise pa.ArrowInvalid(f"a row has {column.type.byte_width} bytes, but images of {tuple(image_shape)} have {width}")
    start = column.offset * width
    pixels = np.frombuffer(column.buffers()[1], dtype=np.uint8)[start : start + len(column) * width]
    return (
        pixels.reshape(len(column), *image_shape),
        table.column("label").to_numpy().astype(np.int32),
        table.column("source").to_pylist(),
    )

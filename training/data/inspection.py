"""Looking at a prepared data set: what it is, whether it is whole, and how its images look."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from training import storage
from training.console import format_bytes
from training.data.format.shards import ROW_GROUP_ROWS, DatasetError, Images, Manifest, RowsDigest, Shard, read_manifest, row_groups
from training.data.loading.staging import local_shard
from training.data.loading.streaming import read_row_group

_TILE = 64
_CAPTION = 16
_TITLE = 20
_MARGIN = 4


def describe(manifest: Manifest) -> dict[str, str]:
    """What a data set is, in words: the lines of `iddpm dataset info`."""
    counts = manifest.class_counts
    lines = {
        "name": f"{manifest.name}, {manifest.split}",
        "images": f"{manifest.num_images:,} of {manifest.image_size}x{manifest.image_size}x{manifest.image_channels}",
        "classes": f"{manifest.num_classes}, of {_range(counts)} images" if counts else "none",
        "resize": manifest.resize + (" after a reduced decode" if manifest.reduced_decode else ""),
        "shards": f"{len(manifest.shards)}, {format_bytes(sum(shard.num_bytes for shard in manifest.shards))}",
        "order": f"shuffled by seed {manifest.shuffle_seed}",
        "digest": manifest.content_digest,
    }
    if manifest.split_seed is not None:
        lines["split"] = f"drawn by seed {manifest.split_seed}"
    if manifest.num_upscaled:
        lines["upscaled"] = f"{manifest.num_upscaled:,} images were smaller"
    if manifest.errors:
        first = manifest.errors[0]
        lines["left out"] = (
            f"{len(manifest.errors):,} unreadable images (--json lists them), the first of them: {first.source} {first.reason}"
        )
    return lines


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,} to {most:,}" if least < most else f"{least:,}"


def verify(dataset_uri: str) -> Manifest:
    """Reads everything: each shard's bytes, each row, and what the manifest says of them all.

    Raises:
        DatasetError: Something is missing, damaged or not what the manifest says; the message names every such shard.
        StorageError: The data set can't be read.
    """
    manifest = read_manifest(dataset_uri)
    counts = np.zeros(manifest.num_classes, dtype=np.int64)
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="iddpm-verify-") as directory:
        for shard in manifest.shards:
            try:
                with local_shard(dataset_uri, shard, Path(directory)) as path:
                    counts += _check_rows(path, shard, manifest)
            except (DatasetError, pa.ArrowException) as error:
                faults.append(str(error))
    if not faults and tuple(counts.tolist()) != manifest.class_counts:
        faults.append(f"{dataset_uri}: the rows' labels are not those that the manifest counts")
    if faults:
        raise DatasetError("\n".join(faults))
    return manifest


def _check_rows(path: Path, shard: Shard, manifest: Manifest) -> npt.NDArray[np.int64]:
    digest = RowsDigest()
    counts = np.zeros(manifest.num_classes, dtype=np.int64)
    num_rows = 0
    with pq.ParquetFile(path) as file:
        for images, labels, sources in row_groups(file, manifest.image_shape):
            for image, label, source in zip(images, labels.tolist(), sources, strict=True):
                digest.update(image.tobytes(), label, source)
            if labels.size and not (labels.min() >= -1 and labels.max() < max(manifest.num_classes, 0)):
                raise DatasetError(f"{shard.file}: has labels outside of 0..{manifest.num_classes - 1}")
            counts += np.bincount(labels[labels >= 0], minlength=manifest.num_classes)
            num_rows += len(labels)
    if num_rows != shard.num_rows or digest.hexdigest() != shard.rows_sha256:
        raise DatasetError(f"{shard.file}: its rows are not those that the manifest promises; prepare the data set again")
    return counts


def preview(dataset_uri: str, sheet_uri: str, *, num_images: int = 64) -> Manifest:
    """Writes a contact sheet: the first images of the data set, enlarged to be seen, with their labels beneath.

    Args:
        dataset_uri: Directory of the data set.
        sheet_uri: The PNG to write.
        num_images: How many, at most.

    Raises:
        DatasetError: There is no data set, its first rows are damaged, or `sheet_uri` is not a PNG's name.
        StorageError: It can't be read, or the sheet can't be written.
    """
    if num_images < 1:
        raise DatasetError(f"a contact sheet needs at least 1 image, got {num_images}")
    if not sheet_uri.lower().endswith(".png"):
        raise DatasetError(f"{sheet_uri}: a contact sheet is written as PNG; name a file like preview.png")
    manifest = read_manifest(dataset_uri)
    images, labels = _first_rows(dataset_uri, manifest, num_images)
    names = [manifest.class_names[label] if label >= 0 else "" for label in labels]
    with tempfile.TemporaryDirectory(prefix="iddpm-preview-") as directory:
        local = Path(directory) / "sheet.png"
        size, channels = manifest.image_size, manifest.image_channels
        title = f"{manifest.name}, {manifest.split}: {len(images):,} of {manifest.num_images:,} images, {size}x{size}x{channels}"
        contact_sheet(images, names, title).save(local, "PNG")
        storage.upload(local, sheet_uri)
    return manifest


def _first_rows(dataset_uri: str, manifest: Manifest, count: int) -> tuple[list[Images], list[int]]:
    images: list[Images] = []
    labels: list[int] = []
    for shard in manifest.shards:
        for number in range(-(-shard.num_rows // ROW_GROUP_ROWS)):
            pixels, group_labels, _ = read_row_group(dataset_uri, manifest, shard, number)
            images += list(pixels[: count - len(images)])
            labels += group_labels[: count - len(labels)].tolist()
            if len(images) >= count:
                return images, labels
    return images, labels


def contact_sheet(images: Sequence[Images], captions: Sequence[str], title: str = "") -> Image.Image:
    """A grid of images `[height, width, channels]`, small ones enlarged by a whole factor without smoothing.

    Args:
        images: All of one size.
        captions: A word beneath each, shortened where it is wider than the image.
        title: A line beneath them all.
    """
    factor = max(1, _TILE // images[0].shape[0])
    tile = images[0].shape[0] * factor
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    caption = _CAPTION if any(captions) else 0
    step_x, step_y = tile + _MARGIN, tile + caption + _MARGIN
    font = _font()
    width = max(columns * step_x + _MARGIN, math.ceil(font.getlength(title)) + 2 * _MARGIN)
    sheet = Image.new("RGB", (width, rows * step_y + _MARGIN + (_TITLE if title else 0)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, word) in enumerate(zip(images, captions, strict=True)):
        x, y = _MARGIN + index % columns * step_x, _MARGIN + index // columns * step_y
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        sheet.paste(picture.resize((tile, tile), Image.Resampling.NEAREST), (x, y))
        draw.text((x + tile / 2, y + tile + 1), _shortened(word, tile, font), "black", font, anchor="ma")
    draw.text((_MARGIN, rows * step_y + _MARGIN), title, "black", font)
    return sheet


def _font() -> ImageFont.FreeTypeFont:
    """A class may have any name; Pillow's own font has no more than ASCII."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 10)


def _shortened(word: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(word) <= width:
        return word
    while word and font.getlength(f"{word}...") > width:
        word = word[:-1]
    return f"{word.rstrip()}..."

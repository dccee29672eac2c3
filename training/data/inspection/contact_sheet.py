"""A contact sheet of the first images of a data set."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training import storage
from training.config.errors import UserError
from training.data.format.manifest import Images, Manifest
from training.data.images.resize import to_image
from training.data.inspection.font import drawable, name_font
from training.data.loading.row_groups import RowReader

_TILE = 64
_CAPTION = 16
_TITLE = 20
_MARGIN = 4


def preview(dataset_uri: str, sheet_uri: str, *, num_images: int = 64) -> Manifest:
    """Write a contact sheet: the first images of the data set, enlarged, with their labels beneath.

    Raises:
        UserError: There is no data set, its first rows are damaged, or `sheet_uri` is not the name of a PNG.
    """
    if num_images < 1:
        raise UserError(f"a contact sheet needs at least 1 image, got {num_images}")
    if not sheet_uri.lower().endswith(".png"):
        raise UserError(f"{sheet_uri}: a contact sheet is written as PNG; name a file like preview.png")
    reader = RowReader(dataset_uri)
    manifest = reader.manifest
    _, pixels, labels = reader.rows(np.arange(min(num_images, manifest.num_images)))
    images: list[Images] = list(pixels.permute(0, 2, 3, 1).numpy())
    captions = (
        [drawable(manifest.class_names[label], str(label)) if label >= 0 else "" for label in labels.tolist()]
        if labels is not None
        else [""] * len(images)
    )
    with tempfile.TemporaryDirectory(prefix="iddpm-preview-") as directory:
        local = Path(directory) / "sheet.png"
        size, channels = manifest.image_size, manifest.image_channels
        title = f"{manifest.name}, {manifest.split}: {len(images):,} of {manifest.num_images:,} images, {size}x{size}x{channels}"
        contact_sheet(images, captions, title).save(local, "PNG")
        storage.upload(local, sheet_uri)
    return manifest


def contact_sheet(images: Sequence[Images], captions: Sequence[str], title: str = "") -> Image.Image:
    """Draw a grid of images `[height, width, channels]`, small ones enlarged by a whole factor, with shortened captions beneath."""
    factor = max(1, _TILE // images[0].shape[0])
    tile = images[0].shape[0] * factor
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    step_x, step_y = tile + _MARGIN, tile + (_CAPTION if any(captions) else 0) + _MARGIN
    font = name_font(10)
    width = max(columns * step_x + _MARGIN, math.ceil(font.getlength(title)) + 2 * _MARGIN)
    sheet = Image.new("RGB", (width, rows * step_y + _MARGIN + (_TITLE if title else 0)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _MARGIN + index % columns * step_x, _MARGIN + index // columns * step_y
        sheet.paste(to_image(pixels).resize((tile, tile), Image.Resampling.NEAREST), (x, y))
        draw.text((x + tile / 2, y + tile + 1), _shorten(drawable(caption), tile, font), "black", font, anchor="ma")
    draw.text((_MARGIN, rows * step_y + _MARGIN), title, "black", font)
    return sheet


def _shorten(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."

"""Grids of samples as PNG: tiles of whole pixels, enlarged without smoothing, because small images are made of pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from training.shapes import UInt8

Pixels = npt.NDArray[np.uint8]

MAX_COLUMNS = 10
_BACKGROUND = 255
_INK = 70
_MIN_TILE_PIXELS = 48


def sample_grid(
    images: UInt8[Tensor, "images channels height width"],
    *,
    num_columns: int = 10,
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
    tile_pixels: int = _MIN_TILE_PIXELS,
) -> Pixels:
    """The images row by row on white, with a thin gap between them.

    Args:
        images: The images, the first row's first.
        num_columns: Images a row.
        column_names: Words above the columns, such as the classes; none leaves no room for them.
        row_names: Words left of the rows, such as numbers of sampling steps.
        tile_pixels: Smaller images are enlarged by a whole factor to at least this size.

    Returns:
        uint8 RGB, height x width x 3.
    """
    scale = max(1, math.ceil(tile_pixels / images.shape[-1]))
    tile_height, tile_width = images.shape[-2] * scale, images.shape[-1] * scale
    gap = max(2, scale // 2)
    num_rows = math.ceil(len(images) / num_columns)
    font_size = max(12, tile_height // 3)
    font = ImageFont.load_default(size=font_size)
    top = round(font_size * 1.6) if column_names else 0
    left = round(max((font.getlength(name) for name in row_names), default=-font_size) + font_size)
    height = top + num_rows * (tile_height + gap) + gap
    width = left + num_columns * (tile_width + gap) + gap
    canvas = np.full((height, width, 3), _BACKGROUND, dtype=np.uint8)
    tiles = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().cpu().numpy()
    for number, tile in enumerate(tiles.repeat(scale, axis=1).repeat(scale, axis=2)):
        row, column = divmod(number, num_columns)
        y, x = top + gap + row * (tile_height + gap), left + gap + column * (tile_width + gap)
        canvas[y : y + tile_height, x : x + tile_width] = tile
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(column_names[:num_columns]):
        centre = left + gap + column * (tile_width + gap) + tile_width / 2
        draw.text((centre, top / 2), name, fill=(_INK,) * 3, font=font, anchor="mm")
    for row, name in enumerate(row_names[:num_rows]):
        middle = top + gap + row * (tile_height + gap) + tile_height / 2
        draw.text((left - font_size / 2, middle), name, fill=(_INK,) * 3, font=font, anchor="rm")
    return np.asarray(picture)


def class_grid(
    images: UInt8[Tensor, "images channels height width"],
    labels: Tensor | None,
    class_names: Sequence[str] = (),
    *,
    num_rows: int = 10,
    max_columns: int = MAX_COLUMNS,
) -> Pixels:
    """A grid with a column for each class, named above it; the first images where that would leave most of them out.

    Args:
        images: Samples, in the order in which they are to be shown.
        labels: Their labels, or None.
        class_names: Name of each label; the numbers where it is empty.
        num_rows: At most so many rows.
        max_columns: At most so many classes, the first ones.
    """
    first = images[: num_rows * max_columns]
    if labels is None:
        return sample_grid(first, num_columns=max_columns)
    shown = torch.unique(labels)[:max_columns]
    columns = [(labels == label).nonzero().squeeze(1)[:num_rows] for label in shown]
    depth = min(len(column) for column in columns)
    if 2 * depth * len(columns) < min(len(first), num_rows * len(columns)):
        return sample_grid(first, num_columns=max_columns)
    order = torch.stack([column[:depth] for column in columns], dim=1).flatten()
    names = [class_names[int(label)] if int(label) < len(class_names) else str(int(label)) for label in shown]
    return sample_grid(images[order], num_columns=len(columns), column_names=names)


def to_png(pixels: Pixels) -> bytes:
    """The pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def from_png(data: bytes) -> Pixels:
    """The pixels of a PNG file, RGB."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))

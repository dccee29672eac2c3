"""Grids of samples as PNG. Small images are enlarged by whole factors and without smoothing."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from training.data.inspection.font import drawable, name_font
from training.shapes import UInt8

Pixels = npt.NDArray[np.uint8]

MAX_COLUMNS = 10
_NUM_ROWS = 10
_BACKGROUND = 255
_INK = 70
_MIN_TILE_PIXELS = 48
_MIN_FONT_SIZE = 8


def sample_grid(
    images: UInt8[Tensor, "images channels height width"],
    *,
    num_columns: int = 10,
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
) -> Pixels:
    """Draw the images row by row on white as uint8 [height, width, 3], with thin gaps; enlarge small ones to at least 48 pixels.

    `column_names` stand above the columns, such as the classes; `row_names` left of the rows, such as numbers of sampling steps.
    """
    scale = max(1, math.ceil(_MIN_TILE_PIXELS / images.shape[-1]))
    tile_height, tile_width = images.shape[-2] * scale, images.shape[-1] * scale
    gap = max(2, scale // 2)
    num_rows = math.ceil(len(images) / num_columns)
    font_size = max(12, tile_height // 3)
    font = name_font(font_size)
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
    heading = _fitting_font(column_names, font_size, tile_width)
    for column, name in enumerate(column_names[:num_columns]):
        centre = left + gap + column * (tile_width + gap) + tile_width / 2
        while name and heading.getlength(name) > tile_width:
            name = name[:-1]
        draw.text((centre, top / 2), name, fill=(_INK,) * 3, font=heading, anchor="mm")
    for row, name in enumerate(row_names[:num_rows]):
        middle = top + gap + row * (tile_height + gap) + tile_height / 2
        draw.text((left - font_size / 2, middle), name, fill=(_INK,) * 3, font=font, anchor="rm")
    return np.asarray(picture)


def _fitting_font(names: Sequence[str], size: int, width: int) -> ImageFont.FreeTypeFont:
    """Return the font in this size, or in the smaller one in which each name is at most `width` pixels wide."""
    longest = max((name_font(size).getlength(name) for name in names), default=0.0)
    return name_font(size if longest <= width else max(_MIN_FONT_SIZE, math.floor(size * width / longest)))


class ClassGrid:
    """A grid with a column for each class. It takes a stream of samples, and stores only those that it shows.

    If columns by class would leave out most of the images, the grid shows the first images in their order.
    """

    def __init__(self, class_names: Sequence[str] = ()) -> None:
        """Start an empty grid. Without `class_names` a column shows its label's number. The ten lowest labels are shown."""
        self._class_names = class_names
        self._first: list[Tensor] = []
        self._columns: dict[int, list[Tensor]] = {}

    def update(self, images: UInt8[Tensor, "batch channels height width"], labels: Tensor | None) -> None:
        """Add a batch of samples and their labels."""
        room = _NUM_ROWS * MAX_COLUMNS - len(self._first)
        self._first += images[: max(room, 0)].clone()
        for label in [] if labels is None else torch.unique(labels).tolist():
            column = self._columns.setdefault(label, [])
            column += images[(labels == label).nonzero().squeeze(1)[: _NUM_ROWS - len(column)]]
        for label in sorted(self._columns)[MAX_COLUMNS:]:
            del self._columns[label]

    def pixels(self) -> Pixels:
        """Draw the grid; uint8 RGB, height x width x 3."""
        columns = [self._columns[label] for label in sorted(self._columns)]
        depth = min((len(column) for column in columns), default=0)
        if 2 * depth * len(columns) < min(len(self._first), _NUM_ROWS * max(len(columns), 1)):
            return sample_grid(torch.stack(self._first), num_columns=MAX_COLUMNS)
        given = dict(enumerate(self._class_names))
        names = [drawable(given.get(label, str(label)), str(label)) for label in sorted(self._columns)]
        images = [column[row] for row in range(depth) for column in columns]
        return sample_grid(torch.stack(images), num_columns=len(columns), column_names=names)


def to_png(pixels: Pixels) -> bytes:
    """Return the pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def from_png(data: bytes) -> Pixels:
    """Return the pixels of a PNG file, RGB."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))

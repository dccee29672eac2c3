"""The font of names in pictures."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import ImageFont


@functools.cache
def name_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font in which pictures write names, `size` pixels high."""
    # Pillow's own font has only ASCII, and a class may have any name.
    return ImageFont.truetype(_file(), size)


def drawable(name: str, otherwise: str = "") -> str:
    """Return a name on one line, which is all that Pillow measures; or `otherwise`, where the font lacks one of its characters."""
    line = " ".join(name.splitlines())
    return line if {ord(character) for character in line} <= _characters() else otherwise


@functools.cache
def _characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_file()).get_charmap())


def _file() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))

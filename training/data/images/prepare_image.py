"""Prepare one image at every size of a data set, decoding it once."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from training.config.experiment import Resize
from training.data.format.manifest import Images
from training.data.images.decode import decode_pixels, load, open_image, to_pixels
from training.data.images.limits import MAX_PIXELS, Background
from training.data.images.resize import check_size, resize_adm, resize_pixels, to_image


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image at several sizes.

    Attributes:
        images: uint8 `[size, size, channels]`, in the order of the sizes.
        upscaled: For each size, True where the image was enlarged.
    """

    images: tuple[Images, ...]
    upscaled: tuple[bool, ...]


def prepare_image(
    data: bytes | Images,
    sizes: Sequence[int],
    mode: Resize,
    *,
    channels: int = 3,
    allow_upscale: bool = False,
    reduced_decode: bool = False,
    max_pixels: int = MAX_PIXELS,
    background: Background = "white",
) -> PreparedImage:
    """Decode an image once and resize it to each size.

    Args:
        data: The bytes of the file, or pixels uint8 `[height, width, channels]`.
        sizes: Heights (= widths) of the results.
        mode: See `training.data.images.resize`.
        channels: 1 (grey, ITU-R 601 luma) or 3.
        allow_upscale: Enlarge an image that is smaller than a size (bicubic) instead of refusing it.
        reduced_decode: Let the JPEG decoder itself halve large RGB images while they stay at least twice the largest
            size: two to four times as fast, one to two grey levels off the exact average. Ignored by "adm".
        max_pixels: Limit of width times height; up to `LARGEST_MAX_PIXELS`.
        background: Colour behind transparent pixels. Ignored by "adm": the released loader drops transparency.

    Raises:
        ImageError: It isn't an image, is damaged, too large, or too small.
    """
    upscaled: tuple[bool, ...]
    if mode == "adm":  # resizes before it converts, and ignores the orientation
        image = load(open_image(io.BytesIO(data), max_pixels)) if isinstance(data, bytes) else to_image(data)
        upscaled = tuple(check_size(*image.size, size, mode, allow_upscale=allow_upscale) for size in sizes)
        return PreparedImage(tuple(to_pixels(resize_adm(image, size), channels) for size in sizes), upscaled)
    if isinstance(data, bytes):
        reduced_size = max(sizes) if reduced_decode else 0
        pixels = decode_pixels(data, channels, reduced_size=reduced_size, max_pixels=max_pixels, background=background)
    else:
        pixels = data if data.shape[2] == channels else to_pixels(to_image(data), channels)
    height, width = pixels.shape[:2]
    upscaled = tuple(check_size(width, height, size, mode, allow_upscale=allow_upscale) for size in sizes)
    return PreparedImage(tuple(resize_pixels(pixels, size, mode) for size in sizes), upscaled)

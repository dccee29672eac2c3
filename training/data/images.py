"""One image file to one square uint8 image: decoding whatever people keep, then centre crop and downsample.

Modes, recorded in the data set's manifest because statistics of one say little about another:

- "area": centre crop to the square, then the exact average over each output pixel's area (supplement section 1, after
  Brock et al.): OpenCV's INTER_AREA, within half a grey level of the real-valued average.
- "adm": what the released code does: box halvings of the whole image while its short side is at least twice the
  target, bicubic to the target, integer centre crop. Brightens by about half a level a halving.
- "box-squash": box filter over the whole image, its aspect ratio lost (the labelled ImageNet-64 of Chrabaszcz et al.).
- "lanczos": centre crop, then Lanczos.
- "none": the image already has the size.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps

from training.config import Resize
from training.data.shards import Images

MAX_PIXELS = 89_478_485
"""Pillow's own limit for an image that somebody may have made to exhaust memory (a third of 256 MiB)."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded: the raster formats. Pillow would also start programs for some others."""

_BACKGROUND = (255, 255, 255)


class ImageError(ValueError):
    """An image that can't be used, and why; the caller says which image."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image at every size that was asked for.

    Attributes:
        images: uint8 `[size, size, channels]`, in the order of the sizes.
        upscaled: For each, whether it had to be enlarged.
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
) -> Prepared:
    """Decodes once and resizes to each size.

    Args:
        data: The file's bytes, or pixels uint8 `[height, width, channels]`.
        sizes: Heights (= widths) wanted.
        mode: How; see the module's description.
        channels: 1 (grey, ITU-R 601 luma) or 3.
        allow_upscale: Enlarge an image that is smaller than a size (bicubic) instead of refusing it.
        reduced_decode: Let the JPEG decoder itself halve the image while it stays at least as large as the largest
            size: two to three times as fast, about two grey levels off the exact average.

    Raises:
        ImageError: It isn't an image, is damaged, too large, or too small.
    """
    if isinstance(data, bytes):
        image = _open(data)
        if reduced_decode and mode != "adm" and image.format == "JPEG":
            image.draft(image.mode, (max(sizes), max(sizes)))
        image = _loaded(image)
        # The released code looks at no orientation, and converts to RGB only after the resize.
        square = None if mode == "adm" else _pixels(ImageOps.exif_transpose(image), channels)
    else:
        image, square = _from_array(data, channels, mode)
    results = [_resize(image, square, size, mode, channels, allow_upscale) for size in sizes]
    return Prepared(tuple(result for result, _ in results), tuple(upscaled for _, upscaled in results))


def _resize(image: Image.Image, pixels: Images | None, size: int, mode: Resize, channels: int, allow_upscale: bool) -> tuple[Images, bool]:
    width, height = image.size if pixels is None else (pixels.shape[1], pixels.shape[0])
    if mode == "none" and (width, height) != (size, size):
        raise ImageError(f"is {width}x{height}, but resize 'none' needs exactly {size}x{size}; choose 'area'")
    small = min(width, height) < size
    if small and not allow_upscale:
        raise ImageError(f"is {width}x{height}, smaller than {size}; use a smaller image size, or allow upscaling")
    if pixels is None:
        return _convert(_adm(image, size), channels), small
    if mode == "none":
        return pixels, False
    if mode == "box-squash":
        return _pillow(pixels, size, Image.Resampling.BICUBIC if small else Image.Resampling.BOX), small
    square = centre_square(pixels)
    if square.shape[0] == size:
        return np.ascontiguousarray(square), False
    if small:
        return _pillow(square, size, Image.Resampling.BICUBIC), True
    if mode == "lanczos":
        return _pillow(square, size, Image.Resampling.LANCZOS), False
    return area(square, size), False


def centre_square(pixels: Images) -> Images:
    """The largest square in the middle of `[height, width, channels]`; an odd remainder goes to the far side."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def area(square: Images, size: int) -> Images:
    """Each output pixel is the average of the input over its area, with fractional cover at the edges, rounded.

    Args:
        square: uint8 `[side, side, channels]`, side at least `size`.
        size: Height and width wanted.
    """
    resized = cv2.resize(np.ascontiguousarray(square), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8).reshape(size, size, square.shape[2])


def _adm(image: Image.Image, size: int) -> Image.Image:
    """Reference conventions 1.11: box halvings, bicubic, crop, in whatever mode the file has."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _pillow(pixels: Images, size: int, resampling: Image.Resampling) -> Images:
    channels = pixels.shape[2]
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.asarray(image.resize((size, size), resampling)).reshape(size, size, channels)


def _from_array(pixels: Images, channels: int, mode: Resize) -> tuple[Image.Image, Images | None]:
    if pixels.shape[2] == channels and mode != "adm":
        return Image.new("L", (pixels.shape[1], pixels.shape[0])), pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return image, None if mode == "adm" else _convert(image, channels)


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the same limit is an error below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"is too large: over {MAX_PIXELS:,} pixels, which may be a decompression bomb") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"is not an image of a known format (it begins with {data[:8]!r}); known are {', '.join(FORMATS)}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"is too large: {image.width}x{image.height} is over {MAX_PIXELS:,} pixels, which may be a decompression bomb")
    return image


def _loaded(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise ImageError(f"is damaged or truncated ({error})") from error
    return image


def _pixels(image: Image.Image, channels: int) -> Images:
    """uint8 `[height, width, channels]`: 16 bits keep their high byte, alpha is laid over white."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        front = image.convert("RGBA")
        image = Image.new("RGBA", front.size, (*_BACKGROUND, 255))
        image.alpha_composite(front)
    return _convert(image, channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if image.mode == "F" or levels.min(initial=0) < 0 or levels.max(initial=0) > 65535:
        raise ImageError(f"has {image.mode!r} pixels (floating point or 32 bits), whose white is not known; convert it to 8 or 16 bits")
    return Image.fromarray((levels.astype(np.uint16) >> 8).astype(np.uint8))


def _convert(image: Image.Image, channels: int) -> Images:
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    mode = "L" if channels == 1 else "RGB"
    converted = image if image.mode == mode else image.convert(mode)
    return np.asarray(converted).reshape(converted.height, converted.width, channels)

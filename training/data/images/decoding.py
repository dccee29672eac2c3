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

import contextlib
import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from training.config.experiment import Resize
from training.data.format.shards import Images

MAX_PIXELS = 89_478_485
"""Unless somebody says otherwise, a larger image is taken for one that was made to exhaust memory: Pillow's own limit."""

LARGEST_MAX_PIXELS = 2**30
"""OpenCV decodes no more."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded: the raster formats. Pillow would also start programs for some others."""

_BACKGROUND = (255, 255, 255)
_ORIENTATION = 0x0112
# OpenCV's names with COLOR mean BGR; these are the bits that say how much smaller, beside the one that says RGB.
_HALVED = (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_GRAYSCALE_8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_END = b"\xff\xd9"  # the compressed pixels can't contain it


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
    max_pixels: int = MAX_PIXELS,
) -> Prepared:
    """Decodes once and resizes to each size.

    Args:
        data: The file's bytes, or pixels uint8 `[height, width, channels]`.
        sizes: Heights (= widths) wanted.
        mode: How; see the module's description.
        channels: 1 (grey, ITU-R 601 luma) or 3.
        allow_upscale: Enlarge an image that is smaller than a size (bicubic) instead of refusing it.
        reduced_decode: Let the JPEG decoder itself halve large RGB images while they stay at least twice the largest
            size: about twice to four times as fast, one to two grey levels off the exact average. Not for "adm".
        max_pixels: Width times height of the largest image that is decoded; up to `LARGEST_MAX_PIXELS`.

    Raises:
        ImageError: It isn't an image, is damaged, too large, or too small.
    """
    if isinstance(data, bytes):
        with _own_limit():
            image, square = _decode(data, mode, channels, max(sizes) if reduced_decode else 0, max_pixels)
    else:
        image, square = _from_array(data, channels, mode)
    results = [_resize(image, square, size, mode, channels, allow_upscale) for size in sizes]
    return Prepared(tuple(result for result, _ in results), tuple(upscaled for _, upscaled in results))


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Pillow's limit is the process's, so it is put aside only while ours is looked at."""
    theirs = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


def _resize(image: Image.Image, pixels: Images | None, size: int, mode: Resize, channels: int, allow_upscale: bool) -> tuple[Images, bool]:
    width, height = image.size if pixels is None else (pixels.shape[1], pixels.shape[0])
    if mode == "none" and (width, height) != (size, size):
        raise ImageError(f"is {width}x{height}, but resize 'none' needs exactly {size}x{size}; choose 'area'")
    small = min(width, height) < size
    if small and not allow_upscale:
        raise ImageError(f"is {width}x{height}, smaller than {size}; use a smaller image size, or --allow-upscale")
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


def _decode(data: bytes, mode: Resize, channels: int, reduced_size: int, max_pixels: int) -> tuple[Image.Image, Images | None]:
    """The file as Pillow reads it, and its pixels; no pixels for "adm", which resizes before it converts."""
    stream = io.BytesIO(data)
    image = _open(data, stream, max_pixels)
    if mode == "adm":  # the released code looks at no orientation
        return _loaded(image), None
    plain = image.format == "JPEG" and image.mode == "RGB" and channels == 3 and _orientation(image) == 1
    if plain and data.find(_JPEG_END, stream.tell()) > 0:
        # The same library as Pillow's and the same pixels, without Pillow's way through four bytes a pixel. OpenCV
        # before 5 also returns what it has of a truncated file, hence the look for the end.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        # At least twice the size is kept, so that the exact average has the last word: half the error of once the size.
        halvings = (min(image.size) // (2 * reduced_size)).bit_length() - 1 if reduced_size else 0
        if halvings > 0:
            flags |= _HALVED[min(halvings, 3) - 1]
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
        if pixels is not None:
            return image, np.asarray(pixels, dtype=np.uint8)
    image = _loaded(image)
    turn = _UPRIGHT.get(_orientation(image))
    return image, _pixels(image if turn is None else image.transpose(turn), channels)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (ValueError, TypeError, SyntaxError, OSError, struct.error):
        return 1  # a camera's broken notes are no reason to lose the picture


def _open(data: bytes, stream: io.BytesIO, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("is empty (0 bytes)")
    try:
        image = Image.open(stream, formats=FORMATS)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"is not an image of a known format (it begins with {data[:8]!r}); known are {', '.join(FORMATS)}") from error
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"is too large: {image.width}x{image.height} is over {max_pixels:,} pixels, which may be a decompression bomb; "
            "if it is meant, raise --max-pixels"
        )
    return image


def _loaded(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise ImageError(f"is damaged or truncated ({error})") from error
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ImageError(f"has {image.mode!r} pixels (floating point or 32 bits), whose white is not known; convert it to 8 or 16 bits")
    # Pillow resizes the big-endian ones byte by byte, without a word.
    return image.convert("I") if image.mode == "I;16B" else image


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
    # A resize that overshoots leaves the range.
    return Image.fromarray((np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8))


def _convert(image: Image.Image, channels: int) -> Images:
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    mode = "L" if channels == 1 else "RGB"
    converted = image if image.mode == mode else image.convert(mode)
    return np.asarray(converted).reshape(converted.height, converted.width, channels)

"""Decode an image file to 8-bit pixels: formats, orientation, bit depth, transparency, limits."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from training.data.format.manifest import Images
from training.data.images.limits import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The raster formats. For some other formats, Pillow would start external programs."""


_BACKGROUND_LEVELS = {"white": 255, "grey": 128, "black": 0}
_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION_TAG = 0x0112
# In OpenCV, COLOR means BGR; these flags only select the reduction and are combined with the RGB flag.
_REDUCED = (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_GRAYSCALE_8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_TAG = 0x0102
_PHOTOMETRIC_TAG = 0x0106
_WHITE_IS_ZERO = 0
_PREFIX_BYTES = 16  # Pillow tells the formats apart by so many
_PNG_DEPTH = 24  # place of the number of bits in the header that every PNG begins with
_JPEG_END = b"\xff\xd9"  # never part of the compressed pixels

_DAMAGE = (OSError, SyntaxError, ValueError, OverflowError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error)
"""The errors of Pillow's readers about a file that is not as its format says."""


class ImageError(ValueError):
    """An image that can't be used. The message is the reason; the caller adds the image's name, or skips the image."""


def open_image(stream: io.BytesIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of an image file.

    Raises:
        ImageError: The format is none of `FORMATS`, or there are more than `max_pixels` pixels.
    """
    beginning = bytes(stream.getbuffer()[:8])
    if not beginning:
        raise ImageError("is empty (0 bytes)")
    with _without_pillows_limit():
        try:
            image = Image.open(stream, formats=FORMATS)
        except _DAMAGE as error:
            if _has_known_format(stream):
                reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
                raise ImageError(
                    f"has a header that can't be read{reason}: it is damaged, or of a kind that is not known; save it again as an 8-bit PNG"
                ) from error
            raise ImageError(f"is not an image of a known format (it begins with {beginning!r}); known are {', '.join(FORMATS)}") from error
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"is too large: {image.width}x{image.height} is over {max_pixels:,} pixels, which may be a decompression bomb; "
            "if it is intended, raise max_pixels"
        )
    if image.format == "PNG" and "transparency" in image.info:
        image.info["transparency"] = _in_eight_bits(image.info["transparency"], image.mode, int(stream.getbuffer()[_PNG_DEPTH]))
    return image


def load(image: Image.Image) -> Image.Image:
    """Decode an opened image in the mode of the file.

    Raises:
        ImageError: It is damaged, or has floating point or 32-bit pixels.
    """
    try:
        with _without_pillows_limit():
            image.load()
    except (*_DAMAGE, MemoryError) as error:
        raise ImageError(f"is damaged or truncated ({error})") from error
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ImageError(f"has {image.mode!r} pixels (floating point or 32 bits), whose white is not known; convert it to 8 or 16 bits")
    if image.mode == "I;16" and image.format == "TIFF":
        return _tiff_in_sixteen_bits(image)
    if image.mode == "La":
        return image.convert("LA")  # Pillow converts it to no other mode
    # Pillow resizes big-endian pixels byte by byte, without a warning.
    return image.convert("I") if image.mode == "I;16B" else image


def _tiff_in_sixteen_bits(image: Image.Image) -> Image.Image:
    """Return a grey TIFF with black at 0 and white at 65535; Pillow leaves 12 bits as they are, and zero white, above 8 bits."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = tags.get(_BITS_TAG, (16,))[0]
    is_negative = tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
    if bits == 16 and not is_negative:
        return image
    pixels = np.asarray(image)
    if bits < 16:
        pixels = pixels << (16 - bits) | pixels >> (2 * bits - 16)  # repeats the highest bits below the lowest, so that white is 65535
    return Image.fromarray(~pixels if is_negative else pixels)


def decode_pixels(data: bytes, channels: int, *, reduced_size: int = 0, max_pixels: int = MAX_PIXELS, background: str = "white") -> Images:
    """Decode an image file to uint8 `[height, width, channels]`: upright, the high byte of 16-bit pixels, composed over the background.

    Args:
        data: The bytes of the file; of an animation, the first frame is decoded.
        channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
        reduced_size: Let the JPEG decoder halve a large RGB image while its short side stays at least twice this; 0 never does.

    Raises:
        ImageError: It isn't an image, is damaged, or is too large.
    """
    stream = io.BytesIO(data)
    image = open_image(stream, max_pixels)
    plain = image.format == "JPEG" and image.mode == "RGB" and channels == 3 and _orientation(image) == 1
    # OpenCV 4 returns the readable part of a truncated file without an error, so the end marker is required after the header.
    if plain and data.find(_JPEG_END, stream.tell()) > 0:
        # The decoding library and the pixels are the same as Pillow's, but OpenCV does not expand each pixel to four bytes on the way.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        # The exact average starts from at least twice the size, which halves the error compared to once the size.
        halvings = (min(image.size) // (2 * reduced_size)).bit_length() - 1 if reduced_size else 0
        if halvings > 0:
            flags |= _REDUCED[min(halvings, 3) - 1]
        # OpenCV raises where an image is over its own limit of pixels, which an environment variable sets; then Pillow decodes it.
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
            if pixels is not None:
                return np.asarray(pixels, dtype=np.uint8)
    image = load(image)
    turn = _UPRIGHT.get(_orientation(image))
    return to_pixels(_compose(image if turn is None else image.transpose(turn), background), channels)


def to_pixels(image: Image.Image, channels: int) -> Images:
    """Convert a Pillow image to uint8 `[height, width, channels]`; transparency is dropped."""
    image = _eight_bits(image)
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow converts it to no other mode
    converted = _convert(image, mode)
    return np.asarray(converted).reshape(converted.height, converted.width, channels)


def is_transparent(image: Image.Image) -> bool:
    """Return True where the file has an alpha channel or a transparent colour."""
    return image.mode in _TRANSPARENT_MODES or "transparency" in image.info


def _compose(image: Image.Image, background: str) -> Image.Image:
    image = _eight_bits(image)
    if not is_transparent(image):
        return image
    level = _BACKGROUND_LEVELS[background]
    composed = Image.new("RGBA", image.size, (level, level, level, 255))
    composed.alpha_composite(_convert(image, "RGBA"))
    return composed


def _convert(image: Image.Image, mode: str) -> Image.Image:
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise ImageError(f"has {image.mode!r} pixels, which can't be converted to {mode!r} ({error}); save it as RGB") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    # A resize that overshoots leaves the range of 16 bits.
    grey = Image.fromarray((pixels.clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(pixels == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _in_eight_bits(transparency: Any, mode: str, depth: int) -> Any:
    """Return a PNG's transparent colour as the pixels have it: Pillow scales those to 8 bits, and leaves the colour in the file's depth."""
    if mode == "L" and depth < 8:
        return transparency * 255 // (2**depth - 1)
    if mode == "RGB" and depth == 16:
        return tuple(channel >> 8 for channel in transparency)
    return transparency


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return 1  # damaged metadata is no reason to lose the image


def _has_known_format(stream: io.BytesIO) -> bool:
    """Return True where a file begins as one of `FORMATS` does."""
    prefix = bytes(stream.getbuffer()[:_PREFIX_BYTES])
    tests = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    return any(test is not None and test(prefix) is True for test in tests)


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Suspend Pillow's limit of pixels, a global of the process, while our own limit applies."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit

"""Crop and resize an image to a square, by one of five methods.

The manifest records the method, because images made by different methods have different statistics:

- "area": centre crop to the square, then the exact average over the area of each output pixel (supplement section 1, after
  Brock et al.): OpenCV's INTER_AREA, within half a grey level of the real-valued average.
- "adm": the method of the released code: box halvings of the whole image while its short side is at least twice the target,
  bicubic to the target, integer centre crop. Each halving brightens by about half a grey level.
- "box-squash": box filter over the whole image; its aspect ratio is lost (the labelled ImageNet-64 of Chrabaszcz et al.).
- "lanczos": centre crop, then Lanczos.
- "none": the image already has the size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from training.config.experiment import Resize
from training.data.format.manifest import Images
from training.data.images.decode import ImageError, decode_pixels, load, open_image, to_pixels
from training.data.images.limits import MAX_PIXELS, Background


def resize_pixels(pixels: Images, size: int, mode: Resize) -> Images:
    """Resize uint8 `[height, width, channels]` to `[size, size, channels]` by any mode but "adm"; a smaller image is enlarged (bicubic)."""
    if mode == "none":
        return pixels
    enlarged = min(pixels.shape[:2]) < size
    if mode == "box-squash":
        return _resample(pixels, size, Image.Resampling.BICUBIC if enlarged else Image.Resampling.BOX)
    square = centre_square(pixels)
    if square.shape[0] == size:
        return np.ascontiguousarray(square)
    if enlarged or mode == "lanczos":
        return _resample(square, size, Image.Resampling.BICUBIC if enlarged else Image.Resampling.LANCZOS)
    return resize_area(square, size)


def check_size(width: int, height: int, size: int, mode: Resize, *, allow_upscale: bool) -> bool:
    """Return True where an image must be enlarged to reach `size`.

    Raises:
        ImageError: It is too small and `allow_upscale` is False, or the mode is "none" and it has another size.
    """
    if mode == "none" and (width, height) != (size, size):
        raise ImageError(f"is {width}x{height}, but resize 'none' needs exactly {size}x{size}; take the image's own size, or resize 'area'")
    enlarged = min(width, height) < size
    if enlarged and not allow_upscale:
        raise ImageError(f"is {width}x{height}, smaller than {size}; use a smaller image size, or allow_upscale")
    return enlarged


def centre_square(pixels: Images) -> Images:
    """Return the largest centred square of `[height, width, channels]`; an odd remainder is cut from the far side."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def resize_area(square: Images, size: int) -> Images:
    """Average uint8 `[side, side, channels]`, side at least `size`, over the area of each output pixel, with fractional cover, rounded."""
    resized = cv2.resize(np.ascontiguousarray(square), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8).reshape(size, size, square.shape[2])


def resize_adm(image: Image.Image, size: int) -> Image.Image:
    """Resize as the released loader does: box halvings, bicubic, centre crop, in the mode of the file."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_image(pixels: Images) -> Image.Image:
    """Convert uint8 `[height, width, channels]` to a Pillow image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _resample(pixels: Images, size: int, resampling: Image.Resampling) -> Images:
    return np.asarray(to_image(pixels).resize((size, size), resampling)).reshape(size, size, pixels.shape[2])


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
        channels: 1 (grey, ITU-R 601 luma) or 3.
        allow_upscale: Enlarge an image that is smaller than a size (bicubic) instead of refusing it.
        reduced_decode: Let the JPEG decoder itself halve large RGB images while they stay at least twice the largest
            size: two to four times as fast, one to two grey levels off the exact average. Ignored by "adm".
        background: Colour behind transparent pixels. Ignored by "adm": the released loader drops transparency.

    Raises:
        ImageError: It isn't an image, is damaged, too large, or too small.
    """
    upscaled: tuple[bool, ...]
    if mode == "adm":  # resizes before it converts, and ignores the orientation
        image = load(open_image(io.BytesIO(data), max_pixels)) if isinstance(data, bytes) else to_image(data)
        upscaled = tuple(check_size(*image.size, size, mode, allow_upscale=allow_upscale) for size in sizes)
        # It enlarges the whole image before the crop, so that a narrow one grows beyond any memory.
        if any(upscaled) and image.width * image.height * (max(sizes) / min(image.size)) ** 2 > max_pixels:
            raise ImageError(
                f"is {image.width}x{image.height}, which 'adm' would enlarge to over {max_pixels:,} pixels; crop it, or take resize 'area'"
            )
        return PreparedImage(tuple(to_pixels(resize_adm(image, size), channels) for size in sizes), upscaled)
    if isinstance(data, bytes):
        reduced_size = max(sizes) if reduced_decode else 0
        pixels = decode_pixels(data, channels, reduced_size=reduced_size, max_pixels=max_pixels, background=background)
    else:
        pixels = data if data.shape[2] == channels else to_pixels(to_image(data), channels)
    height, width = pixels.shape[:2]
    upscaled = tuple(check_size(width, height, size, mode, allow_upscale=allow_upscale) for size in sizes)
    return PreparedImage(tuple(resize_pixels(pixels, size, mode) for size in sizes), upscaled)

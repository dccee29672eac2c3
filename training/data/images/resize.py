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

import cv2
import numpy as np
from PIL import Image

from training.config.experiment import Resize
from training.data.format.manifest import Images
from training.data.images.decode import ImageError


def resize_pixels(pixels: Images, size: int, mode: Resize) -> Images:
    """Resize to `[size, size, channels]` by any mode but "adm"; an image that is smaller is enlarged (bicubic).

    Args:
        pixels: uint8 `[height, width, channels]`.
        size: Height and width of the result.
        mode: See the module's docstring.
    """
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
        raise ImageError(f"is {width}x{height}, but resize 'none' needs exactly {size}x{size}; choose 'area'")
    enlarged = min(width, height) < size
    if enlarged and not allow_upscale:
        raise ImageError(f"is {width}x{height}, smaller than {size}; use a smaller image size, or --allow-upscale")
    return enlarged


def centre_square(pixels: Images) -> Images:
    """Return the largest centred square of `[height, width, channels]`; an odd remainder is cut from the far side."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def resize_area(square: Images, size: int) -> Images:
    """Average the input over the area of each output pixel, with fractional cover at the edges, rounded.

    Args:
        square: uint8 `[side, side, channels]`, side at least `size`.
        size: Height and width of the result.
    """
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

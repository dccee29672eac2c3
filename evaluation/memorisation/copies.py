"""Copies of images, exact and changed a little, with which the recall of the search for copies is measured."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training.shapes import UInt8

_JPEG_QUALITY = 75
_BRIGHTER = 1.2


def _shifted(image: Tensor) -> Tensor:
    return functional.pad(image[..., :-1, :-1].float(), (1, 0, 1, 0), mode="replicate").to(torch.uint8)


def _through_jpeg(image: Tensor) -> Tensor:
    channels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(channels.squeeze(-1) if channels.shape[-1] == 1 else channels).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    with Image.open(buffer) as picture:
        return torch.from_numpy(np.array(picture)).view(*channels.shape).permute(2, 0, 1)


def _brighter(image: Tensor) -> Tensor:
    return (image.float() * _BRIGHTER).clamp(max=255).to(torch.uint8)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda image: image,
    "mirrored": lambda image: image.flip(-1),
    "shifted by a pixel": _shifted,
    f"JPEG of quality {_JPEG_QUALITY}": _through_jpeg,
    f"{_BRIGHTER} times brighter": _brighter,
}
"""Changes of one uint8 image [channels, height, width], by name."""


def make_copies(images: UInt8[Tensor, "batch channels height width"]) -> UInt8[Tensor, "batch channels height width"]:
    """Return a copy of each image; the kinds take turns."""
    changes = list(KINDS.values())
    return torch.stack([changes[number % len(changes)](image) for number, image in enumerate(images)])

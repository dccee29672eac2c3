"""The resize and normalisation that published networks were given."""

from __future__ import annotations

import torch
from torch import Tensor

from training.shapes import Float32, UInt8

Channels = tuple[float, float, float]
IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[Channels, Channels] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of the colours, on a scale from 0 to 1."""


def bicubic(
    images: UInt8[Tensor, "batch 3 height width"], size: int, mean: Channels, deviation: Channels
) -> Float32[Tensor, "batch 3 size size"]:
    """Return (x / 255 - mean) / deviation of images resized as Pillow does it: bicubic, antialiased, rounded to 8 bits."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    resized = resize(images, [size, size], InterpolationMode.BICUBIC, antialias=True)
    shift, scale = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, deviation))
    normalised: Tensor = (resized.float() / 255 - shift) / scale
    return normalised

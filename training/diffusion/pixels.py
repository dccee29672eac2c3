"""Stored pixels, in batches, and the model's range: uint8 levels 0..255 against float32 in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.shapes import Float32, Int64, UInt8


@dataclass(frozen=True, slots=True)
class Batch:
    """A worker's part of one global batch.

    Attributes:
        images: uint8 NCHW.
        labels: int64, None for an unlabelled data set.
        indices: Global positions, which key every random draw for an image; unique within a run.
    """

    images: UInt8[Tensor, "batch channels height width"]
    labels: Int64[Tensor, " batch"] | None
    indices: Int64[Tensor, " batch"]

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory, from which a GPU copies without waiting."""
        labels = None if self.labels is None else self.labels.pin_memory()
        return Batch(self.images.pin_memory(), labels, self.indices.pin_memory())


def to_model_range(images: UInt8[Tensor, "*batch channels height width"]) -> Float32[Tensor, "*batch channels height width"]:
    """Return k / 127.5 - 1 of every level k, on the images' device."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def quantize(x: Float32[Tensor, "batch channels height width"]) -> UInt8[Tensor, "batch channels height width"]:
    """Return the 8-bit levels of images in [-1, 1]; values outside are clamped.

    Levels are truncated, not rounded, as in the released code before it computes an FID: 63 of the 256 exact levels come
    back one lower.
    """
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)

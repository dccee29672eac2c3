"""The small images that an upsampler is given, where no first stage made them: real ones, downsampled as in training.

A distance over real small images says what the second stage adds of its own; supplement section 3's two-stage number
takes the first stage's samples instead (`SamplePlan.low_res_uri`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.data.loading.loader import Loader
from training.diffusion.pixels import to_model_range
from training.models.upsampler import make_low_res
from training.shapes import Int64

LowRes = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Indices to small images (uint8, or float32 in [-1, 1]) and their labels."""


class RealLowRes:
    """Image i of a data set, again from its beginning after its end, downsampled by area."""

    def __init__(self, dataset_uri: str, low_res_size: int) -> None:
        """Stages the data set on this node.

        Raises:
            DatasetError: There is no such data set.
        """
        self._loader = Loader(dataset_uri, seed=0, global_batch_size=1)
        self._size = low_res_size

    def __call__(self, indices: Int64[Tensor, " batch"]) -> tuple[Tensor, Tensor | None]:
        """Small images in [-1, 1], and the labels of the images that they were made from."""
        rows = (indices % self._loader.num_images).tolist()
        parts = [next(iter(self._loader.iterate(1, row, row + 1))) for row in rows]
        images = torch.cat([image for _, image, _ in parts])
        labels = [label for _, _, label in parts if label is not None]
        return make_low_res(to_model_range(images), self._size), torch.cat(labels) if labels else None

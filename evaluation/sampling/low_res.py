"""The small images that an upsampler is given, where no first stage made them: real ones, downsampled as in training.

A distance over real small images says what the second stage adds of its own; supplement section 3's two-stage number
takes the first stage's samples instead (`SamplePlan.low_res_uri`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from training.data.loading.row_groups import RowReader
from training.diffusion.pixels import to_model_range
from training.models.upsampler import make_low_res
from training.shapes import Int64

LowRes = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Indices to small images (uint8, or float32 in [-1, 1]) and their labels."""


class RealLowRes:
    """Image i of a data set, again from its beginning after its end, downsampled by area."""

    def __init__(self, dataset_uri: str, low_res_size: int) -> None:
        """Read the data set's manifest; its images are read when they are needed, and not staged.

        Raises:
            UserError: There is no such data set.
        """
        self._reader = RowReader(dataset_uri)
        self._size = low_res_size

    def __call__(self, indices: Int64[Tensor, " batch"]) -> tuple[Tensor, Tensor | None]:
        """Return small images in [-1, 1], and the labels of the images that they were made from."""
        _, images, labels = self._reader.rows((indices % self._reader.manifest.num_images).numpy())
        return make_low_res(to_model_range(images), self._size), labels

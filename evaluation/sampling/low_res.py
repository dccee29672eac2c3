"""The small images that an upsampler enlarges: real images downsampled as in training, or the samples of a first stage.

A distance on real small images measures the second stage alone. The paper's two-stage number (supplement section 3) takes
the first stage's samples instead (`SamplePlan.low_res_uri`; `evaluation.sampling.sample_set`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from training.data.loading.row_groups import RowReader
from training.diffusion.pixels import to_model_range
from training.models.layers import make_low_res
from training.shapes import Int64

LowRes = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Maps indices to small images (uint8, or float32 in [-1, 1]) and their labels."""


class RealLowRes:
    """Image i of a data set, downsampled by area. After the last image the data set starts again."""

    def __init__(self, dataset_uri: str, low_res_size: int) -> None:
        """Read the manifest of one split. Its images are read when they are needed, and not staged.

        Raises:
            UserError: There is no such data set.
        """
        self._reader = RowReader(dataset_uri)
        self._size = low_res_size

    def __call__(self, indices: Int64[Tensor, " batch"]) -> tuple[Tensor, Tensor | None]:
        """Return small images in [-1, 1], and the labels of the images that they were made from."""
        _, images, labels = self._reader.rows((indices % self._reader.manifest.num_images).numpy())
        return make_low_res(to_model_range(images), self._size), labels

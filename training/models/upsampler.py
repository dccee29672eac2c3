"""The small image that a UNet takes as an upsampler (supplement section 3).

The model of p(x_256 | x_64, y) is the same network with twice the input channels: x_t and the enlarged x_64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.shapes import Float


def make_low_res(
    x_0: Float[Tensor, "batch channels height width"], low_res_size: int
) -> Float[Tensor, "batch channels low_height low_width"]:
    """Return the small image of a training image: the exact area average, not rounded to 8 bits again.

    Args:
        x_0: Images in [-1, 1].
        low_res_size: Height and width of the result; divides those of `x_0`.
    """
    return nn.functional.interpolate(x_0, size=(low_res_size, low_res_size), mode="area")


def with_low_res(
    x_t: Float[Tensor, "batch channels height width"], low_res: Float[Tensor, "batch low_channels low_height low_width"]
) -> Float[Tensor, "batch all_channels height width"]:
    """Return x_t and the small image, enlarged to its size, as one image: x_t's channels first.

    The enlargement is bilinear with pixel centres at half-integers (`align_corners=False`), as the released weights
    expect it.

    Args:
        x_t: The noisy image.
        low_res: The small image, in [-1, 1].
    """
    return torch.cat([x_t, nn.functional.interpolate(low_res, size=x_t.shape[-2:], mode="bilinear", align_corners=False)], dim=1)

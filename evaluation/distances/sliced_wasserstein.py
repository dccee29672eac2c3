"""The sliced Wasserstein distance of features; in the Inception network's features it is the MIND (Berthet et al. 2026).

    3 d / (n m) sum_i sum_j (sort(u_i . x)_j - sort(u_i . y)_j)^2

over m random directions u_i of length 1 in d dimensions: the squared 2-Wasserstein distance along a direction pairs the sorted
projections. Sets that differ by a shift s have 3 |s|^2. No covariance is estimated, so that fewer samples suffice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.distances.metric_value import NUM_BLOCKS, MetricValue, by_jackknife
from evaluation.records.intervals import PARTS, jackknife_bias, part_values
from training.shapes import Float, Float32

NUM_DIRECTIONS = 1000
_DIRECTIONS_AT_ONCE = 50


def sliced_wasserstein(
    sample: Float[Tensor, "images dim"], reference: Float[Tensor, "real dim"], directions: Float32[Tensor, "directions dim"] | None = None
) -> MetricValue:
    """Return the distance of equally many images, the first ones of the larger set, with its error and the jackknife's bias.

    A block of samples and one of real images are left out together, so the standard error is over the draw of both. For a good model
    the distance is mostly bias, so the error is `intervals.distance_error`. In a few features its draws are skewed, so the interval is
    one of its logarithm.

    Args:
        reference: Features of real images.
        directions: Vectors of length 1; None draws 1,000, always the same ones.
    """
    count, dim = min(len(sample), len(reference)), sample.shape[1]
    directions = random_directions(dim) if directions is None else directions
    block_of = torch.arange(count) * NUM_BLOCKS // count
    parts = torch.tensor([[True] * NUM_BLOCKS, *(PARTS if count > NUM_BLOCKS else [])])[:, block_of]  # [part, image]
    totals = [0.0] * len(parts)
    for some in torch.split(directions, _DIRECTIONS_AT_ONCE):
        (x, from_x), (y, from_y) = ((some @ features[:count].float().T).sort(dim=1) for features in (sample, reference))
        for number, part in enumerate(parts):
            of_x, of_y = (z[part[origin]].view(len(some), -1) for z, origin in ((x, from_x), (y, from_y)))
            totals[number] += float((of_x - of_y).double().square().mean(dim=1).sum())
    value, *values = (3 * dim / len(directions) * total for total in totals)
    of_parts = part_values(values)
    bias = jackknife_bias(value, of_parts.without_blocks)
    note = f"{len(directions):,} directions, {count:,} samples and as many real images"
    return by_jackknife("sliced_wasserstein", value, of_parts.without_blocks, note, bias, of_halves=of_parts.of_halves)


def random_directions(dim: int, number: int = NUM_DIRECTIONS, seed: int = 0) -> Float32[Tensor, "number dim"]:
    """Return random vectors of length 1, the same for the same arguments."""
    vectors = torch.randn(number, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors)

"""Density and coverage: are samples where real images are, and are real images all reached (Naeem et al. 2020).

Around each of N real images, a ball reaches to its k-th nearest other real image. Of M samples,

    density  = number of (sample, ball) pairs with the sample in the ball, / (k M)
    coverage = fraction of balls that contain a sample

Density is 1 in expectation for samples of the real distribution, and above 1 for samples that crowd together. Coverage is at
most 1, and bounds how much of the real images a model misses. One odd real image adds one ball to both, where the union of balls
behind precision and recall would count all that lies in it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evaluation.distances.frechet import jackknife_error
from evaluation.distances.metric_value import MetricValue
from training.shapes import Float, Float64

NUM_NEIGHBOURS = 5
_NUM_BLOCKS = 10


def density_coverage(
    sample: Float[Tensor, "images dim"], reference: Float[Tensor, "real dim"], num_neighbours: int = NUM_NEIGHBOURS
) -> list[MetricValue]:
    """Return density and coverage, with standard errors over the draw of the samples by a jackknife over ten blocks.

    Distances are float64, of one block of samples to all real images at a time: 80 MB for 10,000 of each.
    """
    real = reference.double()
    radii = _radii(real, num_neighbours)
    inside, nearest, sizes = [], [], []
    for block in sample.tensor_split(min(_NUM_BLOCKS, len(sample))):
        distances = torch.cdist(block.double(), real)
        inside.append(int((distances < radii).sum()))
        nearest.append(distances.amin(dim=0))
        sizes.append(len(block))
    closest = torch.stack(nearest)
    blocks = range(len(sizes)) if len(sizes) > 1 else range(0)
    density = [(sum(inside) - inside[b]) / (num_neighbours * (sum(sizes) - sizes[b])) for b in blocks]
    coverage = [_covered(torch.cat([closest[:b], closest[b + 1 :]]), radii) for b in blocks]
    perfect = expected_coverage(len(real), len(sample), num_neighbours)
    counts = f"k = {num_neighbours}, {len(sample):,} samples, {len(real):,} real images"
    return [
        MetricValue(
            "density", sum(inside) / (num_neighbours * len(sample)), _error(density), f"{counts}; samples of the real distribution have 1"
        ),
        MetricValue(
            "coverage", _covered(closest, radii), _error(coverage), f"{counts}; samples of the real distribution have {perfect:.4f}"
        ),
    ]


def expected_coverage(num_real: int, num_samples: int, num_neighbours: int = NUM_NEIGHBOURS) -> float:
    """Return the coverage that samples of the real distribution have in expectation (Naeem et al. 2020, appendix).

    A ball is empty if the k nearest of the N - 1 + M other points are all real: (N - 1) ... (N - k) / ((M + N - 1) ... (M + N - k)).
    """
    others = num_real - 1
    return 1 - math.prod((others - i) / (others + num_samples - i) for i in range(num_neighbours))


def _radii(real: Float64[Tensor, "real dim"], num_neighbours: int) -> Float64[Tensor, " real"]:
    # The nearest of all is the image itself, at distance 0.
    parts = [torch.cdist(rows, real).kthvalue(num_neighbours + 1, dim=1).values for rows in torch.split(real, 1000)]
    return torch.cat(parts)


def _covered(nearest: Float64[Tensor, "blocks real"], radii: Float64[Tensor, " real"]) -> float:
    return float((nearest.amin(dim=0) < radii).double().mean())


def _error(leave_one_out: list[float]) -> float | None:
    return jackknife_error(leave_one_out) if leave_one_out else None

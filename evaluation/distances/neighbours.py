"""Density and coverage: are samples where real images are, and are real images all reached (Naeem et al. 2020).

Around each of N real images, a ball reaches to its k-th nearest other real image. Of M samples,

    density  = number of (sample, ball) pairs with the sample in the ball, / (k M)
    coverage = fraction of balls that contain a sample

Density is 1 in expectation for samples of the real distribution, and above 1 for samples that crowd together. Coverage is at
most 1, and bounds how much of the real images a model misses. One odd real image adds one ball to both, where the union of balls
behind precision and recall (Kynkaanniemi et al. 2019) would count all that lies in it:

    precision = fraction of samples in the ball of some real image
    recall    = fraction of real images in the ball of some sample
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evaluation.distances.metric_value import NUM_BLOCKS, MetricValue, by_jackknife
from evaluation.records.intervals import balanced_halves
from training.shapes import Bool, Float, Float64

NUM_NEIGHBOURS = 5
_HALVES = balanced_halves()


def density_coverage(
    sample: Float[Tensor, "images dim"], reference: Float[Tensor, "real dim"], num_neighbours: int = NUM_NEIGHBOURS
) -> list[MetricValue]:
    """Return density and coverage, with standard errors over the draw of the samples by a jackknife over ten blocks.

    Coverage asks whether any sample is near. The jackknife's variance of such a number is too large (Efron and Stein 1981). That makes up
    for the noise of the standard error, for which Student's t would widen the interval. So the interval is a normal one.

    Distances are float64, of one block of samples to all real images at a time: 80 MB for 10,000 of each.
    """
    real = reference.double()
    radii = _radii(real, num_neighbours)
    inside, nearest, sizes = [], [], []
    for block in sample.tensor_split(min(NUM_BLOCKS, len(sample))):
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
    value = sum(inside) / (num_neighbours * len(sample))
    return [
        by_jackknife("density", value, density, f"{counts}; samples of the real distribution have 1", limits=(0.0, math.inf)),
        by_jackknife(
            "coverage",
            _covered(closest, radii),
            coverage,
            f"{counts}; samples of the real distribution have {perfect:.4f}",
            limits=(0.0, 1.0),
            is_normal=True,
        ),
    ]


def expected_coverage(num_real: int, num_samples: int, num_neighbours: int = NUM_NEIGHBOURS) -> float:
    """Return the coverage that samples of the real distribution have in expectation (Naeem et al. 2020, appendix).

    A ball is empty if the k nearest of the N - 1 + M other points are all real: (N - 1) ... (N - k) / ((M + N - 1) ... (M + N - k)).
    """
    others = num_real - 1
    return 1 - math.prod((others - i) / (others + num_samples - i) for i in range(num_neighbours))


def _radii(real: Float[Tensor, "real dim"], num_neighbours: int) -> Float[Tensor, " real"]:
    # The nearest of all is the image itself, at distance 0.
    parts = [torch.cdist(rows, real).kthvalue(num_neighbours + 1, dim=1).values for rows in torch.split(real, 1000)]
    return torch.cat(parts)


def _covered(nearest: Float64[Tensor, "blocks real"], radii: Float64[Tensor, " real"]) -> float:
    return float((nearest.amin(dim=0) < radii).double().mean())


def near_real_images(
    sample: Float[Tensor, "images dim"], reference: Float[Tensor, "real dim"], num_neighbours: int
) -> Bool[Tensor, " images"]:
    """Return which samples lie in the ball of some real image; the share of them is the precision."""
    radii = _radii(reference, num_neighbours)
    return torch.cat([(torch.cdist(rows, reference) <= radii).any(dim=1) for rows in torch.split(sample, 1000)])


def recall_of_halves(sample: Float[Tensor, "images dim"], reference: Float[Tensor, "real dim"], num_neighbours: int) -> list[float]:
    """Return the recall of 14 halves of the samples, for `intervals.half_sample_error`; an empty list for too few samples.

    A sample's ball then reaches to the k-th of the nearest samples in its own half.
    """
    blocks = sample.tensor_split(_HALVES.shape[1])
    if len(blocks[-1]) <= num_neighbours:
        return []
    # The k + 1 smallest distances from each sample to each block; the smallest of all is to the sample itself.
    nearest = torch.cat(
        [
            torch.stack([torch.cdist(rows, block).topk(num_neighbours + 1, largest=False).values for block in blocks], dim=1)
            for rows in torch.split(sample, 1000)
        ]
    )
    block_of = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor([len(block) for block in blocks]))
    radii = []
    for half in _HALVES:
        others = nearest[:, half].flatten(1)
        radii.append(others.kthvalue(num_neighbours + 1, dim=1).values.masked_fill(~half[block_of], -1.0))
    reached = torch.zeros(len(radii), dtype=torch.int64)
    for rows in torch.split(reference, 1000):
        distances = torch.cdist(rows, sample)
        reached += torch.stack([(distances <= radius).any(dim=1).sum() for radius in radii])
    return (reached.double() / len(reference)).tolist()


def share_near_others(points: Float[Tensor, "images dim"], num_neighbours: int) -> float:
    """Return the fraction of points that are among the k nearest of some other point.

    For real images it is the precision that samples of the real distribution have in expectation; for a model's samples it is the expected
    recall. Each point stands for one more draw: it lies in another point's ball exactly if it is among that point's k nearest.
    """
    found = torch.zeros(len(points), dtype=torch.bool)
    for first, rows in enumerate(torch.split(points, 1000)):
        distances = torch.cdist(rows, points)
        own = torch.arange(len(rows))
        distances[own, own + 1000 * first] = torch.inf
        found[distances.topk(num_neighbours, largest=False).indices.flatten()] = True
    return float(found.double().mean())

"""The Frechet distance of infinitely many samples, by a line in 1/N (Chong and Forsyth 2020).

The distance of N samples is too large by a term that falls as 1/N and depends on the model, so that a worse model can win. A
least squares line through distances of different N, read at 1/N = 0, has no such term.

Terms of higher order remain. With 2 to 5 images for each feature the distance still bends upwards over 1/N, so the line ends too low. An
example has 64 features of equal variance and a true distance of 0.640. The line's mean is 0.311 with 10 images for each feature, 0.497
with 25 and 0.605 with 50; the smallest sub-samples then have 2, 2.5 and 5. The score card also shows the distance of all samples less the
jackknife's bias. Here that is 0.591, 0.627 and 0.635, the better number. The distance bends less where few features have most of the
variance. The procedure stays the published one, so that its numbers can be compared.

Deviation: sub-samples are unions of the blocks whose moments are collected anyway, where the source draws 15 random ones of all
features. No features are stored, sub-samples of one size share no image, and the same samples always give the same number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.distances.frechet import (
    BlockedMoments,
    FeatureStatistics,
    frechet_distance,
    leave_one_out_distances,
    merged,
)
from evaluation.distances.metric_value import MetricValue
from evaluation.records.intervals import jackknife_error, student_interval
from training.config.errors import UserError

MIN_IMAGES_PER_FEATURE = 5
"""Fewest samples for each feature: with fewer there are not three sizes of sub-samples."""

_SIZES = (1, 2, 3, 4, 5, 10)
_MIN_PER_FEATURE = 2
"""Smallest sub-sample, in images per feature: with fewer the covariance is nearly singular, and the line bends still more."""


def frechet_infinity(reference: FeatureStatistics, blocks: BlockedMoments) -> MetricValue:
    """Return the line's value at 1/N = 0, with its standard error. It is too small where sub-samples have few images for each feature.

    The standard error is the larger of two: that of the fit, and the jackknife's of the distance of all samples. The sub-samples
    overlap, so the fit's alone can be far too small. The line takes one eigendecomposition for each of 15 to 33 sub-samples.

    Raises:
        UserError: There are fewer than five images for each feature.
    """
    whole = len(blocks.blocks)
    smallest = _MIN_PER_FEATURE * reference.dim
    sizes = [size for size in _SIZES if size <= whole and size * blocks.num_images // whole >= smallest]
    if len(sizes) < 3:
        raise UserError(f"fd_infinity takes {MIN_IMAGES_PER_FEATURE * reference.dim:,} samples at least, got {blocks.num_images:,}")
    runs = [range(first, first + size) for size in sizes for first in range(0, whole - size + 1, size)]
    parts = [merged(blocks.blocks[run.start : run.stop]) for run in runs]
    inverse = np.array([1 / part.num_images for part in parts])
    distances = np.array([frechet_distance(reference, part) for part in parts])
    value, fit_error = _fit_line(inverse, distances)
    leave_one_out = leave_one_out_distances(reference, blocks)
    error = max(fit_error, jackknife_error(leave_one_out))
    fewest, most = min(part.num_images for part in parts), max(part.num_images for part in parts)
    note = (
        f"a line in 1/N through {len(parts)} distances of {fewest:,} to {most:,} samples; too small with few for each feature "
        f"(here {fewest / reference.dim:,.1f} at least), where the distance without its bias is better"
    )
    interval = student_interval(value, error, whole - 1)
    without = []
    for b, distance in enumerate(leave_one_out):
        rest = np.array([b not in run for run in runs])  # leaves out the whole sample; `distance` of the other blocks replaces it
        count = blocks.num_images - blocks.blocks[b].num_images
        without.append(_fit_line(np.append(inverse[rest], 1 / count), np.append(distances[rest], distance))[0])
    method = "error of the line or jackknife, the larger; Student's t"
    return MetricValue("fd_infinity", value, error, note, None, interval, method, tuple(without))


def _fit_line(inverse: NDArray[np.float64], distances: NDArray[np.float64]) -> tuple[float, float]:
    """Return the least squares line's value at 0 and its standard error."""
    design = np.stack([np.ones_like(inverse), inverse], axis=1)
    (value, _), residuals, _, _ = np.linalg.lstsq(design, distances, rcond=None)
    variance = residuals[0] / (len(distances) - 2)
    return float(value), float(np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]))

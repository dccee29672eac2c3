"""One number about a sample, with its 95% interval and what is known of its bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evaluation.records.intervals import (
    HALF_SAMPLES,
    JACKKNIFE,
    NORMAL_JACKKNIFE,
    OF_LOGARITHM,
    Interval,
    Resampling,
    distance_error,
    logarithmic_interval,
    resampled_degrees,
    resampled_error,
    share_interval,
    student_interval,
)
from training.shapes import Bool, Float64

NUM_BLOCKS = 10
"""Blocks of samples that a jackknife leaves out."""


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number.

    Attributes:
        name: "kid", "precision" and so on.
        standard_error: Its standard error over the draw of the samples; None if unknown.
        note: What it is, in a few words.
        bias: Estimate of what the finite number of images adds to the value; `value - bias` is the corrected value. None if no
            correction is published.
        is_unbiased: True for an unbiased estimator, whose bias is 0.
        interval: 95% interval over the draw of the samples; None if unknown. It is around the value, bias included.
        method: How the interval is found, in a few words.
        resampled: The number without each of ten blocks of samples, or that of each half (`intervals.resampled_error`). With these it is
            compared with another model's on the same noise; empty where that is not sound.
        resampling: Which of the two they are.
        is_normal: True for an interval that is a normal one although its error is estimated from few values.
    """

    name: str
    value: float
    standard_error: float | None
    note: str
    bias: float | None = None
    interval: Interval | None = None
    method: str = ""
    resampled: tuple[float, ...] = ()
    resampling: Resampling = "blocks"
    is_normal: bool = False
    is_unbiased: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields without the name, for a result's `metrics`."""
        interval = None if self.interval is None else list(self.interval)
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "interval": interval,
            "method": self.method,
            "bias": self.bias,
            "is_unbiased": self.is_unbiased,
            "note": self.note,
            "resampled": list(self.resampled),
            "resampling": self.resampling,
            # None stands for many, as in `Difference`, and where there is nothing to compare.
            "degrees_of_freedom": None if self.is_normal or not self.resampled else resampled_degrees(len(self.resampled), self.resampling),
        }


def by_jackknife(
    name: str,
    value: float,
    resampled: Sequence[float],
    note: str,
    bias: float | None = None,
    *,
    other_error: float = 0.0,
    limits: Interval = (-math.inf, math.inf),
    resampling: Resampling = "blocks",
    is_normal: bool = False,
    is_unbiased: bool = False,
    of_halves: Sequence[Sequence[float]] = (),
    offset: float = 0.0,
) -> MetricValue:
    """Return a number with the interval of a jackknife.

    Args:
        resampled: The number without each block of samples, or of each half; too few give no interval.
        other_error: Standard error of the value for the given samples, from random subsets.
        limits: Smallest and largest possible value.
        resampling, is_normal, is_unbiased: See `MetricValue`.
        of_halves: The number of both halves of six splits (`intervals.distance_error`), for a distance that may be mostly bias. Its
            interval is that of the logarithm of the number plus the offset.
        offset: What makes the number positive: 0 for a biased distance, and for an unbiased squared one what its estimator leaves out.
    """
    error = resampled_error(resampled, resampling)
    degrees_of_freedom = None if is_normal else resampled_degrees(len(resampled), resampling)
    method = HALF_SAMPLES if resampling == "halves" else NORMAL_JACKKNIFE if is_normal else JACKKNIFE
    find_interval = student_interval
    if of_halves:
        error, method, find_interval = distance_error(resampled, of_halves), OF_LOGARITHM, logarithmic_interval
    error = math.hypot(error, other_error)
    if not math.isfinite(error):
        return MetricValue(name, value, None, note, bias, is_unbiased=is_unbiased)
    low, high = (end - offset for end in find_interval(value + offset, error, degrees_of_freedom))
    interval = max(low, limits[0]), min(high, limits[1])
    kept = () if other_error else tuple(resampled)
    return MetricValue(name, value, error, note, bias, interval, method, kept, resampling, is_normal, is_unbiased)


def share_of_images(name: str, has_property: Bool[Tensor, " images"], note: str) -> MetricValue:
    """Return the share of independent images that have a property, with Wilson's interval.

    Which images have it is kept by blocks: two models on the same noise differ in few of them, so that the error of their difference is
    smaller than that of two independent shares.
    """
    found = has_property.double()
    share, count = float(found.mean()), len(found)
    error = math.sqrt(share * (1 - share) / count)
    method = "closed form for a share (Wilson)"
    return MetricValue(name, share, error, note, None, share_interval(share, count), method, mean_without_blocks(found))


def mean_without_blocks(values: Float64[Tensor, " images"]) -> tuple[float, ...]:
    """Return the mean without each of ten blocks of values; none for fewer than ten."""
    blocks = values.tensor_split(NUM_BLOCKS)
    if len(blocks[-1]) < 1:
        return ()
    return tuple(float((values.sum() - block.sum()) / (len(values) - len(block))) for block in blocks)

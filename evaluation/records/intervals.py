"""Standard errors by the jackknife, and 95% intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard
from scipy.special import stdtrit
from torch import Tensor

from training.shapes import Bool

MANY = 10**9
"""Degrees of freedom in place of infinitely many: Student's t is then the normal distribution."""
_UPPER_POINT = 0.975
JACKKNIFE = "jackknife over ten blocks of samples, Student's t"
"""The method of most intervals, in words."""
NORMAL_JACKKNIFE = "jackknife over ten blocks of samples, normal"
LESS_EXCESS = "jackknife over ten blocks of samples, corrected (Efron and Stein 1981), Student's t"
"""The method of a distance whose halves are known: what the plain jackknife counts twice is taken off (`distance_error`)."""
OF_LOGARITHM = f"{LESS_EXCESS}, on a logarithmic scale"
"""The method of further distances whose halves are known."""
HALF_SAMPLES = "14 balanced halves of the samples, Student's t"
_NUM_HALF_BLOCKS = 8
_ROUNDING = 1 / 700
"""A value below this share of the half width of its interval is 0, as the distance of a set from itself is: its ratio is no float64."""
SPLITS = ("ABABAAABBB", "ABBABAAABB", "ABBABBABAA", "AAABBBABBA", "AAAABBBABB", "ABAAABBBAB")
"""Six ways to split ten blocks into halves A and B: each half of one shares three blocks with one half of another, and two with the other.

They are rows of a Hadamard matrix of order twelve, without two columns."""
REST_OF_BLOCKS = [[block != left_out for block in range(10)] for left_out in range(10)]
"""The ten remainders of the jackknife: for each, whether it has each of the ten blocks."""
HALVES = [[[half == name for half in split] for name in "AB"] for split in SPLITS]
"""Both halves of each of the six splits, likewise."""
PARTS = [*REST_OF_BLOCKS, *itertools.chain.from_iterable(HALVES)]
"""The ten remainders and the twelve halves; see `part_values`."""

Interval = tuple[float, float]
Resampling = Literal["blocks", "halves"]
"""Parts of the samples on which a number is known: without each of ten blocks, or each of the `balanced_halves`."""
MOST_SEEDS = 100
"""The largest number of seeds that `seeds_to_decide` tries."""


def student_factor(degrees_of_freedom: int | None) -> float:
    """Return the 97.5% point of Student's t, which is 1.96 for many degrees of freedom (None).

    A standard error that is itself estimated from n values has n - 1. A jackknife over ten blocks so takes 2.26: with 1.96 its interval
    would cover only 92%, since the error's own estimate has a relative error of 1 / sqrt(2 (n - 1)) = 24%.
    """
    return float(stdtrit(degrees_of_freedom or MANY, _UPPER_POINT))


def student_interval(value: float, standard_error: float, degrees_of_freedom: int | None) -> Interval:
    """Return the value minus and plus Student's factor times its standard error."""
    half_width = student_factor(degrees_of_freedom) * standard_error
    return value - half_width, value + half_width


def logarithmic_interval(value: float, standard_error: float, degrees_of_freedom: int | None) -> Interval:
    """Return the value divided and multiplied by exp(t SE / value): Student's interval of its logarithm, whose error is SE / value.

    It is for a number that is positive and whose draws are skewed, such as a squared distance in a few features. For a small error it is
    that of `student_interval`; for a value of 0, up to rounding, it is the upper half of that.
    """
    half_width = student_factor(degrees_of_freedom) * standard_error
    if value <= _ROUNDING * half_width:
        return value, value + half_width
    ratio = math.exp(half_width / value)
    return value / ratio, value * ratio


def share_interval(share: float, count: int) -> Interval:
    """Return the interval of Wilson (1927) for a share of `count` independent images; it stays within [0, 1].

    It solves |p - share| = z sqrt(p (1 - p) / count) for p, with z = 1.96.
    """
    z_squared = student_factor(None) ** 2
    centre = (share + z_squared / (2 * count)) / (1 + z_squared / count)
    half_width = math.sqrt(z_squared * (share * (1 - share) / count + z_squared / (4 * count**2))) / (1 + z_squared / count)
    return max(centre - half_width, 0.0), min(centre + half_width, 1.0)


def jackknife_error(leave_one_out: Sequence[float]) -> float:
    """Return the delete-a-group jackknife's standard error over the draw of the sample; NaN for fewer than two values.

    With d_(b) the statistic without block b, of B blocks: SE^2 = (B - 1)/B * sum_b (d_(b) - mean d)^2. It is the spread over
    draws of as many samples, not the distance's bias in comparison with infinitely many samples.
    """
    if len(leave_one_out) < 2:
        return math.nan
    values = torch.tensor(leave_one_out, dtype=torch.float64)
    spread = (values - values.mean()).square().sum()
    return float(((len(values) - 1) / len(values) * spread).sqrt())


def jackknife_excess(of_halves: Sequence[Sequence[float]]) -> float:
    """Return by how much the jackknife's variance over ten blocks is too large: 0 or more, or NaN for an empty list.

    To second order a distance of n samples is a constant, a mean of one term for each sample, and a mean of one for each pair of samples;
    the terms are uncorrelated, and the means have variances V_1 and V_2 (Hoeffding 1948). V_2 is the variance of what is called the
    bias of few samples, which is most of the distance of a good model. With B blocks

        E SE^2 = V_1 + (2 + (B - 2) / (B - 1)^2) V_2,

    since each pair is left out with either of its samples (Efron and Stein 1981). The mean of the distances of two complementary halves has
    the same first term for all splits. Of the pairs it has those that are in one half, with twice the weight. So its variance over
    independent splits is V_2. These splits have the correlation r = +-1/5, where it is (1 - r^2) V_2.

    It is exact for a distance of second order, and unbiased, but far too noisy for one night's error: the nightly check takes the mean of
    a baseline. With hardly more samples than features it is too small: in 64 equal features of 100 samples half of the excess.

    Args:
        of_halves: Six pairs (`frechet.distances_of_halves`), or an empty list.
    """
    if not of_halves:
        return math.nan
    num_blocks = len(SPLITS[0])
    correlation = 1 - 2 * 2 / (num_blocks // 2)
    variance_of_pairs = float(torch.tensor(of_halves, dtype=torch.float64).mean(dim=1).var()) / (1 - correlation**2)
    return (1 + (num_blocks - 2) / (num_blocks - 1) ** 2) * variance_of_pairs


def distance_error(leave_one_out: Sequence[float], of_halves: Sequence[Sequence[float]]) -> float:
    """Return the standard error of a distance, of which much may be the bias of few samples.

    The variance is the jackknife's J^2 without what it counts twice (`jackknife_excess`, E): max(J^2 - 5/7 E, J^2 / 2). E is the variance
    of six independent splits, so it has 5 degrees of freedom; of all multiples of such an estimate 5 / (5 + 2) has the least mean
    squared error. At most half of J^2 is counted twice. With J^2 alone the interval of a distance that is mostly bias covers 99%.

    Args:
        leave_one_out: As for `jackknife_error`.
        of_halves: As for `jackknife_excess`; with an empty list it is the jackknife's error.
    """
    error = jackknife_error(leave_one_out)
    degrees_of_freedom = len(SPLITS) - 1
    excess = degrees_of_freedom / (degrees_of_freedom + 2) * jackknife_excess(of_halves) if of_halves else 0.0
    return math.sqrt(max(error**2 - excess, error**2 / 2)) if math.isfinite(error) and math.isfinite(excess) else error


def balanced_halves() -> Bool[Tensor, "halves blocks"]:
    """Return which of eight blocks are in each of 14 halves: seven and their complements.

    They are the signs of a Hadamard matrix of order eight, so that each two blocks are as often in one half as chance has it.
    """
    signs = torch.from_numpy(hadamard(_NUM_HALF_BLOCKS)[1:])
    return torch.cat([signs, -signs]) > 0


def half_sample_error(of_halves: Sequence[float]) -> float:
    """Return the delete-d jackknife's standard error with d half of the sample, from the statistic of each of the `balanced_halves`.

    SE^2 = (n - d) / d * mean_h (v_h - mean v)^2, and (n - d) / d = 1. Of seven independent contrasts, it has seven degrees of freedom. A
    statistic that asks whether any sample is near is not smooth: the jackknife over ten blocks gives a variance of twice the true one.

    Source: Shao and Wu 1989, "A general theory for jackknife variance estimation".

    Returns:
        The standard error, or NaN for an empty list.
    """
    if not of_halves:
        return math.nan
    return float(torch.tensor(of_halves, dtype=torch.float64).std(correction=0))


def resampled_error(values: Sequence[float], resampling: Resampling) -> float:
    """Return the standard error of a number, or of a difference of two, by its values on parts of the samples."""
    return half_sample_error(values) if resampling == "halves" else jackknife_error(values)


def resampled_degrees(num_values: int, resampling: Resampling) -> int:
    """Return the degrees of freedom of `resampled_error`, for so many values."""
    return num_values // 2 if resampling == "halves" else num_values - 1


class PartValues(NamedTuple):
    """A statistic of each of the `PARTS`.

    Attributes:
        without_blocks: Without each of ten blocks of samples.
        of_halves: Of both halves of each split (`jackknife_excess`).
    """

    without_blocks: list[float]
    of_halves: list[tuple[float, float]]


def part_values(values: Sequence[float]) -> PartValues:
    """Return the values of a statistic on the `PARTS`, given in their order; none give empty lists."""
    halves = values[len(REST_OF_BLOCKS) :]
    return PartValues(list(values[: len(REST_OF_BLOCKS)]), list(zip(halves[::2], halves[1::2], strict=True)))


def jackknife_bias(value: float, leave_one_out: Sequence[float]) -> float | None:
    """Return the jackknife's estimate of the bias of a statistic of n samples that falls as 1/n: (B - 1) (mean d_(b) - d).

    It is None without parts.

    Source: Quenouille 1956. The statistic minus this is free of the term in 1/n.
    """
    if not leave_one_out:
        return None
    return (len(leave_one_out) - 1) * (math.fsum(leave_one_out) / len(leave_one_out) - value)


def mean_interval(values: Sequence[Any] | NDArray[Any]) -> tuple[Any, Any]:
    """Return the mean over the last axis, and half the width of its 95% interval.

    The half width is t s / sqrt(n), with the standard deviation s (divisor n - 1) and the 97.5% point t of Student's
    distribution with n - 1 degrees of freedom. It covers the true mean in 95% of cases if the values are independent and
    normal. One value has an infinite interval.
    """
    array = np.asarray(values, dtype=float)
    count = array.shape[-1]
    mean = array.mean(-1)
    return mean, array.std(-1, ddof=1) * _interval_factor(count) if count > 1 else np.full_like(mean, np.inf)[()]


def seeds_to_decide(mean: float, values: Sequence[Any] | NDArray[Any]) -> int | None:
    """Return how many seeds it would take until the interval of a mean excludes 0, if mean and spread stay as they are.

    None if more than `MOST_SEEDS`. `values` are the seeds so far, two or more.
    """
    array = np.asarray(values, dtype=float)
    spread = float(array.std(ddof=1))
    return next((count for count in range(array.size + 1, MOST_SEEDS + 1) if _interval_factor(count) * spread < abs(mean)), None)


def _interval_factor(count: int) -> float:
    return student_factor(count - 1) / math.sqrt(count)

"""Standard errors by the jackknife, and 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit

MANY = 10**9
"""Degrees of freedom in place of infinitely many: Student's t is then the normal distribution."""
_UPPER_POINT = 0.975
JACKKNIFE = "jackknife over ten blocks of samples, Student's t"
"""The method of most intervals, in words."""

Interval = tuple[float, float]


def student_factor(degrees_of_freedom: int | None) -> float:
    """Return the 97.5 % point of Student's t, which is 1.96 for many degrees of freedom (None).

    A standard error that is itself estimated from n values has n - 1. A jackknife over ten blocks so takes 2.26: with 1.96 its interval
    would cover only 92 %, since the error's own estimate has a relative error of 1 / sqrt(2 (n - 1)) = 24 %.
    """
    return float(stdtrit(degrees_of_freedom or MANY, _UPPER_POINT))


def student_interval(value: float, standard_error: float, degrees_of_freedom: int | None) -> Interval:
    """Return the value minus and plus Student's factor times its standard error."""
    half_width = student_factor(degrees_of_freedom) * standard_error
    return value - half_width, value + half_width


def share_interval(share: float, count: int) -> Interval:
    """Return the interval of Wilson (1927) for a share of `count` independent images; it stays within [0, 1].

    It solves |p - share| = z sqrt(p (1 - p) / count) for p, with z = 1.96.
    """
    z_squared = student_factor(None) ** 2
    centre = (share + z_squared / (2 * count)) / (1 + z_squared / count)
    half_width = math.sqrt(z_squared * (share * (1 - share) / count + z_squared / (4 * count**2))) / (1 + z_squared / count)
    return max(centre - half_width, 0.0), min(centre + half_width, 1.0)


def jackknife_error(leave_one_out: Sequence[float]) -> float:
    """Return the delete-a-group jackknife's standard error over the draw of the sample.

    With d_(b) the statistic without block b, of B blocks: SE^2 = (B - 1)/B * sum_b (d_(b) - mean d)^2. It is the spread over
    draws of as many samples, not the distance's bias in comparison with infinitely many samples.

    Returns:
        The standard error, or NaN for fewer than two values.
    """
    if len(leave_one_out) < 2:
        return math.nan
    values = torch.tensor(leave_one_out, dtype=torch.float64)
    spread = (values - values.mean()).square().sum()
    return float(((len(values) - 1) / len(values) * spread).sqrt())


def jackknife_bias(value: float, leave_one_out: Sequence[float]) -> float:
    """Return the jackknife's estimate of the bias of a statistic of n samples that falls as 1/n: (B - 1) (mean d_(b) - d).

    Source: Quenouille 1956. The statistic minus this is free of the term in 1/n.
    """
    return (len(leave_one_out) - 1) * (math.fsum(leave_one_out) / len(leave_one_out) - value)

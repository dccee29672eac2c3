"""The 95 % interval of a mean over seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation.records.intervals import student_factor

MOST_SEEDS = 100
"""The largest number of seeds that `seeds_to_decide` tries."""


def mean_interval(values: ArrayLike) -> tuple[Any, Any]:
    """Return the mean over the last axis, and half the width of its 95 % interval.

    The half width is t s / sqrt(n), with the standard deviation s (divisor n - 1) and the 97.5 % point t of Student's
    distribution with n - 1 degrees of freedom. It covers the true mean in 95 % of cases if the values are independent and
    normal. One value has an infinite interval.
    """
    array = np.asarray(values, dtype=float)
    count = array.shape[-1]
    mean = array.mean(-1)
    return mean, array.std(-1, ddof=1) * _interval_factor(count) if count > 1 else np.full_like(mean, np.inf)[()]


def seeds_to_decide(mean: float, values: ArrayLike) -> int | None:
    """Return how many seeds it would take until the interval of a mean excludes 0, if mean and spread stay as they are.

    None if more than `MOST_SEEDS`. `values` are the seeds so far, two or more.
    """
    array = np.asarray(values, dtype=float)
    spread = float(array.std(ddof=1))
    return next((count for count in range(array.size + 1, MOST_SEEDS + 1) if _interval_factor(count) * spread < abs(mean)), None)


def _interval_factor(count: int) -> float:
    return student_factor(count - 1) / math.sqrt(count)

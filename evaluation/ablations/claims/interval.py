"""The 95 % interval of a mean over seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

MOST_SEEDS = 100
"""The largest number of seeds that `seeds_to_decide` tries."""

_UPPER_POINT = 0.975


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
    counts = np.arange(array.size + 1, MOST_SEEDS + 1)
    enough = counts[array.std(ddof=1) * _interval_factor(counts) < abs(mean)]
    return int(enough[0]) if enough.size else None


def _interval_factor(count: Any) -> Any:
    return stdtrit(count - 1, _UPPER_POINT) / np.sqrt(count)

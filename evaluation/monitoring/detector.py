"""The nightly detector: has the level of a series of scores changed?

The scores x_1, x_2, ... of a healthy model vary about one level. Three rules watch that level.

*The baseline.* The first `baseline_nights` healthy scores give the centre m (their mean) and the spread s. A
later night does not join them at once: a bad one would hide itself among the numbers that it is compared with. But the mean of 20 scores is
wrong by 0.22 s, and by 0.31 s if they are correlated by 0.3; most false alarms come from that. So a night joins when 20 more
have shown that nothing was wrong (no alarm in them, and sums that are low again), until the baseline has `max_baseline_nights`. The price:
a change that takes longer than 20 nights to be found is hidden in part, so that 1 s worse is found less often.

The standard deviation of 20 scores is wrong by 16% (one standard deviation, 1 / sqrt(2 (n - 1))), and one that is too small raises false
alarms. The evaluation also knows the standard error of each score. It is a jackknife's, whose variance is up to twice too large where most
of a score is the bias of few samples. That excess is known for each night too, with much noise, so that only the mean over a complete
baseline is subtracted. s is the larger one of the baseline's own standard deviation and this error; see `_Baseline.spread`.

*Slow change.* The two-sided cumulative sum of Page (1954), over z_i = (x_i - m) / s:

    up_i   = max(0, up_{i-1}   + z_i - k)
    down_i = max(0, down_{i-1} - z_i - k)

It signals when a sum exceeds h. `reference_value` k is the change, in spreads, that the sum ignores; `decision_interval` h sets how
rarely a healthy model signals (the average run length, ARL). The change began, by Page's estimate, on the night after the sum was last 0.
A score that takes a sum above h is drawn again, as one that is far off is (below): a healthy model's was extreme by chance, and its new
scores are not. That halves the false alarms.

*A jump* is told in the same night. A shift of 5 spreads can't be found at once in 99% of cases by one score without many false alarms:
that needs a limit of at most 5 - 2.33 = 2.67 spreads, which some score of most healthy models exceeds within a year. So a score beyond
`suspicion` is drawn three times more, from new noise, in the same night. The night then counts as the mean of the new scores (the first
one was picked for being extreme), and is a jump beyond `confirmed`. A suspicious score that was not drawn again is a jump beyond `alone`.

While the baseline is gathered, only jumps can be detected, with limits that are wider by sqrt(1 + 1 / n), the error of a mean of n scores.

Sources: E. S. Page, "Continuous inspection schemes", Biometrika 41 (1954), 100-115. D. C. Montgomery, "Introduction to statistical
quality control", chapter 9 (cumulative sums, choice of k and h). W. A. Jensen et al., "Effects of parameter estimation on control chart
properties", Journal of Quality Technology 38 (2006): the limits must allow for an estimated baseline. `make bench-nightly` measures them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.config.errors import UserError

Numbers = NDArray[np.float64]
NUM_REDRAWN = 3
"""Number of new scores in a suspicious night."""
FALSE_ALARMS_IN_A_YEAR = 0.003
"""Share of healthy models that the default parameters alarm within a year, with independent normal noise (`make bench-nightly`)."""
_MIN_FOR_SPREAD = 3
_MIN_WITHOUT_ERROR = 10
_DEGREES_OF_AN_ERROR = 9
"""Degrees of freedom of a known error, a jackknife's over ten blocks; those of several nights are independent, and add up."""
_QUIET_NIGHTS = 20
"""A healthy night joins a complete baseline after so many more nights."""
_LOW = 0.25
"""Sums below this share of h are low: nothing points to a change."""
_CLIP = 4.0
"""Largest |z| that a night adds: one outlier is the business of the rule for jumps. It grows with a k above `reference_value`."""
_CAP = 1.5
"""Largest sum, in multiples of h: a model that has recovered is healthy again after a few nights, however bad it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Parameters of the detector; lengths are in spreads of the baseline.

    Attributes:
        baseline_nights: Number of healthy scores that complete the baseline; slow changes are detected from then on.
        max_baseline_nights: Number of healthy scores up to which the baseline grows on; if it is `baseline_nights` or less, it does not.
        reference_value: k of the cumulative sum.
        decision_interval: h of the cumulative sum.
        suspicion: A score so far from the centre is drawn `NUM_REDRAWN` times more, as is one that takes a sum above h.
        confirmed: New scores of one night whose mean is so far from the centre are a jump.
        alone: One score so far from the centre is a jump.
        min_difference: Smallest change that matters, in units of the distance.
    """

    baseline_nights: int = 20
    max_baseline_nights: int = 100
    reference_value: float = 0.75
    decision_interval: float = 4.8
    suspicion: float = 1.9
    confirmed: float = 2.7
    alone: float = 4.5
    min_difference: float = 0.0

    def __post_init__(self) -> None:
        if self.baseline_nights < _MIN_FOR_SPREAD:
            raise UserError(f"baseline_nights must be {_MIN_FOR_SPREAD} or more, got {self.baseline_nights}")
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise UserError(f"{field.name} must be a number of 0 or more, got {getattr(self, field.name)}")


@dataclass(frozen=True, slots=True)
class Trace:
    """The detector's state after each night; arrays of the shape of the scores, nights on the last axis.

    Attributes:
        value: The night's score: the mean of the new ones if it was drawn again.
        num_baseline: Number of scores in the baseline before this night.
        centre: m before this night.
        spread: s before this night; NaN if nothing is known yet.
        degrees_of_freedom: Those of s: one less than the scores in the baseline, or nine for each known error, whichever gives s.
        limit: Distance from the centre, in units of the score, beyond which this night is a jump; NaN if nothing can be told.
        suspicious: The first score is far from the centre, or takes a sum above h.
        jump: +1 above, -1 below, else 0. A score that is not finite is +1.
        up, down: The sums.
        slow: +1 if `up` exceeds h, -1 if `down` does, else 0.
    """

    value: Numbers
    num_baseline: NDArray[np.int64]
    centre: Numbers
    spread: Numbers
    degrees_of_freedom: NDArray[np.int64]
    limit: Numbers
    suspicious: NDArray[np.bool_]
    jump: NDArray[np.int64]
    up: Numbers
    down: Numbers
    slow: NDArray[np.int64]


def watch(first: ArrayLike, redrawn: ArrayLike, errors: ArrayLike, rule: Rule, excess: ArrayLike = math.nan) -> Trace:
    """Follow series of scores night by night.

    Args:
        first: Scores, nights on the last axis; the other axes are independent series.
        redrawn: Means of the scores that were drawn again, NaN where there is none. Those of nights that aren't suspicious are ignored.
        errors: Standard errors of the scores, NaN where unknown.
        excess: By how much the square of each error is too large (`intervals.jackknife_excess`), NaN where unknown.
    """
    columns = (np.asarray(values, dtype=np.float64) for values in (first, redrawn, errors, excess))
    first, redrawn, errors, excess = np.broadcast_arrays(*columns)
    shape = first.shape[:-1]
    baseline = _Baseline(shape)
    up, down = np.zeros(shape), np.zeros(shape)
    alarmed = np.full(shape, -1)
    nights, waiting = [], []
    for night in range(first.shape[-1]):
        score, again, error = first[..., night], redrawn[..., night], errors[..., night]
        count, mean = baseline.count, baseline.mean
        complete = count >= rule.baseline_nights
        spread, degrees = baseline.spread(error, complete)
        width = np.where(complete, spread, spread * np.sqrt(1 + 1 / np.maximum(count, 1)))
        is_judged = (count > 0) & (complete | (width > 0))
        far = is_judged & (np.abs(score - mean) > np.maximum(rule.suspicion * width, rule.min_difference))
        known_level = complete & is_judged
        with np.errstate(invalid="ignore", divide="ignore"):
            k = np.where(known_level & (spread > 0), np.maximum(rule.reference_value, rule.min_difference / spread), rule.reference_value)
            z, z_again = (
                np.where(known_level & np.isfinite(each) & (each != mean), (each - mean) / spread, 0.0) for each in (score, again)
            )
        signals = np.maximum(*_sums(up, down, z, k, rule)) > rule.decision_interval
        suspicious = ~np.isfinite(score) | far | signals
        pooled = suspicious & np.isfinite(again)
        value = np.where(pooled, again, score)
        limit = np.where(is_judged, np.maximum(np.where(pooled, rule.confirmed, rule.alone) * width, rule.min_difference), np.nan)
        beyond = suspicious & (np.abs(value - mean) > limit)
        jump = np.where(np.isfinite(value), np.where(beyond, np.sign(value - mean), 0), 1).astype(np.int64)
        up, down = _sums(up, down, np.where(pooled, z_again, z), k, rule)
        slow = (up > rule.decision_interval).astype(np.int64) - (down > rule.decision_interval)
        nights.append((value, count, mean, np.where(is_judged, spread, np.nan), degrees, limit, suspicious, jump, up, down, slow))
        alarmed = np.where((jump != 0) | (slow != 0), night, alarmed)
        baseline.add(value, error, excess[..., night], ~complete & (jump == 0))
        waiting.append((value, error, excess[..., night], complete))
        if night >= _QUIET_NIGHTS:
            earlier, earlier_error, earlier_excess, waited = waiting[night - _QUIET_NIGHTS]
            is_quiet = (alarmed < night - _QUIET_NIGHTS) & (np.maximum(up, down) < _LOW * rule.decision_interval)
            baseline.add(earlier, earlier_error, earlier_excess, waited & is_quiet & (count < rule.max_baseline_nights))
    return Trace(*(np.stack(np.broadcast_arrays(*values), axis=-1).reshape(first.shape) for values in zip(*nights, strict=True)))


def _sums(up: Numbers, down: Numbers, z: Numbers, k: Numbers, rule: Rule) -> tuple[Numbers, Numbers]:
    """Return both cumulative sums after a night of z; an infinite z, as after a baseline of equal scores, counts as the largest."""
    clip, highest = _CLIP + k - rule.reference_value, _CAP * rule.decision_interval
    z = np.clip(z, -clip, clip)
    return np.clip(up + z - k, 0.0, highest), np.clip(down - z - k, 0.0, highest)


class _Baseline:
    """The scores in the baseline of each series, as running sums."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count, self._num_errors = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.mean, self._squares, self._error_squares, self._excess = (np.zeros(shape) for _ in range(4))

    def add(self, score: Numbers, error: Numbers, excess: Numbers, joins: NDArray[np.bool_]) -> None:
        """Add the scores of the series in `joins`, by Welford's update of the mean and the sum of squares about it."""
        self.count = self.count + joins
        step = np.where(joins, score - self.mean, 0.0)
        self.mean = self.mean + step / np.maximum(self.count, 1)
        self._squares = self._squares + step * np.where(joins, score - self.mean, 0.0)
        is_known = joins & np.isfinite(error)
        self._num_errors = self._num_errors + is_known
        self._error_squares = self._error_squares + np.where(is_known, error, 0.0) ** 2
        self._excess = self._excess + np.where(is_known & np.isfinite(excess), excess, 0.0)

    def spread(self, error: Numbers, complete: NDArray[np.bool_]) -> tuple[Numbers, NDArray[np.int64]]:
        """Return the standard deviation of one score, and its degrees of freedom.

        It is the larger of the baseline's own deviation and the root mean square of the known errors.
        A few scores may be almost equal by chance. So the baseline's own deviation takes three scores, or ten where no error is known.
        It is 0 if nothing is known.

        Args:
            error: Tonight's, which helps while the baseline's are few.
            complete: The series whose baseline is complete. Only their excess is known well enough to be subtracted. At most half of
                the squared errors is excess: a jackknife counts the terms of pairs of samples at most twice.
        """
        helps = ~complete & np.isfinite(error)
        num_errors = self._num_errors + helps
        error_squares = self._error_squares + np.where(helps, error, 0.0) ** 2
        error_squares = error_squares - np.minimum(np.where(complete, self._excess, 0.0), error_squares / 2)
        fewest = np.where(num_errors > 0, _MIN_FOR_SPREAD, _MIN_WITHOUT_ERROR)
        own = np.where(self.count >= fewest, np.sqrt(self._squares / np.maximum(self.count - 1, 1)), 0.0)
        known: Numbers = np.sqrt(error_squares / np.maximum(num_errors, 1))
        degrees: NDArray[np.int64] = np.where(own > known, self.count - 1, _DEGREES_OF_AN_ERROR * num_errors)
        return np.maximum(own, known), degrees

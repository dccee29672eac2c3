"""The nightly check for a regression, as a pure function of the history of a model's scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from training.config.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionCheck:
    """The comparison of one score with its history.

    Attributes:
        regressed: True if the score is above the limit, or not finite.
        baseline: The median of the history.
        spread: Standard deviation of one score.
        limit: Largest score that is no regression.
        reason: One sentence with both numbers.
    """

    regressed: bool
    distance: float
    baseline: float
    spread: float
    limit: float
    reason: str


def check_regression(
    distance: float,
    standard_error: float | None,
    history: Sequence[float],
    *,
    num_standard_errors: float = 4.0,
    min_difference: float = 0.0,
) -> RegressionCheck:
    """Compare a score with its history. Smaller is better.

    A score is a regression if it exceeds the history's median m by more than `num_standard_errors` * s and by more than
    `min_difference`, in units of the distance; or if it is not finite. s is the history's standard deviation once it has three
    scores, but never less than the score's own standard error: otherwise a short history with almost equal scores would raise
    alarms about noise. Scores of the history that are not finite are ignored.

    Raises:
        UserError: The history has no finite score, or a threshold is negative or not finite.
    """
    history = [value for value in history if math.isfinite(value)]
    if not history:
        raise UserError("there is no earlier score to compare with; evaluate the model once more")
    if not (0 <= num_standard_errors < math.inf and 0 <= min_difference < math.inf):
        raise UserError(f"thresholds must be at least 0, got {num_standard_errors} standard errors and a difference of {min_difference}")
    baseline = statistics.median(history)
    spread = max(standard_error or 0.0, statistics.stdev(history) if len(history) >= 3 else 0.0)
    limit = baseline + max(num_standard_errors * spread, min_difference)
    regressed = not math.isfinite(distance) or distance > limit
    scores = "score" if len(history) == 1 else "scores"
    reason = (
        f"{distance:.4g} against {baseline:.4g} (median of {len(history)} earlier {scores}); "
        f"the limit is {limit:.4g}, {num_standard_errors:g} x {spread:.3g} above" + (f" or {min_difference:g}" if min_difference else "")
    )
    return RegressionCheck(regressed=regressed, distance=distance, baseline=baseline, spread=spread, limit=limit, reason=reason)

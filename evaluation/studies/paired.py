"""The difference of two evaluations on common noise, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluation.distances.frechet import jackknife_error
from evaluation.records.result import EvaluationResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A number of a model minus that of another; for distances and bits/dim, negative is better.

    The standard error is that of the difference, on common noise and images; None if unknown.
    """

    value: float
    standard_error: float | None

    @property
    def num_standard_errors(self) -> float | None:
        """The difference in units of its standard error; None where there is no error, 0 where there is no difference."""
        if self.value == 0:
            return 0.0
        return self.value / self.standard_error if self.standard_error else None


def distance_difference(result: EvaluationResult, other: EvaluationResult) -> Difference:
    """Return the distance of `result` minus that of `other`, which was evaluated on the same noise.

    With d_(b) the distance without block b of the samples, the standard error is the jackknife's over the differences of d_(b).
    """
    pairs = zip(result.distance_without_blocks, other.distance_without_blocks, strict=True)
    error = jackknife_error([a - b for a, b in pairs])
    return Difference(value=result.distance - other.distance, standard_error=error if math.isfinite(error) else None)

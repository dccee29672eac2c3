"""Evaluations on common noise: stored ones are reused, and a difference has a standard error of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluation.distances.frechet import jackknife_error
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate
from evaluation.records.result import EvaluationResult
from evaluation.sampling.trained_model import ModelSpec
from evaluation.selection.final_choice import stored_result


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A number of a model minus that of another.

    Attributes:
        value: The difference; for distances and bits/dim, negative is better.
        standard_error: Of the difference, on common noise and images; None if unknown.
    """

    value: float
    standard_error: float | None

    @property
    def num_standard_errors(self) -> float | None:
        """The difference in units of its standard error; None where there is no error, 0 where there is no difference."""
        if self.value == 0:
            return 0.0
        return self.value / self.standard_error if self.standard_error else None


def evaluate_once(spec: ModelSpec, data_uri: str, reference_uri: str, options: EvaluationOptions) -> EvaluationResult:
    """Return the stored result of the same evaluation of the same weights, or evaluate."""
    return stored_result(spec, data_uri, reference_uri, options) or evaluate(spec, data_uri, reference_uri, options=options)


def distance_difference(result: EvaluationResult, other: EvaluationResult) -> Difference:
    """Return the distance of `result` minus that of `other`, which was evaluated on the same noise.

    With d_(b) the distance without block b of the samples, the standard error is the jackknife's over the differences of d_(b).
    """
    pairs = zip(result.distance_without_blocks, other.distance_without_blocks, strict=True)
    error = jackknife_error([a - b for a, b in pairs])
    return Difference(value=result.distance - other.distance, standard_error=error if math.isfinite(error) else None)

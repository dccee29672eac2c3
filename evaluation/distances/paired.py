"""The difference of two distances on common noise, with its standard error."""

from __future__ import annotations

import math

from evaluation.records.intervals import jackknife_error
from evaluation.records.paired import Difference
from evaluation.records.result import EvaluationResult


def distance_difference(result: EvaluationResult, other: EvaluationResult) -> Difference:
    """Return the distance of `result` minus that of `other`, which was evaluated on the same noise.

    With d_(b) the distance without block b of the samples, the standard error is the jackknife's over the differences of d_(b).
    """
    differences = [a - b for a, b in zip(result.distance_without_blocks, other.distance_without_blocks, strict=True)]
    error = jackknife_error(differences)
    return Difference(
        value=result.distance - other.distance,
        standard_error=error if math.isfinite(error) else None,
        degrees_of_freedom=max(len(differences) - 1, 1),
        num_images=result.protocol["distance"]["num_samples"],
    )

"""The difference of two models' distances, or of another number of theirs, on common noise, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evaluation.distances.metrics import max_images
from evaluation.records.intervals import (
    HALF_SAMPLES,
    JACKKNIFE,
    NORMAL_JACKKNIFE,
    Resampling,
    jackknife_error,
    resampled_degrees,
    resampled_error,
)
from evaluation.records.metric_numbers import metric_number
from evaluation.records.paired import Difference
from evaluation.records.result import EvaluationResult

_EARLIER_HALVES = "14 balanced halves of the samples, Student's t"
_EARLIER_NORMAL = "jackknife over ten blocks of samples, normal"
"""The two methods in words that results of earlier versions have in place of `resampling` and `degrees_of_freedom`: never reword them."""


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


def why_unpaired(name: str) -> str:
    """Return in words why a metric has no difference."""
    if metric_number(name).higher_is_better is None:
        return "it has no better side"
    return "it is not known without each block of samples, as a mean over random subsets or of too few samples"


def difference_method(item: Mapping[str, Any]) -> str:
    """Return in words how the interval of a stored metric's difference is found."""
    resampling, degrees_of_freedom = _resampling_of(item)
    return HALF_SAMPLES if resampling == "halves" else NORMAL_JACKKNIFE if degrees_of_freedom is None else JACKKNIFE


def _resampling_of(item: Mapping[str, Any]) -> tuple[Resampling, int | None]:
    """Return the parts on which a stored metric is known, and the degrees of freedom of an error by them, None for many."""
    if "resampling" in item:
        return item["resampling"], item["degrees_of_freedom"]
    resampling: Resampling = "halves" if item["method"] == _EARLIER_HALVES else "blocks"
    return resampling, None if item["method"] == _EARLIER_NORMAL else resampled_degrees(len(item["resampled"]), resampling)


def metric_differences(result: EvaluationResult, other: EvaluationResult) -> dict[str, Difference]:
    """Return the further metrics of `result` minus those of `other`, which was evaluated on the same noise.

    A metric is left out if it has no better side, or if its value without each block of samples is not stored: a KID of more samples than
    one of its random subsets has none.

    Two shares may differ in a few images or in none, which is too little to estimate a variance. So 1 / n^2 is added to the variance of
    their difference, as if one more image differed (half an image in each cell of the table; Agresti and Min 2005). n is the number of
    samples that the metric uses.
    """
    found = {}
    for name, ours in result.metrics.items():
        number = metric_number(name)
        theirs = other.metrics.get(name, {})
        values, others = (item.get("resampled") or [] for item in (ours, theirs))  # results of earlier versions have none
        is_known = values and len(values) == len(others) and None not in (ours["value"], theirs["value"], *values, *others)
        if not is_known or number.higher_is_better is None:
            continue
        resampling, degrees_of_freedom = _resampling_of(ours)
        error = resampled_error([a - b for a, b in zip(values, others, strict=True)], resampling)
        num_samples, most = result.protocol["distance"]["num_samples"], max_images(name)
        num_images = num_samples if most is None else min(num_samples, most)
        if number.share_of == "samples":
            error = math.hypot(error, 1 / num_images)
        found[name] = Difference(
            value=ours["value"] - theirs["value"],
            standard_error=error,
            degrees_of_freedom=degrees_of_freedom,
            num_images=num_images,
            max_images=most,
            higher_is_better=number.higher_is_better,
        )
    return found

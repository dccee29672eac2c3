"""Numbers of a trial's record, each with its standard error: what claims compare and figures draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from evaluation.ablations.trials.record import AblationTrial
from evaluation.records.stored import finite_scores

Estimate = tuple[float, float]
"""A number and its standard error; the error is 0 where it is unknown."""


class CurveFields(NamedTuple):
    """Names of the fields of a measure's points: abscissa, value, and what distinguishes the curves of one measure.

    An empty name means that the points have no such field.
    """

    x: str
    y: str
    kind: str


CURVES = {
    "sampling-steps": CurveFields("num_steps", "distance", "method"),
    "figure-1": CurveFields("num_steps", "distance", "method"),
    "likelihood-steps": CurveFields("num_steps", "bits_per_dim", "spacing"),
    "history-likelihood": CurveFields("step", "bits_per_dim", ""),
    "raw-weights": CurveFields("", "distance", "weights"),
}


def points_of(record: AblationTrial | None, measure: str) -> list[dict[str, Any]]:
    """Return the stored points of a measure; none where the trial or the measure is missing."""
    return list((record.measures.get(measure) or {}).get("points", ())) if record else []


def missing_steps(record: AblationTrial | None, measure: str) -> list[int]:
    """Return the steps at which a curve over training could not be measured; none where the trial or the measure is missing."""
    return list((record.measures.get(measure) or {}).get("left_out", ())) if record else []


def curve(record: AblationTrial | None, measure: str, kind: str = "") -> dict[int, Estimate]:
    """Return a curve as number of steps -> estimate.

    `measure` is a name of `CURVES` with an abscissa. Only the points of this `kind` (method or spacing) are taken; empty takes all.
    """
    fields = CURVES[measure]
    return {
        int(point[fields.x]): _estimate(point, fields.y)
        for point in points_of(record, measure)
        if point[fields.y] is not None and kind in ("", point.get(fields.kind))
    }


def full_likelihood_steps(record: AblationTrial) -> int | None:
    """Return T, if the likelihood of a chain of all T steps was measured; None otherwise.

    Both spacings are the same there, and only "strided" is stored (`trials.measures.likelihood_by_steps`).
    """
    counts = {
        spacing: {int(point["num_steps"]) for point in points_of(record, "likelihood-steps") if point["spacing"] == spacing}
        for spacing in ("strided", "with-small-t")
    }
    return max(counts["strided"] - counts["with-small-t"], default=None)


def distances_by_weights(record: AblationTrial) -> dict[str, Estimate]:
    """Return name of the weights -> distance, for the trained weights ("model") and each of their averages, as far as it is finite."""
    return {point["weights"]: _estimate(point, "distance") for point in points_of(record, "raw-weights") if point["distance"] is not None}


def score_curve(record: AblationTrial, weights: str | None = None) -> dict[int, float]:
    """Return training step -> score beside training of those weights; None takes the best of all weights at each step."""
    found = {}
    for point in points_of(record, "history"):
        scores = [value for name, value in finite_scores(point).items() if weights in (None, name)]
        if scores:
            found[int(point["step"])] = min(scores)
    return found


def bound_ratio(hybrid: AblationTrial, vlb: AblationTrial) -> list[float] | None:
    """Return the mean L_t of theta_hybrid over that of theta_vlb, for each t (supplement figure 3).

    It is None where one is not finite, and for models of different numbers of timesteps.
    """
    first, second = hybrid.measures["bound"]["per_t"], vlb.measures["bound"]["per_t"]
    if len(first) != len(second) or None in (*first, *second):
        return None
    return [max(a, 1e-12) / max(b, 1e-12) for a, b in zip(first, second, strict=True)]


def distance(record: AblationTrial | None) -> Estimate | None:
    """Return a trial's reported distance; None where the trial is missing or failed."""
    final = record.final if record else None
    return None if final is None or final["distance"] is None else (final["distance"], final["distance_standard_error"] or 0.0)


def bits(record: AblationTrial | None) -> Estimate | None:
    """Return a trial's reported bits/dim; None where the trial is missing or failed, or has no finite likelihood."""
    likelihood = (record.final or {}).get("likelihood") if record else None
    return None if likelihood is None or likelihood["bits_per_dim"] is None else _estimate(likelihood, "bits_per_dim")


def mean(values: Sequence[Estimate | None]) -> Estimate | None:
    """Return the mean; None where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return sum(value for value, _ in known) / len(known), math.hypot(*(error for _, error in known)) / len(known)


def change(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    """Return the absolute difference; None where a value is missing."""
    if first is None or second is None:
        return None
    return abs(first[0] - second[0]), math.hypot(first[1], second[1])


def find(records: Iterable[AblationTrial], *, role: str = "", **values: Any) -> AblationTrial | None:
    """Return the first trial with this role and these values, or None."""
    for record in records:
        if role in ("", record.role) and all(record.values.get(name) == value for name, value in values.items()):
            return record
    return None


def distance_name(records: Iterable[AblationTrial], *measures: str) -> str:
    """Return the name of the records' distance, such as "FID"; "distance" where no trial has one.

    `measures` are the measures to look at, in this order; none looks at the reported evaluation, then at the curves.
    """
    for record in records:
        for measure in measures or ("final", "sampling-steps", "figure-1"):
            if name := (record.measures.get(measure) or {}).get("distance_name"):
                return str(name)
    return "distance"


def _estimate(point: dict[str, Any], name: str) -> Estimate:
    return float(point[name]), float(point.get("standard_error") or 0.0)

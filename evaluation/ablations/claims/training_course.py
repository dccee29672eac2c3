"""The paper's claims on the course of training: overfitting, dropout, averages, width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.ablations.claims.claim import Finding, Verdict, bits, distance, pick, score_curve, smaller, unit_of, verdict
from evaluation.ablations.trials.record import TrialRecord

_FIGURE_6 = "supplement section 6, figure 6"
_FIGURE_7 = "supplement section 7, figure 7"
_WORSE = 1.05
"""A score that ends so much above its least is called worse: scores of neighbouring steps differ by less from noise alone."""
_WORSE_BITS = 1.002
"""The same of bits/dim, on images and noise that are the same at every step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Course:
    """Where a curve over training is least, and where it ends."""

    best_step: int
    least: float
    last_step: int
    end: float

    @classmethod
    def of(cls, points: Mapping[int, float]) -> _Course:
        best, last = min(points, key=lambda step: points[step]), max(points)
        return cls(best_step=best, least=points[best], last_step=last, end=points[last])

    def told(self, what: str) -> str:
        if self.best_step == self.last_step:
            return f"{what} is least, {self.least:.4g}, at the last step, {self.last_step:,}: it was still becoming better."
        return f"{what} is least, {self.least:.4g}, at step {self.best_step:,}, and {self.end:.4g} at the last, step {self.last_step:,}."


def dropout(records: Sequence[TrialRecord]) -> list[Finding | None]:
    """Supplement sections 1 and 6: both schedules overfit, cosine sooner; which dropout suits which."""
    found: list[Finding | None] = []
    courses: dict[str, _Course] = {}
    for schedule in ("linear", "cosine"):
        points = _bits_by_step(pick(records, schedule=schedule, dropout=0.1))
        if len(points) < 2:
            continue
        course = courses[schedule] = _Course.of(points)
        found.append(
            Finding(
                claim=f"The {schedule} model with dropout 0.1 overfits.",
                source=_FIGURE_6,
                verdict=_worse(course, _WORSE_BITS),
                evidence=course.told("Its bits/dim on test images"),
            )
        )
    if len(courses) == 2:
        cosine, linear = courses["cosine"].best_step, courses["linear"].best_step
        found.append(
            Finding(
                claim="The cosine schedule reaches its optimum, and then overfits, more quickly than the linear one.",
                source=_FIGURE_6,
                verdict=_sooner(courses["cosine"], courses["linear"], _WORSE_BITS),
                evidence=f"Least bits/dim at step {cosine:,} (cosine) and at step {linear:,} (linear), both with dropout 0.1.",
            )
        )
    for schedule, wanted in (("linear", 0.1), ("cosine", 0.3)):
        known = {r.values["dropout"]: value for r in records if r.values["schedule"] == schedule and (value := distance(r)) is not None}
        others = {rate: value for rate, value in known.items() if rate != wanted}
        if wanted in known and others:
            rate = min(others, key=lambda one: others[one])
            found.append(
                smaller(
                    f"Of 0.1, 0.2 and 0.3, dropout {wanted} works best for the {schedule} schedule.",
                    "supplement section 1",
                    (f"dropout {wanted}", known[wanted]),
                    (f"the best other, {rate}", others[rate]),
                    unit_of(records),
                )
            )
    return found


def overfitting(records: Sequence[TrialRecord]) -> list[Finding | None]:
    """Supplement section 7: the distance becomes worse, dropout helps and delays, and an average beats the weights themselves."""
    curves = {float(record.values["dropout"]): score_curve(record) for record in records}
    courses = {rate: _Course.of(points) for rate, points in sorted(curves.items()) if len(points) > 1}
    found: list[Finding | None] = [_becomes_worse(rate, course) for rate, course in courses.items()]
    without, small = pick(records, dropout=0.0), pick(records, dropout=0.1)
    found.append(
        smaller(
            "A small amount of dropout improves the best attainable distance.",
            _FIGURE_7,
            ("best with dropout 0.1", distance(small)),
            ("best without", distance(without)),
            unit_of(records),
        )
    )
    if 0.0 in courses and 0.1 in courses:
        late, early = courses[0.1].best_step, courses[0.0].best_step
        found.append(
            Finding(
                claim="With dropout it takes longer to get to the best.",
                source=_FIGURE_7,
                verdict=_sooner(courses[0.0], courses[0.1], _WORSE),
                evidence=f"The best score is at step {late:,} with dropout 0.1, at step {early:,} without.",
            )
        )
    return [*found, *(_averages(record, unit_of(records)) for record in records)]


def width(records: Sequence[TrialRecord]) -> list[Finding | None]:
    """Main paper, scaling: a wider model is better on both counts."""
    ordered = sorted(records, key=lambda record: int(record.values["width"]))
    if len(ordered) < 2:
        return []
    first, last = ordered[0], ordered[-1]
    source, wide, narrow = "main paper, scaling", f"C = {last.values['width']}", f"C = {first.values['width']}"
    return [
        smaller("A wider model has the better distance.", source, (wide, distance(last)), (narrow, distance(first)), unit_of(records)),
        smaller("A wider model has the better likelihood.", source, (wide, bits(last)), (narrow, bits(first)), "bits/dim"),
    ]


def _becomes_worse(rate: float, course: _Course) -> Finding:
    return Finding(
        claim="Over the course of training the distance becomes worse, " + (f"with dropout {rate} too." if rate else "without dropout."),
        source=_FIGURE_7,
        verdict=_worse(course, _WORSE),
        evidence=course.told("The score"),
    )


def _worse(course: _Course, factor: float) -> Verdict:
    """Whether a curve became worse; one that is best at its end, or hardly above that, may do so later."""
    return "as the paper says" if course.end > factor * course.least else "not decided here"


def _sooner(first: _Course, second: _Course, factor: float) -> Verdict:
    """Whether the first reached its best before the second; not known before the sooner one has become worse again."""
    if first.best_step == second.best_step:
        return "not decided here"
    sooner = min(first, second, key=lambda course: course.best_step)
    return verdict(float(first.best_step - second.best_step)) if sooner.end > factor * sooner.least else "not decided here"


def _averages(record: TrialRecord, unit: str) -> Finding | None:
    points = {
        p["weights"]: (p["distance"], p["standard_error"] or 0.0) for p in (record.measures.get("raw-weights") or {}).get("points", ())
    }
    raw = points.pop("model", None)
    if raw is None or not points:
        return None
    best = min(points, key=lambda name: points[name])
    return smaller(
        f"An average of the weights is better than the weights that are trained (dropout {record.values['dropout']}).",
        "supplement section 1, which uses an average throughout",
        (f"decay {best.removeprefix('ema_')}, the best", points[best]),
        ("the weights themselves", raw),
        f"{unit} at the last step",
    )


def _bits_by_step(record: TrialRecord | None) -> dict[int, float]:
    points = (record.measures.get("history-likelihood") or {}).get("points", ()) if record else ()
    return {int(p["step"]): float(p["bits_per_dim"]) for p in points}

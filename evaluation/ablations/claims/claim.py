"""A claim of the paper and what an ablation's numbers say of it; whichever way that comes out.

A difference counts where it is above two standard errors of itself. The errors of both sides are added as if independent:
models are compared on the same noise, so that the true error of a difference is smaller, and the verdict cautious.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evaluation.ablations.trials.record import TrialRecord

Verdict = Literal["as the paper says", "otherwise than the paper says", "not decided here"]
Estimate = tuple[float, float]
"""A number and its standard error, 0 where that is unknown."""
Named = tuple[str, Estimate | None]
"""In words what is estimated, and the estimate; None where a trial is missing."""

_ERRORS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One claim, tested.

    Attributes:
        claim: What the paper says.
        source: Where.
        verdict: Whether it is so here.
        evidence: The numbers, in one sentence.
    """

    claim: str
    source: str
    verdict: Verdict
    evidence: str

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {"claim": self.claim, "source": self.source, "verdict": self.verdict, "evidence": self.evidence}


def verdict(difference: float, error: float = 0.0) -> Verdict:
    """What a difference says that the paper has below zero."""
    if abs(difference) <= _ERRORS * error:
        return "not decided here"
    return "as the paper says" if difference < 0 else "otherwise than the paper says"


def smaller(claim: str, source: str, first: Named, second: Named, unit: str) -> Finding | None:
    """Tests that the first is smaller than the second; None where one of them is missing."""
    (a_name, a), (b_name, b) = first, second
    if a is None or b is None:
        return None
    difference, error = a[0] - b[0], math.hypot(a[1], b[1])
    sentence = f"{a_name}: {_told(a)}; {b_name}: {_told(b)} {unit}. The difference is {difference:+.3g}"
    return Finding(
        claim=claim,
        source=source,
        verdict=verdict(difference, error),
        evidence=sentence + (f" ± {error:.2g}." if error else "."),
    )


def distance(record: TrialRecord | None) -> Estimate | None:
    """A trial's reported distance."""
    final = record.final if record else None
    return None if final is None or final["distance"] is None else (final["distance"], final["distance_standard_error"] or 0.0)


def bits(record: TrialRecord | None) -> Estimate | None:
    """A trial's reported bits/dim."""
    likelihood = (record.final or {}).get("likelihood") if record else None
    return None if likelihood is None else (likelihood["bits_per_dim"], likelihood["standard_error"] or 0.0)


def unit_of(records: Sequence[TrialRecord]) -> str:
    """What the distance is called."""
    return next((record.final["distance_name"] for record in records if record.final), "distance")


def pick(records: Sequence[TrialRecord], **values: Any) -> TrialRecord | None:
    """The first trial with these values."""
    return next((r for r in records if all(r.values.get(name) == value for name, value in values.items())), None)


def role(records: Sequence[TrialRecord], name: str) -> TrialRecord | None:
    """The trial of that role."""
    return next((record for record in records if record.role == name), None)


def mean(values: Sequence[Estimate | None]) -> Estimate | None:
    """Their mean; None where one is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return sum(value for value, _ in known) / len(known), math.hypot(*(error for _, error in known)) / len(known)


def change(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    """Size of their difference."""
    if first is None or second is None:
        return None
    return abs(first[0] - second[0]), math.hypot(first[1], second[1])


def curve(record: TrialRecord | None, measure: str, **which: str) -> dict[int, Estimate]:
    """Number of steps -> estimate, of one curve of a measure."""
    points = (record.measures.get(measure) or {}).get("points", ()) if record else ()
    return {
        int(p["num_steps"]): (p[value], p["standard_error"] or 0.0)
        for p in points
        for value in ("distance", "bits_per_dim")
        if p.get(value) is not None and all(p[name] == wanted for name, wanted in which.items())
    }


def score_curve(record: TrialRecord, weights: str | None = None) -> dict[int, float]:
    """Training step -> score beside training of those weights; None takes the best of all at each step."""
    found = {}
    for point in (record.measures.get("history") or {}).get("points", ()):
        scores = [value for name, value in point["scores"].items() if value is not None and weights in (None, name)]
        if scores:
            found[int(point["step"])] = min(scores)
    return found


def bound_ratio(hybrid: TrialRecord, vlb: TrialRecord) -> list[float]:
    """Figure 3's curve: mean L_t of theta_hybrid over that of theta_vlb, for each t."""
    first, second = hybrid.measures["bound"]["per_t"], vlb.measures["bound"]["per_t"]
    return [max(a, 1e-12) / max(b, 1e-12) for a, b in zip(first, second, strict=True)]


def _told(value: Estimate) -> str:
    return f"{value[0]:.4g}" + (f" ± {value[1]:.2g}" if value[1] else "")

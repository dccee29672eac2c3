"""A claim of the paper, and the finding: what an ablation's numbers say about the claim.

A difference counts where it exceeds twice its standard error. The errors of both sides are added as if they were
independent. Models are compared on the same noise, so the true error of a difference is smaller and the verdict cautious.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from evaluation.ablations.claims.estimates import Estimate

Verdict = Literal["as the paper says", "otherwise than the paper says", "not decided here"]
_NUM_ERRORS = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A tested claim of the paper: where the paper makes it, the verdict of the numbers, and the numbers in one sentence."""

    claim: str
    source: str
    verdict: Verdict
    evidence: str

    def to_dict(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def claim(text: str, source: str, smaller: tuple[str, Estimate | None], larger: tuple[str, Estimate | None], unit: str) -> Finding | None:
    """Test a statement of the paper that one number is smaller than another. For distances and bits/dim, smaller is better.

    `smaller` and `larger` are name and estimate of the numbers, in the unit `unit`. If a trial is missing, the estimate is None,
    and so is the result.
    """
    (a_name, a), (b_name, b) = smaller, larger
    if a is None or b is None:
        return None
    difference, error = a[0] - b[0], math.hypot(a[1], b[1])
    evidence = f"{a_name}: {_format(a)}; {b_name}: {_format(b)} {unit}. The difference is {difference:+.3g}"
    evidence += f" ± {error:.2g}." if error else "."
    return Finding(text, source, judge(difference, error), evidence)


def judge(difference: float, error: float = 0.0) -> Verdict:
    """Return the verdict on a difference that is negative in the paper; `error` is its standard error, 0 where it is unknown."""
    if abs(difference) <= _NUM_ERRORS * error:
        return "not decided here"
    return "as the paper says" if difference < 0 else "otherwise than the paper says"


def _format(value: Estimate) -> str:
    return f"{value[0]:.4g}" + (f" ± {value[1]:.2g}" if value[1] else "")

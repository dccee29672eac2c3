"""A claim of the paper, and the finding: what an ablation's numbers say about the claim.

With one run of each trial, a difference counts where it exceeds twice its standard error. The errors of both sides are added
as if they were independent. Models are compared on the same noise, so the true error of a difference is smaller and the
verdict cautious.

With several seeds, each seed gives one difference, between trials that share seed and noise. The differences have the spread
between seeds in them, and the mean counts where its 95% interval excludes the other answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.ablations.claims.estimates import Estimate
from evaluation.records.intervals import MOST_SEEDS, mean_interval, seeds_to_decide
from training.config.plain import PlainRecord

Verdict = Literal["as the paper says", "otherwise than the paper says", "not decided here"]
_NUM_ERRORS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Deciding:
    """The number that decides a claim.

    Attributes:
        name: Its name, as the beginning of a sentence.
        value: The number; for several seeds their mean.
        error: Its standard error, 0 where it is unknown; for several seeds half the width of the 95% interval.
        level: The paper says that the number is below this level.
        above: The paper says that it is above the level instead.
        one_sided: The other side of the level decides nothing: a curve that has not become worse may still do so.
        sides: For a difference, name and value of its two sides, then of further numbers that the evidence shows; else empty.
        unit: Unit of the sides.
        seeds: The number of each seed; empty for one run.
    """

    name: str = "The difference"
    value: float
    error: float = 0.0
    level: float = 0.0
    above: bool = False
    one_sided: bool = False
    sides: tuple[tuple[str, float], ...] = ()
    unit: str = ""
    seeds: tuple[float, ...] = ()

    @property
    def difference(self) -> float:
        """The distance from the level, negative on the paper's side."""
        return self.level - self.value if self.above else self.value - self.level


@dataclass(frozen=True, slots=True)
class Finding(PlainRecord):
    """A tested claim of the paper: where the paper makes it, the verdict of the numbers, and the numbers in words.

    `number` is the number that decides it; None where a run leaves it open.
    """

    claim: str
    source: str
    verdict: Verdict
    evidence: str
    number: Deciding | None = None


def claim(
    text: str,
    source: str,
    smaller: tuple[str, Estimate | None],
    larger: tuple[str, Estimate | None],
    unit: str,
    *,
    beside: tuple[tuple[str, float], ...] = (),
) -> Finding | None:
    """Test a statement of the paper that one number is smaller than another. For distances and bits/dim, smaller is better.

    `smaller` and `larger` are name and estimate of the numbers, in the unit `unit`. If a trial is missing, the estimate is None,
    and so is the result. `beside` are names and values of further numbers of that unit. The evidence shows them; they decide nothing.
    """
    (a_name, a), (b_name, b) = smaller, larger
    if a is None or b is None:
        return None
    difference, error = a[0] - b[0], math.hypot(a[1], b[1])
    evidence = f"{a_name}: {_format(a)}; {b_name}: {_format(b)} {unit}"
    evidence += "".join(f" ({name}: {value:.4g})" for name, value in beside) + f". The difference is {difference:+.3g}"
    evidence += f" ± {error:.2g}." if error else "."
    number = Deciding(value=difference, error=error, sides=((a_name, a[0]), (b_name, b[0]), *beside), unit=unit)
    return Finding(text, source, judge(difference, error), evidence, number)


def judge(difference: float, error: float = 0.0) -> Verdict:
    """Return the verdict on a difference that is negative in the paper; `error` is its standard error, 0 where it is unknown."""
    return _decide(difference, _NUM_ERRORS * error)


def combine_seeds(findings: Sequence[Finding]) -> Finding:
    """Combine the findings of one claim, one for each seed that has its trials."""
    first, count = findings[0], len(findings)
    still_open = [finding for finding in findings if finding.number is None]
    if still_open:
        evidence = f"Not decided in {len(still_open)} of {count} seeds. In the first of them: {still_open[0].evidence}"
        return dataclasses.replace(first, verdict="not decided here", evidence=evidence, number=None)
    numbers = [finding.number for finding in findings if finding.number is not None]
    values = tuple(number.value for number in numbers)
    mean, half_width = map(float, mean_interval(values))
    number = dataclasses.replace(numbers[0], value=mean, error=half_width, sides=_mean_sides(numbers), seeds=values)
    if count == 1:
        evidence = f"Only one seed has these numbers, and an interval needs two. {first.evidence}"
        return dataclasses.replace(first, verdict="not decided here", evidence=evidence, number=number)
    verdict = _decide(number.difference, half_width)
    evidence = _describe(number)
    if number.one_sided and number.difference >= 0:
        verdict = "not decided here"
        evidence += " A longer training may still show it."
    elif verdict == "not decided here":
        seeds = seeds_to_decide(number.difference, values)
        evidence += f" At this mean and spread it would take {f'about {seeds}' if seeds else f'more than {MOST_SEEDS}'} seeds."
    return Finding(first.claim, first.source, verdict, evidence, number)


def _decide(difference: float, margin: float) -> Verdict:
    if abs(difference) <= margin:
        return "not decided here"
    return "as the paper says" if difference < 0 else "otherwise than the paper says"


def _mean_sides(numbers: Sequence[Deciding]) -> tuple[tuple[str, float], ...]:
    """Return the mean of each side. A side whose name depends on the seed, such as the best of some trials, gets all its names."""
    sides = zip(*(number.sides for number in numbers), strict=True)
    return tuple((_join([name for name, _ in side]), math.fsum(value for _, value in side) / len(side)) for side in sides)


def _join(names: Sequence[str]) -> str:
    """Join different names: "the best, a" and "the best, b" are "the best, a or b"."""
    parts = [name.rpartition(", ") for name in dict.fromkeys(names)]
    if len({beginning for beginning, _, _ in parts}) > 1:
        return " or ".join("".join(part) for part in parts)
    return "".join(parts[0][:2]) + " or ".join(sorted(end for _, _, end in parts))


def _describe(number: Deciding) -> str:
    low, high, seeds = number.value - number.error, number.value + number.error, len(number.seeds)
    interval = f"{number.value:+.3g}, 95% interval {low:+.3g} to {high:+.3g}."
    if number.sides:
        sides = "; ".join(f"{name}: {value:.4g}" for name, value in number.sides)
        return f"Means of {seeds} seeds: {sides} {number.unit}. The mean difference is {interval}"
    interval = f"{number.value:.4g}, 95% interval {low:.4g} to {high:.4g}"
    level = f"; the paper's side is {'above' if number.above else 'below'} {number.level:g}"
    return f"{number.name}: mean of {seeds} seeds {interval}{level}."


def _format(value: Estimate) -> str:
    return f"{value[0]:.4g}" + (f" ± {value[1]:.2g}" if value[1] else "")

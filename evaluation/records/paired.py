"""The difference of two evaluations on common noise, with its standard error, its interval and a verdict; verdicts on several at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.special import stdtr

from evaluation.records.intervals import MANY, Interval, student_factor, student_interval
from evaluation.records.stored import Number

Verdict = Literal["better", "worse", "can't be told"]
_LEVEL = 0.05
"""Probability of a wrong verdict where there is no difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A number of a model minus that of another.

    Attributes:
        standard_error: That of the difference, on common noise and images; None if unknown.
        degrees_of_freedom: Of the standard error: one less than the number of blocks or images behind it; None for many.
        num_images: Number of samples, or of test images, of each model; 0 if unknown.
        max_images: Largest number of images that such a number is of; None for any number.
        higher_is_better: False for distances and bits/dim, of which a negative difference is better.
    """

    value: Number
    standard_error: float | None
    degrees_of_freedom: int | None = None
    num_images: int = 0
    max_images: int | None = None
    higher_is_better: bool = False

    @property
    def num_standard_errors(self) -> float | None:
        """The difference in units of its standard error; None where there is no error, 0 where there is no difference."""
        if self.value == 0:
            return 0.0
        return self.value / self.standard_error if self.standard_error else None

    @property
    def interval(self) -> Interval | None:
        """95% interval by Student's t; None where there is no error."""
        return None if self.standard_error is None else student_interval(self.value, self.standard_error, self.degrees_of_freedom)

    @property
    def probability_better(self) -> float | None:
        """Probability that the true difference is better than 0, by Student's t and a flat prior; None where there is no error."""
        errors = self.num_standard_errors
        return None if errors is None else float(stdtr(self.degrees_of_freedom or MANY, errors if self.higher_is_better else -errors))

    @property
    def verdict(self) -> Verdict:
        """Better or worse where the interval excludes 0."""
        low, high = self.interval or (-math.inf, math.inf)
        if low <= 0 <= high:
            return "can't be told"
        return "better" if (low > 0) == self.higher_is_better else "worse"

    @property
    def num_images_needed(self) -> int | None:
        """Number of images with which the interval would exclude 0, if the difference stays: its width falls as their root.

        None where there is no error, no difference, or no number of images, and where it is more than `max_images`.
        """
        errors = self.num_standard_errors
        if not errors or not math.isfinite(errors) or not self.num_images:
            return None
        needed = math.ceil(self.num_images * (student_factor(self.degrees_of_freedom) / errors) ** 2)
        return None if self.max_images is not None and needed > self.max_images else needed

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and what follows from them."""
        names = ("num_standard_errors", "interval", "probability_better", "verdict", "num_images_needed")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in names}}

    @property
    def value_and_interval(self) -> str:
        """The difference, and its interval in brackets where there is one."""
        return f"{self.value:+.3g}" + ("" if self.interval is None else " ({:+.3g} to {:+.3g})".format(*self.interval))

    @property
    def finding(self) -> str:
        """The verdict in words, with the number of images that would tell; empty where there is no error."""
        if self.probability_better is None:
            return ""
        words: str = self.verdict
        if words == "can't be told":
            words += f" with {self.num_images:,} images" if self.num_images else ""
            words += f", about {_rounded(self.num_images_needed):,} would tell" if self.num_images_needed else ""
        return words

    def __str__(self) -> str:
        """Return the difference, its interval and the verdict in words."""
        if self.probability_better is None:
            return self.value_and_interval
        return f"{self.value_and_interval}, better with probability {self.probability_better:.1%}: {self.finding}"


def judge_together(differences: Sequence[Difference]) -> list[Verdict]:
    """Judge several differences at once, by Holm's method.

    Where no model truly differs, all verdicts are "can't be told" with a probability of at least 95%, however many there are; so a
    verdict may be weaker than the difference's own. A single difference keeps its own.
    """
    verdicts: list[Verdict] = ["can't be told"] * len(differences)
    tested = [(2 * min(p, 1 - p), n) for n, each in enumerate(differences) if (p := each.probability_better) is not None]
    for rank, (two_sided, number) in enumerate(sorted(tested)):
        if two_sided * (len(tested) - rank) >= _LEVEL:
            break
        verdicts[number] = differences[number].verdict
    return verdicts


def _rounded(count: int) -> int:
    """Round up to two digits."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / unit) * unit

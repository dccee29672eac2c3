"""The score card of an evaluation: every number with its 95% interval, how the interval is found, and the number's bias.

An interval is over the draw of the samples; for bits/dim it is over that of test images, and for the sliced Wasserstein distance (MIND)
over that of the real images too. It is around the number as it is, bias included: it says where the mean over many draws of as many samples
lies, and compares models at equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.records.intervals import JACKKNIFE, LESS_EXCESS, Interval, jackknife_bias, jackknife_error, student_interval
from evaluation.records.metric_numbers import metric_number
from evaluation.records.numbers import NONE, format_digits, format_error
from training.config.plain import PlainRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreCardRow(PlainRecord):
    """One number of an evaluation.

    Attributes:
        name: Its name in MLflow, such as "distance" or "bits_per_dim".
        title: Its name for people.
        value: The number; NaN if it is not finite.
        standard_error, interval: Over the draw of the samples or test images; the interval is of 95%. None if unknown.
        method: How the interval is found; empty if there is none.
        bias: What the finite number of samples adds; None if unknown.
        is_unbiased: True for an unbiased number, whose bias is 0.
        note: What it is.
        is_share: True for a fraction of images, which people read in percent.
    """

    name: str
    title: str
    value: float
    standard_error: float | None
    interval: Interval | None
    method: str
    bias: float | None
    note: str
    is_share: bool = False
    is_unbiased: bool = False


def distance_score(name: str, value: float, error: float | None, without_blocks: Sequence[float], num_samples: int) -> ScoreCardRow:
    """Return the row of a Frechet distance, with the error of `intervals.distance_error`, or the jackknife's of earlier versions."""
    has_blocks = len(without_blocks) > 1 and all(map(math.isfinite, (value, *without_blocks)))
    return ScoreCardRow(
        name="distance",
        title=name,
        value=value,
        standard_error=error,
        interval=_around(value, error, len(without_blocks) - 1, lowest=0.0),
        method=_method_of(error, without_blocks) if error and has_blocks else "",
        bias=jackknife_bias(value, without_blocks) if has_blocks else None,
        note=f"Frechet distance of {num_samples:,} samples, lower is better",
    )


def _method_of(error: float, without_blocks: Sequence[float]) -> str:
    return LESS_EXCESS if error < 0.999999 * jackknife_error(without_blocks) else JACKKNIFE


def likelihood_score(summary: Mapping[str, Any], split: str) -> ScoreCardRow:
    """Return the row of bits/dim, from the summary of a likelihood."""
    value, error = _number(summary["bits_per_dim"]), summary["standard_error"]
    return ScoreCardRow(
        name="bits_per_dim",
        title="Bits/dim",
        value=value,
        standard_error=error,
        interval=_around(value, error, summary["num_images"] - 1),
        method="closed form for a mean over images, Student's t" if error else "",
        bias=0.0,
        is_unbiased=True,
        note=f"upper bound on {summary['num_images']:,} {split} images, lower is better",
    )


def as_markdown(card: Sequence[ScoreCardRow], heading: str) -> str:
    """Return the card as a table for a registered model's description."""
    rows = [
        f"| {score.title} | {in_words(score.value, score)} | {interval_in_words(score) or NONE} | {score.method or NONE} |"
        for score in card
    ]
    return "\n".join([heading, "", "| number | value | 95% interval | interval by |", "|---|---|---|---|", *rows])


def interval_in_words(score: ScoreCardRow) -> str:
    """Return the interval as text, such as "0.73 to 1.18"; empty if there is none."""
    return "" if score.interval is None else " to ".join(_digits(end, score) for end in score.interval) + _unit(score)


def error_in_words(score: ScoreCardRow) -> str:
    """Return the standard error as text, such as "± 0.10"; empty if it is unknown or 0."""
    return format_error(score.standard_error and score.standard_error * _scale(score), _unit(score))


def in_words(value: float, score: ScoreCardRow) -> str:
    """Return a value of a score as text: to its error's second digit, in percent if it is a share; "-" if it is not finite."""
    return NONE if math.isnan(value) else _digits(value, score) + _unit(score)


def _digits(value: float, score: ScoreCardRow) -> str:
    return format_digits(value * _scale(score), score.standard_error and score.standard_error * _scale(score))


def _scale(score: ScoreCardRow) -> float:
    return 100.0 if score.is_share else 1.0


def _unit(score: ScoreCardRow) -> str:
    return "%" if score.is_share else ""


def metric_score(name: str, item: Mapping[str, Any]) -> ScoreCardRow:
    """Return the row of a further metric."""
    interval, bias = item.get("interval"), item.get("bias")  # results of earlier versions have none
    number = metric_number(name)
    return ScoreCardRow(
        name=name,
        title=number.title,
        value=_number(item["value"]),
        standard_error=item["standard_error"],
        interval=(interval[0], interval[1]) if interval and None not in interval else None,
        method=item.get("method", ""),
        bias=bias,
        note=item["note"],
        is_share=number.share_of is not None,
        is_unbiased=item.get("is_unbiased", bias == 0),  # earlier versions stored 0 for an unbiased number alone
    )


def _number(stored: float | None) -> float:
    return math.nan if stored is None else stored


def _around(value: float, error: float | None, degrees_of_freedom: int, lowest: float = float("-inf")) -> Interval | None:
    if error is None or degrees_of_freedom < 1 or math.isnan(value):
        return None
    low, high = student_interval(value, error, degrees_of_freedom)
    return max(low, lowest), high

"""The fields that a tuning searches: `optim.learning_rate=log:1e-4..1e-2`, `model.dropout=0..0.3`, `model.model_channels=[32,64]`."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.validation import parse_json, require

FORM = "write LOW..HIGH, log:LOW..HIGH or [A,B,C]"
_RANGE = re.compile(r"(?P<log>log:)?(?P<low>\S+?)\.\.(?P<high>\S+)")
_NOT_SEARCHED = {
    "data": "trials on other images can't be compared",
    "evaluation": "it makes the scores by which trials are compared",
    "seed": "the best seed is chance",
}
_OBJECTIVE = "diffusion.objective"
_DIGITS = 4
"""Significant digits of a suggested number, so that an override is short."""

Value = float | int | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One searched field.

    Attributes:
        low, high: Ends of a range, both included; whole numbers where the field is one. None with choices.
        log: Suggest equally often per factor, not per difference.
        choices: Values as an override writes them; empty with a range.
    """

    field: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The field without its section, as tables show it."""
        return self.field.rpartition(".")[2]

    def round(self, value: Value) -> Value:
        """Return a suggestion with four significant digits, inside the range; whole numbers and choices as they are."""
        if not isinstance(value, float) or self.low is None or self.high is None:
            return value
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def value_in(self, experiment: Experiment) -> Value | None:
        """Return the field's value in an experiment, in the form of a suggestion; None if it can't be suggested."""
        own: Value | None = _field(experiment, self.field)
        if self.low is None or self.high is None:
            return next((choice for choice in self.choices if _value_of(experiment, self.field, choice) == own), None)
        return own if isinstance(own, int | float) and self.low <= own <= self.high else None


def parse_search(words: Iterable[str], experiment: Experiment) -> tuple[Axis, ...]:
    """Parse the searched fields, and try each end and each choice in the experiment.

    Args:
        words: Each `section.field=LOW..HIGH`, `section.field=log:LOW..HIGH` or `section.field=[A,B,C]`.
        experiment: The experiment whose fields they are.

    Raises:
        UserError: A word is malformed, or names no field, a field twice, one that would make scores incomparable, or one that the
            objective does not use; a range is empty or not of numbers, or a value does not fit.
    """
    axes: dict[str, Axis] = {}
    for word in words:
        require(isinstance(word, str), "search", f"a searched field is text, got {word!r}; {FORM}")
        field, separator, text = (part.strip() for part in word.partition("="))
        require(bool(separator and field and text), word, f"a searched field reads section.field=VALUES; {FORM}")
        require(field not in axes, field, "is searched twice; give all its values at once")
        for part, reason in _NOT_SEARCHED.items():
            require(field.partition(".")[0] != part, field, f"can't be searched: {reason}")
        axes[field] = _parse_choices(field, text, experiment) if text.startswith("[") else _parse_range(field, text, experiment)
    require(bool(axes), "search", f"names no field; {FORM}, like optim.learning_rate=log:1e-4..1e-2")
    if _OBJECTIVE not in axes:  # else it is suggested with them, and they fit in some trials
        for axis in axes.values():
            for value in axis.choices or (axis.low, axis.high):
                experiment.override([f"{axis.field}={value}"]).require_used()
    return tuple(axes.values())


def overrides_of(params: Mapping[str, Value]) -> tuple[str, ...]:
    """Return suggested values as overrides."""
    return tuple(f"{field}={value}" for field, value in params.items())


def _parse_choices(field: str, text: str, experiment: Experiment) -> Axis:
    try:
        values = parse_json(text)
    except ValueError:
        values = [value.strip() for value in text.removeprefix("[").removesuffix("]").split(",")]
    choices = tuple(value if isinstance(value, str) else json.dumps(value) for value in values)
    require(len(set(choices)) > 1 and len(set(choices)) == len(choices), field, f"needs two or more different choices, got {text}")
    for choice in choices:
        _value_of(experiment, field, choice)
    return Axis(field=field, choices=choices)


def _parse_range(field: str, text: str, experiment: Experiment) -> Axis:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise UserError(f"{field}: {text!r} is no range and no list of choices; {FORM}")
    low, high = (_value_of(experiment, field, match[end]) for end in ("low", "high"))
    for value in (low, high):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        require(is_number, field, f"{value!r} is not a number, so it has no range; write [A,B,C]")
    require(low < high, field, f"the range {text} is empty: {low} is not less than {high}")
    require(not match["log"] or low > 0, field, f"a logarithmic range begins above 0, got {low}")
    return Axis(field=field, low=low, high=high, log=bool(match["log"]))


def _value_of(experiment: Experiment, field: str, text: str) -> Any:
    """Return the value that a text is for a field, if the experiment takes it."""
    try:
        return _field(experiment.override([f"{field}={text}"]), field)
    except UserError as error:  # which may be about another field
        raise error if str(error).startswith(field) else UserError(f"{field}={text}: {error}") from None


def _field(experiment: Experiment, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), experiment)

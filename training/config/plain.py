"""Dataclasses as plain dictionaries, for JSON.

In `as_plain_fields` a field that came later stands only where it differs from its default. So a new field changes no run key, no
protocol card and no stored experiment of those who do not use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from training.config.validation import validate

LATER = {"later": True}
"""Metadata of a field that the first release did not have: `field(default=0.0, metadata=LATER)`."""


def as_plain_fields(section: Any) -> dict[str, Any]:
    """Return the fields of a dataclass and of those inside it, without the later fields that have their defaults."""
    plain = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = as_plain_fields(value)
        elif field.metadata != LATER or value != field.default:
            plain[field.name] = value
    return plain


def as_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values for JSON: tuples become lists, numbers that are not finite become null."""
    return {name: _plain(item) for name, item in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


class PlainRecord:
    """A base of dataclasses that are stored as JSON."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, as `as_plain` converts them."""
        return as_plain(dataclasses.asdict(self))  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Return the object of such values; they are converted to the types of their fields.

        Raises:
            UserError: A field is unknown, missing, of a wrong type or out of its range.
        """
        made: Self = validate(cls, value)
        return made

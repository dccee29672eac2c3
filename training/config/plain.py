"""Dataclasses as plain dictionaries, in which a field that came later stands only where it differs from its default.

So a new field changes no run key, no protocol card and no stored experiment of those who do not use it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

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

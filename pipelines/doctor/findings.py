"""What `iddpm doctor` finds: each thing in order, doubtful or wrong, and what to do about it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

OK, WARNING, FAILURE = "ok", "warning", "failure"
_INDENT = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `OK`, `WARNING` (it works without, or could not be seen) or `FAILURE`.
        subject: What was looked at.
        told: What was seen.
        remedy: What to do; empty where all is well.
    """

    state: str
    subject: str
    told: str
    remedy: str = ""

    def __str__(self) -> str:
        """As a person reads it, the remedy on a line of its own."""
        line = f"{self.state.upper() if self.state == FAILURE else self.state:<{_INDENT}}{self.subject}: {self.told}"
        return f"{line}\n{'':<{_INDENT}}-> {self.remedy}" if self.remedy else line

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

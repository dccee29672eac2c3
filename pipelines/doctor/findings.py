"""A finding of `iddpm doctor`: a thing that is in order, doubtful or wrong, and the remedy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

OK, WARNING, FAILURE = "ok", "warning", "failure"
ASK_ADMINISTRATOR = "ask an administrator of the cluster"
_INDENT = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        state: `OK`, `WARNING` (runs work without it, or it could not be checked) or `FAILURE`.
        subject: The thing that was checked.
        message: What was found.
        remedy: What to do; empty if all is well.
    """

    state: str
    subject: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return a line for a person, with the remedy on a line of its own."""
        line = f"{self.state.upper() if self.state == FAILURE else self.state:<{_INDENT}}{self.subject}: {self.message}"
        return f"{line}\n{'':<{_INDENT}}-> {self.remedy}" if self.remedy else line

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)

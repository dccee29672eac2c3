"""Numbers and their standard errors as text."""

from __future__ import annotations

import math

NONE = "-"
"""Shown in a table in place of a missing number."""
_TOO_LARGE = 1e7


def format_digits(value: float, error: float | None) -> str:
    """Format a value to the second digit of its error; to four digits where the error is unknown, or the value too large to be read."""
    if error is None or not 0 < error < math.inf or abs(value) >= _TOO_LARGE:
        return f"{value:.4g}"
    return f"{value:,.{max(0, 1 - math.floor(math.log10(error)))}f}"


def format_error(error: float | None, unit: str = "") -> str:
    """Format an error to its second digit, such as "± 0.32"; empty where it is unknown or 0."""
    return f"± {format_digits(error, error)}{unit}" if error else ""


def format_estimate(value: float | None, error: float | None = None) -> str:
    """Format a value with its error for a page, such as "3.14 ± 0.32"; "-" if there is none."""
    return NONE if value is None or math.isnan(value) else f"{format_digits(value, error)} {format_error(error)}".rstrip()


def plain_estimate(value: float | None, error: float | None, digits: int = 4) -> str:
    """Format a value with its error in ASCII for a terminal, such as "3.142 +- 0.32"; "-" if there is none."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:#.{digits}g}".rstrip(".") + (f" +- {error:#.2g}".rstrip(".") if error else "")

"""The error that every room raises for what a user did wrong, and the message of any error."""

from __future__ import annotations


class UserError(ValueError):
    """A value that a user gave cannot be used; the message is one line that names the value and the remedy."""


def lines_of(error: BaseException) -> list[str]:
    """Return the lines of an error's message; where it has none, the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()

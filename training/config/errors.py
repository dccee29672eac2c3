"""The error that every package raises for what a user did wrong, and the message of any error."""

from __future__ import annotations


class UserError(ValueError):
    """A value that a user gave cannot be used; the message is one line that names the value and the remedy."""


def in_one_line(text: object, longest: int | None = None) -> str:
    """Return a text, or the message of an error, with a space for each run of white space, cut after `longest` characters."""
    return " ".join(str(text).split())[:longest]


def lines_of(error: BaseException) -> list[str]:
    """Return the lines of an error's message; where it has none, the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()

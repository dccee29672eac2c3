"""The error of a user: something that the caller wrote is wrong, and the message says what to write."""

from __future__ import annotations


class UserError(ValueError):
    """A value that a user gave cannot be used; the message is one line that names the value and the remedy."""

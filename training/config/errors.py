"""The error that every room raises for what a user did wrong."""

from __future__ import annotations


class UserError(ValueError):
    """A value that a user gave cannot be used; the message is one line that names the value and the remedy."""

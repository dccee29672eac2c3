"""The help of a command as plain text. It wraps, where typer's boxes cut names and examples short on a narrow terminal or in a pipe."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose help is plain text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take typer's arguments without its markup."""
        super().__init__(*args, **{**kwargs, "rich_markup_mode": None})

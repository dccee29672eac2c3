"""The help of a command as plain text, and its arguments. The help wraps, where typer's boxes cut names and examples short in a pipe."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand

from training.config.errors import UserError


class Command(TyperCommand):
    """A command whose help is plain text, and whose required arguments are not empty: no address or name is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take typer's arguments without its markup."""
        super().__init__(*args, **{**kwargs, "rich_markup_mode": None})

    def invoke(self, ctx: Any) -> Any:
        """Run the command; refuse an empty text for a required argument, which a shell makes of a variable that is not set."""
        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and parameter.required and ctx.params.get(str(parameter.name)) == "":
                raise UserError(f"{parameter.metavar or str(parameter.name).upper()} is empty; it takes: {parameter.help}")
        return super().invoke(ctx)

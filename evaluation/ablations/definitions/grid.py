"""A user's own ablation: a grid over one preset, from the command line or from a file's lists."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.ablations.definitions.ablation import Ablation, format_value, grid, require_size
from training.config.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def own_grid(name: str, axes: Mapping[str, Sequence[Any]], preset_name: str, *, title: str = "") -> Ablation:
    """Return the ablation of a user's grid over one preset. Its name becomes the name of a folder; an empty title names the axes.

    Raises:
        UserError: There is no axis, an axis has no list of different values, or the name can't be a folder's.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"the grid {name!r} needs a name that can be a folder's: letters, digits, dots, dashes and underscores")
    if not axes:
        raise UserError(f"the grid {name!r} varies nothing; give an axis like diffusion.vlb_weight=0.001,0.01")
    for path, values in axes.items():
        if not values or not isinstance(values, (list, tuple)):
            raise UserError(f"the grid {name!r}: {path} needs a list of values, got {values!r}")
        if len({format_value(value) for value in values}) < len(values):
            raise UserError(f"the grid {name!r}: {path} has a value twice, {', '.join(map(format_value, values))}")
    require_size(name, math.prod(map(len, axes.values())))
    settings = grid(preset_name, axes)
    return Ablation(
        name=name,
        title=title or f"{name}: {', '.join(path.rpartition('.')[2] for path in axes)} of {preset_name}",
        source="A user's grid",
        varied=tuple(axes),
        paper=settings,
        tiny=settings,
        checkpoint="best",
    )


def parse_grid(words: Iterable[str]) -> dict[str, list[Any]]:
    """Parse words like path=a,b,c into axes; a value that is a list is written [a,b].

    Raises:
        UserError: A word has another form, or a path comes twice.
    """
    axes: dict[str, list[Any]] = {}
    for word in words:
        path, _, values = word.partition("=")
        path = path.strip()
        if not path or not values.strip():
            raise UserError(f"write a grid's axis as section.field=a,b,c; got {word!r}")
        if path in axes:
            raise UserError(f"the grid has {path} twice; give all its values at once, {path}=a,b,c")
        try:
            axes[path] = json.loads(f"[{values}]")
        except json.JSONDecodeError:
            axes[path] = [_parse(value.strip()) for value in values.split(",")]
    return axes


def _parse(word: str) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word

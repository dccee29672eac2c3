"""A user's own ablation: a grid over one preset, as words of the command line or a file's lists say it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.ablations.definitions.ablation import Ablation, grid, plain_word, require_size
from training.config.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def own_grid(name: str, axes: Mapping[str, Sequence[Any]], preset_name: str, *, title: str = "", shared: Iterable[str] = ()) -> Ablation:
    """A user's own ablation.

    Args:
        name: What it will be called.
        axes: Override path -> values.
        preset_name: The experiment that it varies.
        title: In words.
        shared: Overrides of every trial.

    Raises:
        UserError: There is nothing to vary, an axis has no values, or the name can't be a folder's.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"the grid {name!r} needs a name that can be a folder's: letters, digits, dots, dashes and underscores")
    if not axes:
        raise UserError(f"the grid {name!r} varies nothing; give it like diffusion.vlb_weight=0.001,0.01")
    for path, values in axes.items():
        if not values or not isinstance(values, (list, tuple)):
            raise UserError(f"the grid {name!r}: {path} needs a list of values, got {values!r}")
        if len({plain_word(value) for value in values}) < len(values):
            raise UserError(f"the grid {name!r}: {path} has a value twice, {', '.join(map(plain_word, values))}")
    num_trials = 1
    for values in axes.values():
        num_trials *= len(values)
    require_size(name, num_trials)
    rows = grid(preset_name, axes)
    return Ablation(
        name=name,
        title=title or f"{name}: {', '.join(path.rpartition('.')[2] for path in axes)} of {preset_name}",
        source="A grid of one's own",
        varied=tuple(axes),
        paper=rows,
        tiny=rows,
        looks_at="best",
        shared=tuple(shared),
    )


def parse_grid(words: Iterable[str]) -> dict[str, list[Any]]:
    """`path=a,b,c` words as axes; a value that is a list is written [a,b].

    Raises:
        UserError: A word reads otherwise, or a path comes twice.
    """
    axes: dict[str, list[Any]] = {}
    for word in words:
        path, separator, values = word.partition("=")
        path = path.strip()
        if not separator or not path or not values.strip():
            raise UserError(f"a grid's axis reads section.field=a,b,c; got {word!r}")
        if path in axes:
            raise UserError(f"the grid has {path} twice; give all its values at once, {path}=a,b,c")
        try:
            axes[path] = json.loads(f"[{values}]")
        except json.JSONDecodeError:
            axes[path] = [_parsed(value.strip()) for value in values.split(",")]
    return axes


def _parsed(word: str) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word

"""Named experiments: the paper's, small ones for a laptop, and starting points for a user's own images."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable
from typing import Any

from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.tables import paper, small
from training.config.tables.row import Preset

PRESETS: dict[str, Preset] = {
    row.experiment.name: row for row in (*small.digits_rows(), *small.fashion_mnist_rows(), *paper.rows(), *small.own_data_rows())
}


def names() -> tuple[str, ...]:
    """Return every preset's name, in the order of the tables."""
    return tuple(PRESETS)


def find_preset(name: str) -> Preset:
    """Return the row of a preset: the experiment, the source of its numbers, and the paper's results; refuse an unknown name."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`iddpm presets` lists them, and an experiment file's name ends in .toml"
        raise UserError(f"there is no preset {name!r}; {hint}")
    return PRESETS[name]


def preset(name: str, overrides: Iterable[str] = ()) -> Experiment:
    """Return the experiment of that name, with overrides applied.

    Args:
        overrides: Each `section.field=value`; see `Experiment.override`.

    Raises:
        UserError: No preset has that name, or an override is invalid.
    """
    words = overrides if isinstance(overrides, str) else tuple(overrides)
    if all(isinstance(word, str) for word in words):
        return _experiment(name, words)
    return find_preset(name).experiment.override(words)  # which refuses them


@functools.lru_cache(maxsize=4096)
def _experiment(name: str, overrides: Iterable[str]) -> Experiment:
    """Return it as `preset` does; each step of a sweep asks for those of all its trials, several times."""
    return find_preset(name).experiment.override(overrides)


def describe(name: str) -> dict[str, Any]:
    """Return a preset's row as plain data: name, source, assumptions, the paper's results, and the experiment."""
    row = find_preset(name)
    results = [{key: value for key, value in dataclasses.asdict(result).items() if value not in (None, ())} for result in row.results]
    for result in results:
        if "overrides" in result:
            result["overrides"] = list(result["overrides"])
    return {"name": name, "source": row.source, "assumed": row.assumed, "results": results, "experiment": row.experiment.to_dict()}


def table() -> list[dict[str, Any]]:
    """Return every row, as `describe` gives it."""
    return [describe(name) for name in PRESETS]

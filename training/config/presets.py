"""The paper's experiments by name, and small ones that run on a laptop; the table is `training.config.preset_table`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.preset_table import PRESETS, PaperResult, Preset


def names() -> tuple[str, ...]:
    """Every preset's name, in the table's order."""
    return tuple(PRESETS)


def cited(name: str) -> Preset:
    """The table's row of that name: the experiment, where its numbers come from, and what the paper reports.

    Raises:
        UserError: No preset has that name.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"the presets are {', '.join(PRESETS)}"
        raise UserError(f"there is no preset {name!r}; {hint}")
    return PRESETS[name]


def preset(name: str, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of that name, with overrides applied.

    Args:
        name: A name from `names()`.
        overrides: Each `section.field=value`; see `Experiment.override`.

    Raises:
        UserError: No preset has that name, or an override is invalid.
    """
    return cited(name).experiment.override(overrides)


def paper_results(experiment: Experiment) -> tuple[PaperResult, ...]:
    """What the paper reports of exactly this experiment, but for its seed; empty where it reports nothing.

    Args:
        experiment: Of any preset, with or without overrides.
    """
    if experiment.name not in PRESETS:
        return ()
    row = PRESETS[experiment.name]
    return tuple(result for result in row.results if row.experiment.override([*result.overrides, f"seed={experiment.seed}"]) == experiment)


def describe(name: str) -> dict[str, Any]:
    """A row of the table as plain data: name, source, assumptions, the paper's results, and the experiment."""
    row = cited(name)
    return {
        "name": name,
        "source": row.source,
        "assumed": row.assumed,
        "results": [
            {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(result).items()
                if value not in (None, ())
            }
            for result in row.results
        ],
        "experiment": row.experiment.to_dict(),
    }


def table() -> list[dict[str, Any]]:
    """Every row of the table, as `describe` gives it."""
    return [describe(name) for name in PRESETS]

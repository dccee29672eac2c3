"""Named ablations: which settings of an experiment are varied, so that each is a few lines to check against the paper."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from training.config import ConfigError
from training.presets import preset

MAX_TRIALS = 64
"""KFP fails on loops of some hundred iterations; a grid that needs more wants to be several ablations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """A grid over an experiment.

    Attributes:
        name: What a user asks for.
        source: Where the paper reports it.
        axes: Override path -> the values that it takes, as JSON would say them. The grid is their product.
    """

    name: str
    source: str
    axes: dict[str, tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One point of a grid.

    Attributes:
        name: What differs, in words: "vlb_weight=0.01 stop_gradient=false".
        values: Override path -> value.
        overrides: All overrides of the trial's experiment: the user's, then the grid's.
    """

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]


_ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            name="hybrid-weight",
            source="Supplement, table 1: lambda and the stop-gradient of L_hybrid",
            axes={"diffusion.vlb_weight": (0.001, 0.01), "diffusion.stop_gradient": (True, False)},
        ),
    )
}


def names() -> tuple[str, ...]:
    """Every ablation's name."""
    return tuple(_ABLATIONS)


def ablation(name: str) -> Ablation:
    """The ablation of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in _ABLATIONS:
        close = difflib.get_close_matches(name, _ABLATIONS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the ablations are {', '.join(_ABLATIONS)}"
        raise ConfigError(f"there is no ablation {name!r}; {hint}")
    return _ABLATIONS[name]


def trials(name: str, preset_name: str, overrides: Iterable[str] = ()) -> tuple[Trial, ...]:
    """The trials of an ablation of an experiment, each valid.

    Args:
        name: The ablation.
        preset_name: The experiment that it varies.
        overrides: Applied to every trial, before the trial's own.

    Raises:
        ConfigError: A name is unknown, an override is invalid or is what the grid varies, or there are too many trials.
    """
    grid = ablation(name)
    shared = tuple(overrides)
    for item in shared:
        path = item.partition("=")[0].strip()
        if path in grid.axes:
            raise ConfigError(f"{item}: the ablation {name!r} varies {path} itself, over {', '.join(map(_word, grid.axes[path]))}")
    combinations = list(itertools.product(*grid.axes.values()))
    if len(combinations) > MAX_TRIALS:
        raise ConfigError(f"the ablation {name!r} has {len(combinations)} trials; at most {MAX_TRIALS} fit in one pipeline run")
    planned = []
    for combination in combinations:
        values = dict(zip(grid.axes, combination, strict=True))
        own = tuple(f"{path}={_word(value)}" for path, value in values.items())
        label = " ".join(word.split(".", 1)[1] for word in own)
        preset(preset_name, shared + own)  # refuse now what would fail in the middle of a sweep
        planned.append(Trial(name=label, values=values, overrides=shared + own))
    return tuple(planned)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""A request for one ablation: what a user chooses in the pipeline's form or on the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from evaluation.ablations.definitions.ablation import (
    Ablation,
    Checkpoint,
    Scale,
    Trial,
    counts,
    format_value,
    grid,
    parse_scale,
    require_size,
    trials,
)
from evaluation.ablations.definitions.paper import ABLATIONS, find_ablation
from training.config.errors import UserError
from training.config.experiment import Objective
from training.config.plain import PlainRecord
from training.config.validation import KnownFieldsOnly, parse_json, validate_parameter

OBJECTIVES: tuple[str, ...] = ("as named", *get_args(Objective))
"""Objectives that the pipeline's form offers; the first keeps the objective of each trial."""
DEFAULT_PRESET = "as named"
"""The preset in the pipeline's form that keeps the ablation's own experiments."""
OWN_GRID = "own-grid"
"""The entry for a user's own grid among the ablations' names in the pipeline's form."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationRequest(KnownFieldsOnly, PlainRecord):
    """A request.

    Attributes:
        name: Name of the ablation, or of a user's grid.
        preset: Another preset to vary; `DEFAULT_PRESET` keeps the ablation's own.
        objective: One of `OBJECTIVES`.
        grid: A user's axes, path -> values; empty for a named ablation.
        runs: Role -> run or checkpoint, for an ablation that trains nothing.
        seeds: How often each setting is repeated; the trials of a setting differ by seed alone.
        checkpoint: The checkpoint of a user's grid that is measured, "last" or "best"; empty is the best.
    """

    name: str
    scale: Scale
    preset: str = DEFAULT_PRESET
    objective: str = OBJECTIVES[0]
    grid: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    overrides: tuple[str, ...] = ()
    runs: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 1
    checkpoint: str = ""

    def ablation(self) -> Ablation:
        """Return the ablation; raise UserError if there is none of this name, or the grid or the checkpoint is not valid."""
        if self.checkpoint not in ("", *get_args(Checkpoint)):
            raise UserError(f"there is no checkpoint {self.checkpoint!r}; it is one of {', '.join(get_args(Checkpoint))}")
        if not self.grid and self.checkpoint:
            found = find_ablation(self.name)
            raise UserError(f"{self.name} measures the {found.checkpoint} checkpoint of a run; only a grid of your own takes another one")
        if not self.grid:
            return find_ablation(self.name)
        if self.name in ABLATIONS:
            raise UserError(f"{self.name!r} is an ablation of the paper; give a grid of your own another name")
        if self.preset == DEFAULT_PRESET:
            raise UserError(f"the grid {self.name!r} needs an experiment to vary; name a preset")
        checkpoint: Checkpoint = "last" if self.checkpoint == "last" else "best"
        return own_grid(self.name, self.grid, self.preset, title=self.title, checkpoint=checkpoint)

    def trials(self) -> tuple[Trial, ...]:
        """Return its trials; each is a valid experiment, or refused as `evaluation.ablations.definitions.ablation.trials` does."""
        if self.objective not in OBJECTIVES:
            raise UserError(f"there is no objective {self.objective!r}; it is one of {', '.join(OBJECTIVES)}")
        return trials(
            self.ablation(),
            self.scale,
            preset_name=self.preset if self.varies_another else "",
            objective=None if self.objective == OBJECTIVES[0] else self.objective,  # type: ignore[arg-type]
            overrides=self.overrides,
            runs=self.runs,
            seeds=self.seeds,
        )

    @property
    def changes(self) -> tuple[str, ...]:
        """Changes of every trial to the named ablation, as text."""
        objective = () if self.objective == OBJECTIVES[0] else (f"objective {self.objective}",)
        return (*objective, *self.overrides)

    @property
    def all_changes(self) -> tuple[str, ...]:
        """The preset, where a named ablation varies another one, and `changes`."""
        return (*([f"preset {self.preset}"] if self.varies_another else []), *self.changes)

    @property
    def varies_another(self) -> bool:
        """True if a named ablation varies another preset than its own."""
        return self.preset != DEFAULT_PRESET and not self.grid

    def counts(self) -> tuple[int, ...]:
        """Return the counts of timesteps of its measures."""
        return counts(self.ablation(), self.scale)

    def registered(self) -> list[str]:
        """Return the plan registered for the small scale, as lines: its reason (or the changes to it), then what decides each claim."""
        small = self.ablation().small
        if self.scale != "small" or small is None:
            return []
        differs = f"The plan was registered without these changes: {', '.join(self.all_changes)}."
        return [differs if self.all_changes else small.reason, *(claim.describe() for claim in small.claims)]

    def key(self) -> str:
        """Return the name of its directory and MLflow run: the same experiments with the same measures have the same key."""
        identities = [[trial.label, trial.experiment.to_dict(), trial.run_uri, trial.measures] for trial in self.trials()]
        identity = json.dumps([self.name, self.scale, identities, self.counts(), self.ablation().checkpoint], sort_keys=True)
        return f"{self.name}-{self.scale}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def folder(self) -> str:
        """Return the name of the folder of its reports on one machine. With changes, a preset, a grid or runs it has its own."""
        seeds = f"-{self.seeds}-seeds" if self.seeds > 1 else ""
        variant = f"-{self.key()[-10:]}" if self.changes or self.varies_another or self.grid or self.runs else ""
        return f"{self.name}-{self.scale}{seeds}{variant}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def command(self) -> str:
        """Return the command that makes the same request."""
        words = ["iddpm", "ablate", self.name, "--scale", self.scale]
        words += ["--preset", self.preset] if self.preset != DEFAULT_PRESET else []
        words += ["--objective", self.objective] if self.objective != OBJECTIVES[0] else []
        words += ["--seeds", str(self.seeds)] if self.seeds > 1 else []
        words += ["--checkpoint", self.checkpoint] if self.checkpoint else []
        for path, values in self.grid.items():
            words += ["--grid", _axis_word(path, values)]
        for item in self.overrides:
            words += ["--set", item]
        for role, uri in self.runs.items():
            words += ["--run", f"{role}={uri}"]
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationOptions(KnownFieldsOnly):
    """The pipeline's parameter `ablation_options`: `seeds`, `runs` and `checkpoint` as in `AblationRequest`."""

    seeds: int = 1
    runs: dict[str, str] = field(default_factory=dict)
    checkpoint: str = ""


def from_form(
    name: str, scale: str, grid: Mapping[str, Any], options: Mapping[str, Any], preset: str, objective: str, overrides: Sequence[str]
) -> AblationRequest:
    """Make a request from the values of the pipeline's form, which are those of `AblationRequest`; a user's grid is named `OWN_GRID`.

    `options` has fields of `AblationOptions`; a missing one has its default.

    Raises:
        UserError: There is no such scale, a user's grid has no axes, or an option is unknown or does not fit.
    """
    if name == OWN_GRID and not grid:
        raise UserError('a grid of your own needs its axes: ablation_grid, like {"diffusion.vlb_weight": [0.001, 0.01]}')
    read: AblationOptions = validate_parameter(AblationOptions, options, "ablation_options")
    return AblationRequest(
        name=name,
        scale=parse_scale(scale),
        preset=preset,
        objective=objective,
        grid=grid,
        overrides=tuple(overrides),
        runs=read.runs,
        seeds=read.seeds,
        checkpoint=read.checkpoint,
    )


def from_parameters(values: Mapping[str, Any]) -> AblationRequest:
    """Make a request from the parameters of the ablation pipeline. It raises as `from_form` does."""
    ablation = [values[f"ablation_{name}"] for name in ("name", "scale", "grid", "options")]
    experiment = [values[f"experiment_{name}"] for name in ("preset", "objective", "overrides")]
    return from_form(*ablation, *experiment)


def own_grid(
    name: str, axes: Mapping[str, Sequence[Any]], preset_name: str, *, title: str = "", checkpoint: Checkpoint = "best"
) -> Ablation:
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
        checkpoint=checkpoint,
    )


def parse_grid(words: Iterable[str]) -> dict[str, list[Any]]:
    """Parse words like path=a,b,c into axes, where a list is written [a,b]; refuse another form, and a path that comes twice."""
    axes: dict[str, list[Any]] = {}
    for word in words:
        path, _, values = word.partition("=")
        path = path.strip()
        if not path or not values.strip():
            raise UserError(f"write a grid's axis as section.field=a,b,c; got {word!r}")
        if path in axes:
            raise UserError(f"the grid has {path} twice; give all its values at once, {path}=a,b,c")
        try:
            axes[path] = parse_json(f"[{values}]")
        except ValueError:
            axes[path] = [_parse(value.strip()) for value in values.split(",")]
    return axes


def _axis_word(path: str, values: Sequence[Any]) -> str:
    """Return the word that `parse_grid` reads as this axis: values in quotes only where they need them, as those with commas do."""
    plain = f"{path}={','.join(map(format_value, values))}"
    return plain if parse_grid([plain]) == {path: list(values)} else f"{path}={json.dumps(list(values))[1:-1]}"


def _parse(word: str) -> Any:
    try:
        return parse_json(word)
    except ValueError:
        return word

"""One ablation as it was asked for, in plain words that a pipeline, a command line and a report's page carry alike."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from evaluation.ablations.definitions.ablation import SCALES, Ablation, Scale, Trial, counts, plain_word, trials
from evaluation.ablations.definitions.grid import own_grid
from evaluation.ablations.definitions.paper import ABLATIONS, named
from training.config.errors import UserError
from training.config.experiment import Objective

OBJECTIVES: tuple[str, ...] = ("as named", *get_args(Objective))
"""What a form offers as the objective; the first leaves every trial its own."""
DEFAULT_PRESET = "as named"
"""What a form says for the ablation's own experiments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationRequest:
    """What was asked for.

    Attributes:
        name: Of the ablation, or of one's own grid.
        scale: "paper" or "tiny".
        preset: Another experiment to vary; `DEFAULT_PRESET` takes the ablation's own.
        objective: One of `OBJECTIVES`.
        grid: One's own axes, path -> values; empty for a named ablation.
        title: Of one's own grid, in words.
        overrides: Of every trial.
        runs: Role -> run or checkpoint, for an ablation that trains nothing.
    """

    name: str
    scale: Scale
    preset: str = DEFAULT_PRESET
    objective: str = OBJECTIVES[0]
    grid: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    overrides: tuple[str, ...] = ()
    runs: Mapping[str, str] = field(default_factory=dict)

    def ablation(self) -> Ablation:
        """What is compared.

        Raises:
            UserError: There is no such ablation, or the grid is not one.
        """
        if not self.grid:
            return named(self.name)
        if self.name in ABLATIONS:
            raise UserError(f"{self.name!r} is an ablation of the paper; give a grid of your own another name")
        if self.preset == DEFAULT_PRESET:
            raise UserError(f"the grid {self.name!r} needs an experiment to vary; name a preset")
        return own_grid(self.name, self.grid, self.preset, title=self.title)

    def trials(self) -> tuple[Trial, ...]:
        """Its trials, each valid.

        Raises:
            UserError: As for `evaluation.ablations.definitions.ablation.trials`.
        """
        if self.objective not in OBJECTIVES:
            raise UserError(f"there is no objective {self.objective!r}; it is one of {', '.join(OBJECTIVES)}")
        return trials(
            self.ablation(),
            self.scale,
            preset_name=self.preset if self.varies_another else "",
            objective=None if self.objective == OBJECTIVES[0] else self.objective,  # type: ignore[arg-type]
            overrides=self.overrides,
            runs=self.runs,
        )

    @property
    def changes(self) -> tuple[str, ...]:
        """What every trial differs by from the ablation as it is named, in words."""
        objective = () if self.objective == OBJECTIVES[0] else (f"objective {self.objective}",)
        return (*objective, *self.overrides)

    @property
    def varies_another(self) -> bool:
        """Whether a named ablation's grid is over another experiment than its own."""
        return self.preset != DEFAULT_PRESET and not self.grid

    def counts(self) -> tuple[int, ...]:
        """The counts of timesteps that its measures go through."""
        return counts(self.ablation(), self.scale)

    def key(self) -> str:
        """Name of its directory and of its MLflow run: the same experiments, measured alike, have the same key."""
        told = [[trial.label, trial.experiment.to_dict(), trial.run_uri, trial.measures] for trial in self.trials()]
        identity = json.dumps([self.name, self.scale, told, self.counts(), self.ablation().looks_at], sort_keys=True)
        return f"{self.name}-{self.scale}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> AblationRequest:
        """What `to_dict` gave."""
        return cls(**{**value, "overrides": tuple(value["overrides"])})

    def command(self) -> str:
        """The words that ask for it again."""
        words = ["iddpm", "ablate", self.name, "--scale", self.scale]
        words += ["--preset", self.preset] if self.preset != DEFAULT_PRESET else []
        words += ["--objective", self.objective] if self.objective != OBJECTIVES[0] else []
        for path, values in self.grid.items():
            words += ["--grid", f"{path}={','.join(map(plain_word, values))}"]
        for item in self.overrides:
            words += ["--set", item]
        for role, uri in self.runs.items():
            words += ["--run", f"{role}={uri}"]
        return shlex.join(words)


OWN_GRID = "own-grid"
"""What a form calls a grid of one's own, among the ablations' names."""


def from_form(
    name: str, scale: str, grid: Mapping[str, Any], runs: Mapping[str, Any], preset: str, objective: str, overrides: Sequence[str]
) -> AblationRequest:
    """A request in the words of the pipeline's form.

    Args:
        name: Of an ablation, or of the grid.
        scale: "paper" or "tiny".
        grid: One's own axes; empty for a named ablation.
        runs: Role -> run or checkpoint.
        preset: Another experiment to vary, or `DEFAULT_PRESET`.
        objective: One of `OBJECTIVES`.
        overrides: Of every trial.

    Raises:
        UserError: There is no such scale, or a grid's values are not lists.
    """
    if scale not in SCALES:
        raise UserError(f"there is no scale {scale!r}; it is {' or '.join(SCALES)}")
    if name == OWN_GRID and not grid:
        raise UserError('a grid of one\'s own needs its axes: ablation_grid, like {"diffusion.vlb_weight": [0.001, 0.01]}')
    return AblationRequest(
        name=name,
        scale=scale,
        preset=preset,
        objective=objective,
        grid=grid,
        overrides=tuple(overrides),
        runs={role: str(uri) for role, uri in runs.items()},
    )


def of_parameters(values: Mapping[str, Any]) -> AblationRequest:
    """A request from the parameters of the ablation pipeline, each given.

    Raises:
        UserError: As for `from_form`.
    """
    return from_form(
        values["ablation_name"],
        values["ablation_scale"],
        values["ablation_grid"],
        values["ablation_runs"],
        values["experiment_preset"],
        values["experiment_objective"],
        values["experiment_overrides"],
    )

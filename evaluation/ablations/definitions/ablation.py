"""What an ablation is: which experiments it compares, and what is taken of each.

The paper's are in `paper.py` beside this file; a user's own is a grid over one preset (`grid.py`). A trial is a preset's
name and overrides, as everywhere: trained by itself the same experiment has the same run, so that ablations share runs
with each other and with everything else.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from training.config.errors import UserError
from training.config.experiment import Experiment, Objective
from training.config.presets import preset

MAX_TRIALS = 64
"""KFP fails on loops of some hundred iterations; a grid that needs more wants to be several ablations."""

Scale = Literal["paper", "tiny"]
Measure = Literal[
    "final", "sampling-steps", "figure-1", "likelihood-steps", "bound", "samples", "history", "history-likelihood", "raw-weights"
]
Joint = Literal["none", "ensemble", "cascade"]
Looked = Literal["last", "best"]

SCALES: tuple[Scale, ...] = get_args(Scale)

_FEWEST_TINY = 5
_OF_HYBRID_ALONE = ("diffusion.vlb_weight", "diffusion.stop_gradient")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One trial, as the table writes it.

    Attributes:
        preset: Its experiment.
        overrides: What is changed in it: path -> value, as JSON would say it.
        role: What the trial is to the others, where that matters ("hybrid", "vlb", "first-stage"). An evaluation of runs
            that exist calls them so.
        measures: What is taken of this trial; None takes the ablation's.
    """

    preset: str
    overrides: Mapping[str, Any]
    role: str = ""
    measures: tuple[Measure, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """A comparison of experiments.

    Attributes:
        name: What a user asks for.
        title: What it is, in words.
        source: Where the paper reports it.
        varied: Paths of the experiment that tell its trials apart: the table's columns and MLflow's parameters.
        paper: The trials that the paper has.
        tiny: The same on the digits.
        measures: What is taken of each trial: "final" is the reported distance and bits/dim, the others are in
            `evaluation.ablation_measures`.
        joint: What is taken of several trials together, at the end.
        looks_at: Which checkpoint of a run: the last with its first average, since the paper compares at equal numbers of
            updates; or the best, chosen by distance, where the best attainable is the question.
        trains: False where it looks at runs that exist.
        runs_of: Of such a one, the ablation whose runs it looks at, at the tiny scale.
        counts: Counts of timesteps at the paper's scale; divided by ten they are the tiny scale's (`counts`).
        shared: Overrides of every trial that serve the measuring and change no result of the paper's.
    """

    name: str
    title: str
    source: str
    varied: tuple[str, ...]
    paper: tuple[Row, ...]
    tiny: tuple[Row, ...]
    measures: tuple[Measure, ...] = ("final",)
    joint: Joint = "none"
    looks_at: Looked = "last"
    trains: bool = True
    runs_of: str = ""
    counts: tuple[int, ...] = ()
    shared: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trial of a planned ablation.

    Attributes:
        label: What differs, in words: "vlb_weight=0.01 stop_gradient=false"; of an evaluation of runs, its role.
        values: What differs, by short name.
        preset: Its experiment.
        overrides: All overrides of it: the shared ones, the trial's own, then the user's.
        own: The trial's own alone.
        role: See `Row`.
        run_uri: A run or checkpoint to look at in place of the experiment's own run; empty in most.
        measures: What is taken of it.
    """

    label: str
    values: dict[str, Any]
    preset: str
    overrides: tuple[str, ...]
    own: tuple[str, ...] = ()
    role: str = ""
    run_uri: str = ""
    measures: tuple[Measure, ...] = ("final",)

    @property
    def experiment(self) -> Experiment:
        """The trial's experiment."""
        return preset(self.preset, self.overrides)


def grid(preset_name: str, axes: Mapping[str, Sequence[Any]], **common: Any) -> tuple[Row, ...]:
    """Every combination of the axes' values, the last axis running fastest.

    Args:
        preset_name: What is varied.
        axes: Override path -> values.
        **common: Overrides of every row.
    """
    return tuple(
        Row(preset=preset_name, overrides={**common, **dict(zip(axes, values, strict=True))})
        for values in itertools.product(*axes.values())
    )


def trials(
    ablation: Ablation,
    scale: Scale,
    *,
    preset_name: str = "",
    objective: Objective | None = None,
    overrides: Iterable[str] = (),
    runs: Mapping[str, str] | None = None,
) -> tuple[Trial, ...]:
    """The trials of an ablation, each valid.

    Args:
        ablation: Which.
        scale: The paper's experiments, or the same on the digits.
        preset_name: Another experiment to vary in place of the ablation's; for those that vary a single one.
        objective: Another objective for every trial; None leaves each its own.
        overrides: Applied to every trial, after its own; what the ablation varies is not for them to change.
        runs: Role -> run or checkpoint to look at, for an ablation that trains nothing.

    Raises:
        UserError: A name is unknown, an override is invalid or is what the ablation varies, or there are too many trials.
    """
    if scale not in SCALES:
        raise UserError(f"there is no scale {scale!r}; it is {' or '.join(SCALES)}")
    rows = ablation.paper if scale == "paper" else ablation.tiny
    require_size(ablation.name, len(rows))
    if preset_name:
        rows = _on_another(ablation, rows, preset_name)
    runs = _checked_runs(ablation, rows, runs or {})
    user = (*(objective_overrides(objective) if objective else ()), *overrides)
    _require_free(ablation, user)
    planned = []
    for row in rows:
        own = tuple(f"{path}={plain_word(value)}" for path, value in row.overrides.items())
        shared = () if row.role in runs else ablation.shared
        everything = (*shared, *own, *user)
        experiment = preset(row.preset, everything)  # refuse now what would fail in the middle of a sweep
        _require_effect(ablation, experiment)
        values = values_of(ablation, experiment)
        planned.append(
            Trial(
                label=row.role or " ".join(f"{name}={plain_word(value)}" for name, value in values.items()),
                values=values,
                preset=row.preset,
                overrides=everything,
                own=own,
                role=row.role,
                run_uri=runs.get(row.role, ""),
                measures=ablation.measures if row.measures is None else row.measures,
            )
        )
    _require_different(ablation, planned)
    return tuple(planned)


def values_of(ablation: Ablation, experiment: Experiment) -> dict[str, Any]:
    """What the ablation varies, as it is in an experiment: short name -> value; the whole path where two have one short name."""
    short = [_short(path) for path in ablation.varied]
    return {(name if short.count(name) == 1 else path): _value(experiment, path) for name, path in zip(short, ablation.varied, strict=True)}


def counts(ablation: Ablation, scale: Scale) -> tuple[int, ...]:
    """The ablation's counts of timesteps at a scale; at the tiny one none below 5.

    With fewer, DDIM's even stride begins too far from pure noise to draw anything: 2 of 100 begin at t = 50.
    """
    if scale == "paper":
        return ablation.counts
    return tuple(count // 10 for count in ablation.counts if count // 10 >= _FEWEST_TINY)


def objective_overrides(objective: Objective) -> tuple[str, ...]:
    """What training by another objective changes: what it asks of the variance, and how the paper draws t for it."""
    return (
        f"diffusion.objective={objective}",
        f"diffusion.variance={'fixed_large' if objective == 'simple' else 'learned_range'}",
        f"diffusion.timestep_sampler={'loss_second_moment' if objective == 'vlb' else 'uniform'}",
        *(["evaluation.sampling.spacing="] if objective == "simple" else []),  # a fixed variance does not stride well
    )


def choices(name: str, known: Iterable[str]) -> str:
    """What to say to a name that is not known: the nearest, or all."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the ablations are {', '.join(names)}"


def _on_another(ablation: Ablation, rows: Sequence[Row], preset_name: str) -> tuple[Row, ...]:
    own = {row.preset for row in rows}
    if len(own) > 1 or any(row.role for row in rows):
        raise UserError(f"the ablation {ablation.name!r} compares presets of its own ({', '.join(sorted(own))}), it varies no other")
    return tuple(replace(row, preset=preset_name) for row in rows)


def _checked_runs(ablation: Ablation, rows: Sequence[Row], runs: Mapping[str, str]) -> dict[str, str]:
    roles = [row.role for row in rows if row.role] if not ablation.trains else []
    for role in runs:
        if role not in roles:
            hint = f"it looks at {', '.join(roles)}" if roles else "it trains its own runs"
            raise UserError(f"the ablation {ablation.name!r} takes no run {role!r}; {hint}")
    return dict(runs)


def require_size(name: str, num_trials: int) -> None:
    """Refuses more trials than one pipeline run takes.

    Raises:
        UserError: There are more than `MAX_TRIALS`.
    """
    if num_trials > MAX_TRIALS:
        raise UserError(
            f"the ablation {name!r} has {num_trials:,} trials; at most {MAX_TRIALS} fit in one pipeline run, make it several ablations"
        )


def _require_free(ablation: Ablation, overrides: Iterable[str]) -> None:
    for item in overrides:
        path = item.partition("=")[0].strip()
        if path in ablation.varied:
            raise UserError(f"{item}: the ablation {ablation.name!r} varies {path} itself")


def _require_effect(ablation: Ablation, experiment: Experiment) -> None:
    for path in _OF_HYBRID_ALONE:
        if path in ablation.varied and experiment.diffusion.objective != "hybrid":
            raise UserError(f"the ablation {ablation.name!r} varies {path}, which L_{experiment.diffusion.objective} does not have")


def _require_different(ablation: Ablation, planned: Sequence[Trial]) -> None:
    seen: dict[str, str] = {}
    for trial in planned:
        identity = trial.run_uri or trial.experiment.to_json()
        if identity in seen:
            raise UserError(f"the ablation {ablation.name!r}: trials {seen[identity]!r} and {trial.label!r} are the same experiment")
        seen[identity] = trial.label


def _short(path: str) -> str:
    return {"data.name": "data", "model.model_channels": "width"}.get(path, path.rpartition(".")[2])


def _value(experiment: Experiment, path: str) -> Any:
    value: Any = experiment
    for part in path.split("."):
        if not hasattr(value, part):
            raise UserError(f"{path}: an experiment has no such field")
        value = getattr(value, part)
    return list(value) if isinstance(value, tuple) else value


def plain_word(value: Any) -> str:
    """A value as an override says it."""
    return value if isinstance(value, str) else json.dumps(value)

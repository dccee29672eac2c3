"""An ablation: the experiments that it compares, and what is measured for each.

The paper's ablations are in `paper.py`; a user's own is a grid over one preset (`request.py`). A trial is a preset and its
overrides. Its run is found by its experiment, so ablations share runs with each other and with single trainings.
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
from training.config.run_keys import training_fields

MAX_TRIALS = 1000
"""Trials of an ablation at most, so that a mistyped grid is refused before they are made; a run on a cluster takes fewer."""

Scale = Literal["paper", "small", "tiny"]
Measure = Literal[
    "final", "sampling-steps", "figure-1", "likelihood-steps", "bound", "samples", "history", "history-likelihood", "raw-weights"
]
Joint = Literal["none", "ensemble", "cascade"]
Checkpoint = Literal["last", "best"]

SCALES: tuple[Scale, ...] = get_args(Scale)

_MIN_TINY_COUNT = 5
_HYBRID_ONLY = ("diffusion.vlb_weight", "diffusion.stop_gradient")
_SHORT_NAMES = {"data.name": "data", "model.model_channels": "width"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One trial in the definition of an ablation.

    Attributes:
        overrides: What it changes in the preset: path -> value, as in JSON.
        role: Its role ("hybrid", "vlb", "first-stage"), if other trials or measures refer to it; a user names runs by role.
        measures: Its measures; None takes those of the ablation.
    """

    preset: str
    overrides: Mapping[str, Any]
    role: str = ""
    measures: tuple[Measure, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedClaim:
    """A claim of the paper, and the number that decides it, registered before the first run.

    Attributes:
        text: The claim as `evaluation.ablations.claims.findings` words it.
        number: The number, taken within a seed.
        level: The paper says that the number is below this level.
        above: The paper says that it is above the level instead.
    """

    text: str
    number: str
    level: float = 0.0
    above: bool = False

    def describe(self) -> str:
        """Return the claim with its number and direction in one line."""
        return f"{self.text} Decided by: {self.number}; the paper's side is {'above' if self.above else 'below'} {self.level:g}."


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallScale:
    """An ablation at the scale "small": hours on two cores, made so that the effect can show.

    Attributes:
        settings: Its trials; empty where no experiment of this size can decide the claims.
        reason: Why these settings can show the effect, or why none can and what would.
    """

    settings: tuple[Setting, ...]
    reason: str
    claims: tuple[PlannedClaim, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """A comparison of experiments.

    Attributes:
        source: Where the paper reports it.
        varied: Paths of the experiment that differ between trials: the table's columns and MLflow's parameters.
        paper, tiny: The paper's trials, and the same on the digits.
        small: The same on the digits, trained for long enough, with the registered plan; None for a user's grid.
        measures: What is measured for each trial: "final" is the reported distance and bits/dim, the others are in
            `evaluation.ablations.trials.measures`.
        joint: What is measured for several trials jointly, after all others.
        checkpoint: The checkpoint of a run that is measured: the last with its first average, where the paper compares
            equal numbers of updates; or the best by distance, where the best attainable distance is the question.
        runs_of: For an ablation that only evaluates existing runs: the ablation that trains them at the other scales. Else empty.
        counts: Counts of timesteps at the paper's scale; see `counts`.
        shared: Overrides of every trial that the measures need; they change no result of the paper.
        named_runs: The user may name a run in place of a trial's training; the other trials are trained.
    """

    name: str
    title: str
    source: str
    varied: tuple[str, ...]
    paper: tuple[Setting, ...]
    tiny: tuple[Setting, ...]
    small: SmallScale | None = None
    measures: tuple[Measure, ...] = ("final",)
    joint: Joint = "none"
    checkpoint: Checkpoint = "last"
    runs_of: str = ""
    counts: tuple[int, ...] = ()
    shared: tuple[str, ...] = ()
    named_runs: bool = False

    def settings(self, scale: Scale) -> tuple[Setting, ...]:
        """Return the trials of a scale; refuse one at which no experiment can decide the ablation's claims."""
        if scale == "paper":
            return self.paper
        if not self.tiny:
            raise UserError(f"{self.name!r} repeats the paper's own experiments; take --scale paper, or `iddpm reproduce {self.name}`")
        if scale == "tiny" or self.small is None:
            return self.tiny
        if not self.small.settings:
            raise UserError(f"the ablation {self.name!r} has no scale small: {self.small.reason}")
        return self.small.settings

    @property
    def trains(self) -> bool:
        """False for an ablation that only evaluates existing runs."""
        return not self.runs_of

    @property
    def joint_role(self) -> str:
        """Role and label of the joint measurement; empty where there is none."""
        return {"none": "", "ensemble": "ensemble", "cascade": "two-stage"}[self.joint]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trial of a planned ablation; its role and measures are as in `Setting`.

    Attributes:
        label: What distinguishes it, such as "vlb_weight=0.01 stop_gradient=false"; its role, where it has one.
        values: Short name -> value of what the ablation varies.
        overrides: All its overrides: the shared ones, its own, then the user's, then the seed.
        own: Its own overrides alone.
        run_uri: A run or checkpoint that the user named in place of the experiment's own run; usually empty.
        seed: Its seed, if the ablation repeats every setting with several; else None.
    """

    label: str
    values: dict[str, Any]
    preset: str
    overrides: tuple[str, ...]
    own: tuple[str, ...] = ()
    role: str = ""
    run_uri: str = ""
    measures: tuple[Measure, ...] = ("final",)
    seed: int | None = None

    @property
    def setting(self) -> str:
        """The label without the seed."""
        return setting_of(self.label, self.seed)

    @property
    def experiment(self) -> Experiment:
        """The trial's experiment."""
        return preset(self.preset, self.overrides)


def grid(preset_name: str, axes: Mapping[str, Sequence[Any]], **common: Any) -> tuple[Setting, ...]:
    """Return every combination of the axes' values (path -> values), with `common` overrides; the last axis varies fastest."""
    return tuple(
        Setting(preset=preset_name, overrides={**common, **dict(zip(axes, values, strict=True))})
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
    seeds: int = 1,
) -> tuple[Trial, ...]:
    """Return the trials of an ablation; each is a valid experiment.

    With several seeds, all trials of the first seed come before those of the next, so that an interrupted ablation has whole
    seeds to compare.

    Args:
        scale: The paper's experiments, or the same on the digits, in hours (small) or minutes (tiny).
        preset_name: Another preset to vary, for an ablation that varies a single one; empty keeps its own.
        objective: Another objective for every trial; None keeps each trial's own.
        overrides: The user's overrides of every trial. They apply last and may not change what the ablation varies.
        runs: Role -> run or checkpoint, for an ablation that trains nothing.
        seeds: How often each setting is repeated: with its experiment's seed, and with those after it.

    Raises:
        UserError: A name is unknown, an override is invalid or changes what the ablation varies, there are too many trials, or
            seeds cannot be repeated, because the user named a run or the ablation varies them.
    """
    settings = ablation.settings(parse_scale(scale))
    if seeds < 1:
        raise UserError(f"the number of seeds must be 1 or more, got {seeds}")
    if seeds > 1 and (runs or "seed" in ablation.varied):
        remedy = "a run that you name has one seed" if runs else "it varies the seed itself"
        raise UserError(f"the ablation {ablation.name!r} cannot be repeated with {seeds} seeds: {remedy}; leave the number of seeds at 1")
    require_size(ablation.name, len(settings), seeds)
    if preset_name:
        settings = _with_preset(ablation, settings, preset_name)
    runs = runs or {}
    _require_roles(ablation, settings, runs)
    user = (*(objective_overrides(objective) if objective else ()), *overrides)
    for item in user:
        if (path := item.partition("=")[0].strip()) in ablation.varied:
            raise UserError(f"{item}: the ablation {ablation.name!r} varies {path} itself")
    planned = [_plan_trial(ablation, setting, user, runs) for setting in settings]
    _require_different(ablation, planned)
    return tuple(planned) if seeds == 1 else tuple(_with_seed(trial, number) for number in range(seeds) for trial in planned)


def _plan_trial(ablation: Ablation, setting: Setting, user: Sequence[str], runs: Mapping[str, str]) -> Trial:
    """Return the trial of a setting; refuse now what would fail in the middle of a sweep."""
    own, is_named = format_overrides(setting.overrides), setting.role in runs
    overrides = (*(() if is_named else ablation.shared), *own, *user)
    experiment = preset(setting.preset, overrides)
    if ablation.trains and not is_named:
        experiment.require_guide()
        experiment.require_annealing()
        experiment.require_used()
    for path in _HYBRID_ONLY:
        if path in ablation.varied and experiment.diffusion.objective != "hybrid":
            raise UserError(f"the ablation {ablation.name!r} varies {path}, which L_{experiment.diffusion.objective} does not have")
    values = values_of(ablation, experiment)
    return Trial(
        label=setting.role or " ".join(f"{name}={format_value(value)}" for name, value in values.items()),
        values=values,
        preset=setting.preset,
        overrides=overrides,
        own=own,
        role=setting.role,
        run_uri=runs.get(setting.role, ""),
        measures=ablation.measures if setting.measures is None else setting.measures,
    )


def label_of(setting: str, seed: int | None) -> str:
    """Return the label of a setting's trial with that seed; without one, the setting's own."""
    return setting if seed is None else f"{setting} seed={seed}"


def setting_of(label: str, seed: int | None) -> str:
    """Return the setting of a label that `label_of` made with that seed."""
    return label.removesuffix(label_of("", seed))


def parse_scale(name: str) -> Scale:
    """Return the scale of that name; refuse another."""
    for scale in SCALES:
        if scale == name:
            return scale
    raise UserError(f"there is no scale {name!r}; it is {', '.join(SCALES[:-1])} or {SCALES[-1]}")


def values_of(ablation: Ablation, experiment: Experiment) -> dict[str, Any]:
    """Return short name -> value of what the ablation varies; the name is the whole path where two paths share a short name."""
    names = [_SHORT_NAMES.get(path, path.rpartition(".")[2]) for path in ablation.varied]
    return {(name if names.count(name) == 1 else path): _field(experiment, path) for name, path in zip(names, ablation.varied, strict=True)}


def counts(ablation: Ablation, scale: Scale) -> tuple[int, ...]:
    """Return the ablation's counts of timesteps; on the digits a tenth of the paper's, if that is at least 5.

    With fewer steps, DDIM's even stride starts too far from pure noise to draw anything: 2 of 100 steps start at t = 50.
    """
    if scale == "paper":
        return ablation.counts
    return tuple(count // 10 for count in ablation.counts if count // 10 >= _MIN_TINY_COUNT)


def objective_overrides(objective: Objective) -> tuple[str, ...]:
    """Return what training by another objective changes: the variance, and the paper's sampling of t for it."""
    return (
        f"diffusion.objective={objective}",
        f"diffusion.variance={'fixed_large' if objective == 'simple' else 'learned_range'}",
        f"diffusion.timestep_sampler={'loss_second_moment' if objective == 'vlb' else 'uniform'}",
        *(["evaluation.sampling.spacing="] if objective == "simple" else []),  # a fixed variance needs all steps
    )


def did_you_mean(name: str, known: Iterable[str], kind: str = "ablations") -> str:
    """Return the remedy for an unknown name of a kind: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the {kind} are {', '.join(names)}"


def format_value(value: Any) -> str:
    """Format a value as an override writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def format_overrides(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """Format overrides as path=value."""
    return tuple(f"{path}={format_value(value)}" for path, value in overrides.items())


def require_size(name: str, num_settings: int, seeds: int = 1) -> None:
    """Refuse more trials than anybody wants."""
    if (num_trials := num_settings * seeds) > MAX_TRIALS:
        remedy = "split it up" if seeds == 1 else "take fewer seeds"
        raise UserError(f"the ablation {name!r} has {num_trials:,} trials; it may have {MAX_TRIALS:,}: {remedy}")


def _with_seed(trial: Trial, number: int) -> Trial:
    seed = trial.experiment.seed + number
    return replace(trial, label=label_of(trial.label, seed), seed=seed, overrides=(*trial.overrides, f"seed={seed}"))


def _with_preset(ablation: Ablation, settings: Sequence[Setting], preset_name: str) -> tuple[Setting, ...]:
    own = {setting.preset for setting in settings}
    if len(own) > 1 or any(setting.role for setting in settings):
        raise UserError(f"the ablation {ablation.name!r} compares presets of its own ({', '.join(sorted(own))}); leave the preset out")
    return tuple(replace(setting, preset=preset_name) for setting in settings)


def _require_roles(ablation: Ablation, settings: Sequence[Setting], runs: Mapping[str, str]) -> None:
    roles = [setting.role for setting in settings if setting.role] if ablation.named_runs or not ablation.trains else []
    for role in runs:
        if role not in roles:
            remedy = f"its runs are {', '.join(roles)}" if roles else "it trains its own runs"
            raise UserError(f"the ablation {ablation.name!r} takes no run {role!r}; {remedy}")


def _require_different(ablation: Ablation, planned: Sequence[Trial]) -> None:
    labels: dict[str, str] = {}
    for trial in planned:
        identity = trial.run_uri or json.dumps(training_fields(trial.experiment))
        if identity in labels:
            raise UserError(
                f"the ablation {ablation.name!r}: trials {labels[identity]!r} and {trial.label!r} train the same model; vary what training "
                "reads, and compare samplers or protocols of one model with `iddpm evaluate`"
            )
        labels[identity] = trial.label


def _field(experiment: Experiment, path: str) -> Any:
    value: Any = experiment
    for part in path.split("."):
        if not hasattr(value, part):
            raise UserError(f"{path}: an experiment has no such field")
        value = getattr(value, part)
    return list(value) if isinstance(value, tuple) else value

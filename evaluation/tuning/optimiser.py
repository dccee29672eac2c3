"""Optuna: the next suggestion by TPE (Bergstra et al. 2011), and pruning by asynchronous successive halving (ASHA, Li et al. 2020).

Both are pure functions of the trials' records: each call builds a study in memory. So nothing but the records is stored, and a tuning that
was killed makes the same suggestions again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.tuning.record import TuningTrial, smallest_scores
from evaluation.tuning.search import Axis, Value
from training.config.experiment import Experiment

_NUM_RANDOM = 5
"""Trials before TPE has enough to learn from."""
_RUNG = "completed_rung_"


def suggest(axes: Sequence[Axis], experiment: Experiment, records: Sequence[TuningTrial], *, number: int, seed: int) -> dict[str, Value]:
    """Return the values of trial `number`, which depend on the arguments alone.

    The first trial has the experiment's own values, if they can be suggested: then the tuning says what it gains. Five trials are
    random, and TPE suggests the rest.

    Args:
        experiment: The experiment without any suggestion.
        number: The trial's number, from 0.
    """
    own = {axis.field: axis.value_in(experiment) for axis in axes}
    if number == 0 and None not in own.values():
        return {field: value for field, value in own.items() if value is not None}
    optuna = _optuna()
    distributions = {axis.field: _distribution(axis) for axis in axes}
    state = np.random.SeedSequence((seed, number)).generate_state(1)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int(state[0]), n_startup_trials=_NUM_RANDOM, multivariate=True))
    states = {
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    for record in records:
        study.add_trial(
            optuna.trial.create_trial(
                state=states[record.state],
                value=record.score if record.state == "complete" else None,
                params=record.params,
                distributions=distributions,
                intermediate_values=dict(_best_so_far(record.scores)),
            )
        )
    suggested = study.ask(distributions).params
    return {axis.field: axis.round(suggested[axis.field]) for axis in axes}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruner:
    """Prunes a trial. Rungs are at r, r eta, r eta^2, ... updates, where r is the checkpoint interval and eta the reduction.

    A trial goes on at a rung if its best score so far is among the best 1/eta of all trials that have reached it, or the best of fewer
    than eta trials. It is plain data, so that it can be sent to the process that trains.

    Attributes:
        rungs: The rungs of each other trial; see `TuningTrial`.
        min_steps: Updates of the first rung.
        reduction: eta, 2 or more.
    """

    rungs: tuple[Mapping[str, float], ...]
    min_steps: int
    reduction: int

    def __call__(self, history: Iterable[Mapping[str, Any]]) -> str | None:
        """Return why a trial with these scores is pruned, or None. What is pruned once stays so, however many scores follow."""
        return self.judge(history)[0]

    def judge(self, history: Iterable[Mapping[str, Any]]) -> tuple[str | None, dict[str, float]]:
        """Return why a trial with these scores is pruned, or None; and its value at each rung that it has reached."""
        optuna = _optuna()
        study = optuna.create_study(
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=self.min_steps, reduction_factor=self.reduction)
        )
        for rungs in self.rungs:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.COMPLETE, value=0.0, system_attrs=dict(rungs)))
        trial, reason = study.ask(), None
        for step, score in _best_so_far(smallest_scores(history)):
            trial.report(score, step)
            if trial.should_prune():
                if math.isnan(score):
                    reason = f"it has no finite score up to step {step:,}"
                else:
                    reason = f"{score:.4g} at step {step:,} is not among the best 1/{self.reduction} of the trials there"
                break
        return reason, {name: value for name, value in study.trials[-1].system_attrs.items() if name.startswith(_RUNG)}


def _best_so_far(scores: Iterable[tuple[int, float | None]]) -> list[tuple[int, float]]:
    """Return step and smallest score up to it; NaN, which Optuna prunes, before the first finite one."""
    best, found = math.nan, []
    for step, score in scores:
        best = best if score is None else score if math.isnan(best) else min(best, score)
        found.append((step, best))
    return found


def _distribution(axis: Axis) -> Any:
    distributions = _optuna().distributions
    if axis.choices:
        return distributions.CategoricalDistribution(axis.choices)
    if isinstance(axis.low, int):
        return distributions.IntDistribution(axis.low, axis.high, log=axis.log)
    return distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

"""Early stopping replayed: what the cheap scores decided, what full scoring of every checkpoint would have, and both costs.

Costs are counted in network evaluations, images times sampling steps: they are the cost on any machine. At the paper's
protocol one cheap score is 10,000 images x 20 steps against 50,000 x 250: 62.5 times less.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.distances.frechet import jackknife_error
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate
from evaluation.monitoring.checkpoint_scorer import read_history
from evaluation.monitoring.early_stopping import best_checkpoints, decide, sorted_by_step
from evaluation.records.protocol_card import as_plain, num_sampling_steps
from evaluation.records.result import EvaluationResult
from evaluation.sampling.trained_model import ModelSpec
from evaluation.selection.final_choice import stored_result
from training.checkpoints import checkpoint
from training.config.experiment import Experiment, SamplingConfig
from training.console import say


class ReplayError(ValueError):
    """A run that can't be replayed; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """A choice of weights.

    Attributes:
        step: Of the checkpoint.
        weights: Which weights of it.
        distance: At full protocol.
    """

    step: int
    weights: str
    distance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What was found.

    Attributes:
        run_uri: Which run.
        num_checkpoints: Scored both ways.
        num_weights: Sets of weights of them: checkpoints times decays.
        stop_step: Where the history of scores stops training; None if it goes on to its end.
        cheap: Best by the scores beside training.
        rescored: Best of the few best, at full protocol: what early stopping registers.
        full: Best of all, at full protocol.
        behind: How much worse `rescored` is than `full`; 0 where they are one.
        behind_standard_error: Of `behind`, on common noise; None where they are one.
        cheap_evaluations: Network evaluations of the scores beside training.
        rescoring_evaluations: Of the few best, at full protocol.
        full_evaluations: Of everything at full protocol.
        table: Step, weights, score beside training, full distance and its standard error, of each set of weights.
        scoring_protocol: The card of the scores beside training.
        protocol: The card of the full scores.
    """

    run_uri: str
    num_checkpoints: int
    num_weights: int
    stop_step: int | None
    cheap: Pick
    rescored: Pick
    full: Pick
    behind: float
    behind_standard_error: float | None
    cheap_evaluations: int
    rescoring_evaluations: int
    full_evaluations: int
    table: tuple[tuple[int, str, float, float, float | None], ...]
    scoring_protocol: dict[str, Any]
    protocol: dict[str, Any]

    @property
    def same_checkpoint(self) -> bool:
        """Whether early stopping picks the checkpoint that full scoring of all picks, if perhaps with another decay."""
        return self.rescored.step == self.full.step

    @property
    def score_ratio(self) -> float:
        """How much less a score beside training costs than a full one."""
        return self.full_evaluations / self.cheap_evaluations

    @property
    def total_ratio(self) -> float:
        """The same with the few best scored again."""
        return self.full_evaluations / (self.cheap_evaluations + self.rescoring_evaluations)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        ratios = {"same_checkpoint": self.same_checkpoint, "score_ratio": self.score_ratio, "total_ratio": self.total_ratio}
        plain: dict[str, Any] = as_plain({**dataclasses.asdict(self), **ratios})
        return plain


def replay(
    run_uri: str, data_uri: str, reference_uri: str, *, num_rescored: int | None = None, options: EvaluationOptions | None = None
) -> Replay:
    """Scores every checkpoint that a run still has at full protocol and compares the choices.

    Args:
        run_uri: A run that was scored beside training. It keeps its best and last checkpoints; one that was trained with
            `evaluation.rescore_best` at least the number of its checkpoints has kept all.
        data_uri: The data set that it was trained on.
        reference_uri: Reference statistics.
        num_rescored: How many of the best are looked at again; None takes the experiment's.
        options: What differs from the experiment's full protocol, and how the work is done.

    Raises:
        ReplayError: Fewer than two checkpoints that are still there have scores.
    """
    present = set(checkpoint.steps(run_uri))
    whole = read_history(run_uri)
    history = [score for score in sorted_by_step(whole) if int(score["step"]) in present]
    if len(history) < 2:
        raise ReplayError(f"{run_uri}: a replay compares checkpoints; only {len(history)} that is still there has a score")
    if len(history) < len(whole):
        say(f"{len(whole) - len(history)} of {len(whole)} scored checkpoints were removed in training; replaying the others")
    experiment = checkpoint.load_experiment(checkpoint.checkpoint_uri(run_uri, int(history[0]["step"])))
    options = _full_options(experiment, options or EvaluationOptions())
    results = {
        (int(score["step"]), weights): _full(run_uri, int(score["step"]), weights, data_uri, reference_uri, options)
        for score in history
        for weights, value in score["scores"].items()
        if value is not None and math.isfinite(value)
    }
    candidates = best_checkpoints(history, num_rescored or experiment.evaluation.rescore_best)
    if not candidates:
        raise ReplayError(f"{run_uri}: no score is finite, so there is nothing to choose")
    cheap = (candidates[0].step, candidates[0].weights)
    rescored = min(((c.step, c.weights) for c in candidates), key=lambda key: results[key].distance)
    full = min(results, key=lambda key: results[key].distance)
    error = jackknife_error(_differences(results[rescored], results[full])) if rescored != full else None
    return Replay(
        run_uri=run_uri,
        num_checkpoints=len(history),
        num_weights=len(results),
        stop_step=_stop_step(whole, experiment),
        cheap=_pick(cheap, results),
        rescored=_pick(rescored, results),
        full=_pick(full, results),
        behind=results[rescored].distance - results[full].distance,
        behind_standard_error=error,
        cheap_evaluations=sum(_evaluations(score["protocol"], experiment) * len(score["scores"]) for score in history),
        rescoring_evaluations=len(candidates) * _evaluations(results[full].protocol["distance"], experiment),
        full_evaluations=len(results) * _evaluations(results[full].protocol["distance"], experiment),
        table=tuple(
            (step, weights, _score_of(history, step, weights), result.distance, result.distance_standard_error)
            for (step, weights), result in sorted(results.items())
        ),
        scoring_protocol=history[-1]["protocol"],
        protocol=results[full].protocol,
    )


def _full_options(experiment: Experiment, options: EvaluationOptions) -> EvaluationOptions:
    return dataclasses.replace(
        options,
        likelihood=False,
        metrics=(),
        purpose="replay",
        num_samples=options.num_samples or experiment.evaluation.num_samples,
        sampling=options.sampling or experiment.evaluation.sampling,
    )


def _full(run_uri: str, step: int, weights: str, data_uri: str, reference_uri: str, options: EvaluationOptions) -> EvaluationResult:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, step), weights=weights)
    mine = dataclasses.replace(options, result_name=f"replay-{step:08d}-{weights}")
    return stored_result(spec, data_uri, reference_uri, mine) or evaluate(spec, data_uri, reference_uri, options=mine)


def _stop_step(history: Sequence[Mapping[str, Any]], experiment: Experiment) -> int | None:
    """The first checkpoint at which the scores up to then say stop."""
    ordered = sorted_by_step(history)
    for count in range(1, len(ordered) + 1):
        if decide(ordered[:count], experiment.evaluation).stop:
            return int(ordered[count - 1]["step"])
    return None


def _evaluations(card: Mapping[str, Any], experiment: Experiment) -> int:
    """Network evaluations of one distance."""
    sampling = SamplingConfig(**card["sampling"])
    return int(card["num_samples"]) * num_sampling_steps(sampling, experiment.diffusion.num_timesteps)


def _pick(key: tuple[int, str], results: Mapping[tuple[int, str], EvaluationResult]) -> Pick:
    return Pick(step=key[0], weights=key[1], distance=results[key].distance)


def _differences(first: EvaluationResult, second: EvaluationResult) -> list[float]:
    return [a - b for a, b in zip(first.distance_without_blocks, second.distance_without_blocks, strict=True)]


def _score_of(history: Sequence[Mapping[str, Any]], step: int, weights: str) -> float:
    return next(float(score["scores"][weights]) for score in history if int(score["step"]) == step)


def as_text(found: Replay) -> str:
    """What was found, for the terminal."""
    lines = [f"{'step':>8}  {'weights':<12}  {'beside training':>15}  at full protocol"]
    for step, weights, score, distance, error in found.table:
        marks = chosen_by(found, step, weights)
        lines.append(
            f"{step:>8,}  {weights:<12}  {score:>15.4g}  {distance_words(distance, error):<18}{f'  <- {marks}' if marks else ''}".rstrip()
        )
    return "\n".join([*lines, "", *verdict(found)])


def verdict(found: Replay) -> list[str]:
    """Whether the choices agree, and what each costs."""
    stop = f"at step {found.stop_step:,}" if found.stop_step is not None else "not before the end"
    if found.behind == 0:
        agreement = "the same weights"
    else:
        error = found.behind_standard_error
        told = f", {abs(found.behind / error):.1f} standard errors" if error else ""
        what = "the same checkpoint, another decay" if found.same_checkpoint else "another checkpoint"
        agreement = f"{what}, worse by {found.behind:.3g}{told}"
    return [
        f"the scores stop training {stop}",
        f"early stopping picks step {found.rescored.step:,} ({found.rescored.weights}), full scoring of all step {found.full.step:,} "
        f"({found.full.weights}): {agreement}",
        f"network evaluations: {found.cheap_evaluations:,} beside training, {found.full_evaluations:,} at full protocol: "
        f"{found.score_ratio:.3g} times less",
        f"with the best few scored again ({found.rescoring_evaluations:,}): {found.total_ratio:.3g} times less",
    ]


def distance_words(distance: float, error: float | None) -> str:
    """A distance with its standard error."""
    return f"{distance:.4g}" + (f" +- {error:.2g}" if error else "")


def chosen_by(found: Replay, step: int, weights: str) -> str:
    """Which of the ways to choose choose these weights."""
    picks = {"cheap": found.cheap, "rescored": found.rescored, "full": found.full}
    return ", ".join(word for word, pick in picks.items() if (pick.step, pick.weights) == (step, weights))

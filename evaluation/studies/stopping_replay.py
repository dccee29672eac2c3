"""Replay of early stopping: the choice by the scores beside training, the choice by full scoring, and the cost of both.

A cost is a number of network evaluations (images times sampling steps), so it is the same on any machine. At the paper's protocol one
score beside training takes 10,000 images x 20 steps. A full score takes 50,000 x 250, which is 62.5 times as many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.distances.paired import distance_difference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate_once
from evaluation.monitoring.checkpoint_scorer import read_comparable
from evaluation.monitoring.early_stopping import CheckpointScore, best_checkpoints, decide, ranked_candidates, sorted_by_step
from evaluation.records.numbers import plain_estimate
from evaluation.records.protocol_card import card_rows, num_sampling_steps
from evaluation.records.result import EvaluationResult
from evaluation.reports import figures
from evaluation.reports.html import table_page, text_table
from evaluation.reports.study import Study, as_json
from evaluation.sampling.generate import NotFiniteError
from evaluation.sampling.trained_model import ModelSpec
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment, SamplingConfig
from training.config.plain import as_plain
from training.console import say

Weights = tuple[int, str]
"""Step of a checkpoint, and name of weights in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """Chosen weights, with their distance at full protocol."""

    step: int
    weights: str
    distance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """The result of a replay.

    Attributes:
        num_checkpoints: Checkpoints that were scored both ways.
        num_weights: Their sets of weights: checkpoints times decays.
        stop_step: Step at which the history of scores stops training; None if it never does.
        cheap: Best weights by the scores beside training.
        rescored: Best of the few best, at full protocol: the weights that early stopping registers.
        full: Best of all weights, at full protocol.
        behind: Distance of `rescored` minus that of `full`; 0 where they are the same.
        behind_standard_error: On common noise; None where they are the same.
        cheap_evaluations, rescoring_evaluations, full_evaluations: Network evaluations of the scores beside training, of the few
            best at full protocol, and of all weights at full protocol.
        table: Step, weights, score beside training, full distance and its standard error, of each set of weights.
        scoring_protocol, protocol: The protocol cards of the scores beside training and of the full scores.
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
        """True if early stopping picks the checkpoint that full scoring picks, perhaps with another decay."""
        return self.rescored.step == self.full.step

    @property
    def score_ratio(self) -> float:
        """Cost of full scoring over the cost of the scores beside training."""
        return self.full_evaluations / self.cheap_evaluations

    @property
    def total_ratio(self) -> float:
        """Cost of full scoring over the cost of early stopping: the scores beside training and the rescoring of the best few."""
        return self.full_evaluations / (self.cheap_evaluations + self.rescoring_evaluations)

    @property
    def picks(self) -> dict[str, Pick]:
        """The choices by name."""
        return {"cheap": self.cheap, "rescored": self.rescored, "full": self.full}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ratios = {"same_checkpoint": self.same_checkpoint, "score_ratio": self.score_ratio, "total_ratio": self.total_ratio}
        return as_plain({**dataclasses.asdict(self), **ratios})


def replay(
    run_uri: str, data_uri: str, reference_uri: str, *, num_rescored: int | None = None, options: EvaluationOptions | None = None
) -> Replay:
    """Score every remaining checkpoint of a run at full protocol, and compare the choices.

    Args:
        run_uri: A run that was scored beside training. It keeps its best and last checkpoints; it keeps all of them if
            `evaluation.rescore_best` is at least their number.
        num_rescored: How many of the best are rescored; None takes the experiment's number.
        options: What differs from the experiment's full protocol, and how the work is done.

    Raises:
        UserError: Fewer than two remaining checkpoints have scores, no score is finite, or no images of the best few are.
    """
    options = options or EvaluationOptions()
    experiment, history, scores = _read_scores(run_uri, options)
    if len(scores) < len(history):
        say(f"replaying {len(scores)} of {len(history)} scored checkpoints; training removed the others, or keeps them to guide later ones")
    options = dataclasses.replace(
        options,
        likelihood=False,
        held_out=False,
        metrics=(),
        purpose="replay",
        num_samples=options.num_samples or experiment.evaluation.num_samples,
        sampling=options.sampling or experiment.evaluation.sampling,
    )

    def evaluate(step: int, weights: str) -> EvaluationResult:
        named = dataclasses.replace(options, result_name=f"replay-{step:08d}-{weights}")
        return evaluate_once(_spec(run_uri, step, weights), data_uri, reference_uri, named)

    by_score = {(found.step, found.weights): found.score for found in ranked_candidates(scores)}
    if not by_score:
        raise UserError(f"{run_uri}: no score is finite, so there is nothing to choose; name another run")
    results: dict[Weights, EvaluationResult] = {}
    for key in by_score:
        try:
            results[key] = evaluate(*key)
        except NotFiniteError as error:  # the final choice leaves such weights out, too
            say(f"left out: {error}")
    best = best_checkpoints(scores, num_rescored or experiment.evaluation.rescore_best)
    candidates = [key for each in best if (key := (each.step, each.weights)) in results]
    if not candidates:
        raise UserError(f"{run_uri}: none of the best {len(best)} checkpoints has finite images at full protocol; name another run")
    rescored = min(candidates, key=lambda key: results[key].rank)
    full = min(results, key=lambda key: results[key].rank)
    behind = distance_difference(results[rescored], results[full])
    full_cost = _num_evaluations(results[full].protocol["distance"], experiment)

    def pick(key: Weights) -> Pick:
        return Pick(step=key[0], weights=key[1], distance=results[key].distance)

    return Replay(
        run_uri=run_uri,
        num_checkpoints=len(scores),
        num_weights=len(results),
        stop_step=_stop_step(history, experiment),
        cheap=pick(candidates[0]),
        rescored=pick(rescored),
        full=pick(full),
        behind=behind.value,
        behind_standard_error=behind.standard_error if rescored != full else None,
        cheap_evaluations=sum(_num_evaluations(score["protocol"], experiment) * len(score["scores"]) for score in scores),
        rescoring_evaluations=len(candidates) * full_cost,
        full_evaluations=len(results) * full_cost,
        table=tuple((*key, by_score[key], result.distance, result.distance_standard_error) for key, result in sorted(results.items())),
        scoring_protocol=scores[-1]["protocol"],
        protocol=results[full].protocol,
    )


def scored_weights(run_uri: str, options: EvaluationOptions) -> Iterator[ModelSpec]:
    """Yield the weights that a replay with these options evaluates. Raises as `replay`."""
    scores = _read_scores(run_uri, options)[2]
    yield from (_spec(run_uri, found.step, found.weights) for found in ranked_candidates(scores))


def _read_scores(run_uri: str, options: EvaluationOptions) -> tuple[Experiment, list[dict[str, Any]], list[CheckpointScore]]:
    """Return the run's experiment, its history of scores, and the scores of the checkpoints that a replay evaluates."""
    present, latest = set(checkpoint.steps(run_uri)), checkpoint.latest(run_uri)
    if latest is None:
        raise UserError(f"{run_uri}: there is no run with a checkpoint there; name another run")
    experiment = checkpoint.load_experiment(latest)
    history = read_comparable(run_uri, experiment.evaluation)
    scores = [score for score in sorted_by_step(history) if int(score["step"]) in present]
    guide = (options.sampling or experiment.evaluation.sampling).guidance_step
    scores = [score for score in scores if int(score["step"]) > guide]  # a checkpoint guides none but later ones
    if len(scores) < 2:
        later = f" after step {guide:,}, which guides the others" if guide else ""
        raise UserError(f"{run_uri}: a replay compares checkpoints with scores, and only {len(scores)} remain{later}; name another run")
    return experiment, history, scores


def _spec(run_uri: str, step: int, weights: str) -> ModelSpec:
    return ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, step), weights=weights)


def _stop_step(history: Sequence[Mapping[str, Any]], experiment: Experiment) -> int | None:
    """Return the first step at which the scores up to it stop training."""
    ordered = sorted_by_step(history)
    for count in range(1, len(ordered) + 1):
        if decide(ordered[:count], experiment.evaluation).stop:
            return int(ordered[count - 1]["step"])
    return None


def _num_evaluations(card: Mapping[str, Any], experiment: Experiment) -> int:
    """Return the network evaluations of one distance."""
    sampling = SamplingConfig(**card["sampling"])
    return int(card["num_samples"]) * sampling.evaluations_per_step * num_sampling_steps(sampling, experiment.diffusion.num_timesteps)


def as_study(found: Replay) -> Study:
    """Return the verdict, the table and both curves, and the metrics: two curves by step for each decay, and the verdict at step 0."""
    name = found.run_uri.rstrip("/").rpartition("/")[2]
    verdict = ("same_checkpoint", "score_ratio", "total_ratio", "behind", "behind_standard_error", "stop_step")
    points: dict[tuple[str, int], float | int | None] = {(field, 0): getattr(found, field) for field in verdict}
    points[("same_checkpoint", 0)] = int(found.same_checkpoint)
    for name_of_choice, pick in found.picks.items():
        points |= {(f"picked_step/{name_of_choice}", 0): pick.step, (f"picked_distance/{name_of_choice}", 0): pick.distance}
    headers, rows = ["step, weights", "beside training", f"{found.protocol['distance']['name']} at full protocol", "chosen by"], []
    for step, weights, score, distance, error in found.table:
        points |= {
            (f"beside_training/{weights}", step): score,
            (f"full_protocol/{weights}", step): distance,
            (f"full_protocol_standard_error/{weights}", step): error,
        }
        names = ", ".join(name for name, pick in found.picks.items() if (pick.step, pick.weights) == (step, weights))
        rows.append([f"{step:,} {weights}", f"{score:.4g}", plain_estimate(distance, error), names])
    text = "\n".join([*text_table(headers, rows), "", *_verdict(found)])
    return Study(
        kind="replay-stopping",
        title=f"Replay of early stopping: {name}",
        text=text,
        models={name: found.run_uri},
        protocol=found.protocol,
        points=points,
        files={
            "replay.html": _page(found, headers, rows).encode(),
            "replay.json": as_json(found.to_dict()),
            "replay.txt": f"{text}\n".encode(),
        },
    )


def _page(found: Replay, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cheap, full = found.scoring_protocol, found.protocol["distance"]
    beside = {(step, weights): (score, None) for step, weights, score, _, _ in found.table}
    at_full = {(step, weights): (distance, error) for step, weights, _, distance, error in found.table}
    return table_page(
        "Replay of early stopping",
        headers,
        rows,
        card=card_rows(found.protocol, model=False),
        lead=[found.run_uri, *(f"{line[0].upper()}{line[1:]}." for line in _verdict(found))],
        pictures={
            f"Beside training: {cheap['num_samples']:,} samples, {cheap['sampler']}.": _figure(found, beside),
            f"At full protocol: {full['num_samples']:,} samples, {full['sampler']}; bands are one standard error.": _figure(found, at_full),
        },
    )


def _verdict(found: Replay) -> list[str]:
    """Say whether the choices agree, and what each costs."""
    stop = f"end training at step {found.stop_step:,}" if found.stop_step is not None else "do not end training early"
    agreement = "the same weights"
    if found.behind != 0:
        error = found.behind_standard_error
        errors = f", {abs(found.behind / error):.1f} standard errors" if error else ""
        choice = "the same checkpoint, another decay" if found.same_checkpoint else "another checkpoint"
        agreement = f"{choice}, worse by {found.behind:.3g}{errors}"
    return [
        f"the scores {stop}",
        f"early stopping picks step {found.rescored.step:,} ({found.rescored.weights}), full scores of all pick step {found.full.step:,} "
        f"({found.full.weights}): {agreement}",
        f"network evaluations: {found.cheap_evaluations:,} beside training, {found.full_evaluations:,} at full protocol, "
        f"{found.score_ratio:.3g} times as many",
        f"with {found.rescoring_evaluations:,} that score the best few again, full protocol takes {found.total_ratio:.3g} times as many",
    ]


def _figure(found: Replay, curve: Mapping[Weights, tuple[float, float | None]]) -> bytes:
    """Draw a distance by step as SVG, with the weights that early stopping picked."""
    history = [
        {
            "step": step,
            "scores": {weights: value for (at, weights), (value, _) in curve.items() if at == step},
            "standard_errors": {weights: error for (at, weights), (_, error) in curve.items() if at == step},
        }
        for step in sorted({step for step, _ in curve})
    ]
    name, picked = found.protocol["distance"]["name"], found.rescored
    return figures.distance_by_step(history, distance_name=name, chosen_step=picked.step, chosen_weights=picked.weights).encode()

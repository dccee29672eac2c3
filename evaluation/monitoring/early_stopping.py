"""When to stop: a pure function of the stored history of scores.

Supplement section 7: FID becomes worse over training, so stop early; the best decay of the average is not known
beforehand, so every one is scored. A score is a plain dictionary, as `evaluation.monitoring.checkpoint_scorer` stores it in the run's
directory: `step`, and `scores`, the distance of each set of weights. Nothing here reads anything else, so that a
history from a resumed or a finished run gives the decision again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.config.experiment import EvaluationConfig

Score = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One set of weights of one checkpoint, and its score.

    Attributes:
        step: Training step of the checkpoint.
        weights: "ema_0.9999" and the like.
        score: Its distance; smaller is better.
    """

    step: int
    weights: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether to go on, and what is best so far.

    Attributes:
        stop: Whether training should stop.
        best_step: Step of the best checkpoint; None while no score is finite.
        best_weights: The decay that was best there.
        best_score: Its distance.
        reason: One sentence for a person.
    """

    stop: bool
    best_step: int | None
    best_weights: str | None
    best_score: float
    reason: str


def decide(history: Iterable[Score], config: EvaluationConfig) -> Decision:
    """Stops after `patience` scored checkpoints without a gain, never before `min_steps`.

    A checkpoint's score is the smallest over its decays. It is a gain if it is below the last gain's score by more than
    `min_gain` of it: noise of that size neither prolongs training nor, because the comparison is with the last gain and
    not with the last checkpoint, hides slow progress. A checkpoint without a finite score is none.

    Args:
        history: Scores in any order; of a step that occurs twice, the later entry counts.
        config: `patience` (0 never stops), `min_gain`, `min_steps`.
    """
    scores = sorted_by_step(history)
    best = next(iter(ranked_candidates(scores)), None)
    if best is None:
        outcome = "no checkpoint is scored yet" if not scores else f"none of {len(scores)} scored checkpoints has a finite score"
        stop = 0 < config.patience <= len(scores) and int(scores[-1]["step"]) >= config.min_steps
        return Decision(stop=stop, best_step=None, best_weights=None, best_score=math.inf, reason=outcome)

    last_gain, since = math.inf, 0
    for score in scores:
        value = _smallest(score)
        if value < last_gain * (1 - config.min_gain) or (math.isinf(last_gain) and math.isfinite(value)):
            last_gain, since = value, 0
        else:
            since += 1
    last_step = int(scores[-1]["step"])
    tired = 0 < config.patience <= since
    best_words = f"best {best.score:.4g} at step {best.step:,} ({best.weights})"
    if tired and last_step >= config.min_steps:
        reason = f"no gain of {config.min_gain:.1%} in {since} scored checkpoints; {best_words}"
    elif tired:
        reason = f"no gain in {since} scored checkpoints, but step {last_step:,} is before min_steps {config.min_steps:,}; {best_words}"
    else:
        limit = f" of {config.patience}" if config.patience else ""
        reason = f"{since}{limit} scored checkpoints since the last gain; {best_words}"
    return Decision(
        stop=tired and last_step >= config.min_steps,
        best_step=best.step,
        best_weights=best.weights,
        best_score=best.score,
        reason=reason,
    )


def sorted_by_step(history: Iterable[Score]) -> list[Score]:
    """The scores by step, one a step."""
    by_step = {int(score["step"]): score for score in history}
    return [by_step[step] for step in sorted(by_step)]


def ranked_candidates(history: Iterable[Score]) -> list[Candidate]:
    """Every set of weights with a finite score, best first; of equals, the earlier step."""
    candidates = [
        Candidate(step=int(score["step"]), weights=weights, score=float(value))
        for score in sorted_by_step(history)
        for weights, value in score["scores"].items()
        if value is not None and math.isfinite(value)
    ]
    return sorted(candidates, key=lambda candidate: (candidate.score, candidate.step))


def best_checkpoints(history: Iterable[Score], count: int) -> list[Candidate]:
    """The best weights of each of the best `count` checkpoints: what is worth a full scoring.

    One a checkpoint, because the decays of one checkpoint are almost the same network.
    """
    best_of_step: dict[int, Candidate] = {}
    for candidate in ranked_candidates(history):
        best_of_step.setdefault(candidate.step, candidate)
    return list(best_of_step.values())[:count]


def steps_to_keep(history: Sequence[Score], config: EvaluationConfig) -> set[int]:
    """Steps whose checkpoints a later choice may want."""
    return {candidate.step for candidate in best_checkpoints(history, config.rescore_best)}


def _smallest(score: Score) -> float:
    finite = [float(value) for value in score["scores"].values() if value is not None and math.isfinite(value)]
    return min(finite, default=math.nan)

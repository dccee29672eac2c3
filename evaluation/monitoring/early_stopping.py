"""Early stopping, as a pure function of the stored history of scores.

Supplement section 7: the FID gets worse late in training, so training stops early; the best decay of the average is not known
beforehand, so every decay is scored. A score is a dictionary that `evaluation.monitoring.checkpoint_scorer` stores in the run's
directory. This module reads three of its fields: `step`, `scores` (the distance of each set of weights) and `without_blocks` (these
distances without each block of samples). So the history of a resumed or finished run gives the same decision again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.records.intervals import jackknife_error
from evaluation.records.paired import Difference
from evaluation.records.stored import finite_scores
from training.config.experiment import EvaluationConfig

CheckpointScore = Mapping[str, Any]
"""The stored score of a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One set of weights ("ema_0.9999" and the like) of one checkpoint, with its distance; smaller is better."""

    step: int
    weights: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Stop or continue, and why. While no score is finite, there is no best checkpoint and the best score is infinite."""

    stop: bool
    best_step: int | None
    best_weights: str | None
    best_score: float
    reason: str


def decide(history: Iterable[CheckpointScore], config: EvaluationConfig) -> Decision:
    """Decide to stop after `patience` scored checkpoints without a gain (0 never stops).

    Training goes on to `min_steps` at least, and to the checkpoint that guides the final evaluation.

    A checkpoint's score is the smallest over its decays. It is a gain if it is below the last gain's score by more than the
    fraction `min_gain`, and the 95% interval of their difference on common noise excludes 0, where the history has what that takes.
    So noise does not prolong training. It does not hide slow progress either, because the comparison is with the last gain and not with
    the last checkpoint. A score that is not finite is no gain.

    Scores come in any order; if a step occurs twice, the later entry counts.
    """
    scores = sorted_by_step(history)
    earliest = max(config.min_steps, config.sampling.guidance_step)
    best = next(iter(ranked_candidates(scores)), None)
    if best is None:
        outcome = "no checkpoint is scored yet" if not scores else f"none of {len(scores)} scored checkpoints has a finite score"
        stop = 0 < config.patience <= len(scores) and int(scores[-1]["step"]) >= earliest
        return Decision(stop=stop, best_step=None, best_weights=None, best_score=math.inf, reason=outcome)

    last_gain: CheckpointScore | None = None
    since = 0
    for score in scores:
        if math.isfinite(_smallest(score)) and (last_gain is None or _is_gain(score, last_gain, config.min_gain)):
            last_gain, since = score, 0
        else:
            since += 1
    last_step = int(scores[-1]["step"])
    out_of_patience = 0 < config.patience <= since
    best_words = f"best {best.score:.4g} at step {best.step:,} ({best.weights})"
    if out_of_patience and last_step >= earliest:
        reason = f"no gain of {config.min_gain:.1%} in {since} scored checkpoints; {best_words}"
    elif out_of_patience:
        reason = f"no gain in {since} scored checkpoints, but training goes on to step {earliest:,} at least; {best_words}"
    else:
        limit = f" of {config.patience}" if config.patience else ""
        reason = f"{since}{limit} scored checkpoints since the last gain; {best_words}"
    return Decision(
        stop=out_of_patience and last_step >= earliest,
        best_step=best.step,
        best_weights=best.weights,
        best_score=best.score,
        reason=reason,
    )


def sorted_by_step(history: Iterable[CheckpointScore]) -> list[CheckpointScore]:
    """Return the scores by step, one per step."""
    by_step = {int(score["step"]): score for score in history}
    return [by_step[step] for step in sorted(by_step)]


def ranked_candidates(history: Iterable[CheckpointScore]) -> list[Candidate]:
    """Return every set of weights with a finite score, best first; of equal scores, the earlier step first."""
    candidates = [
        Candidate(step=int(score["step"]), weights=weights, score=value)
        for score in sorted_by_step(history)
        for weights, value in finite_scores(score).items()
    ]
    return sorted(candidates, key=lambda candidate: (candidate.score, candidate.step))


def best_checkpoints(history: Iterable[CheckpointScore], count: int, *, after: int = 0) -> list[Candidate]:
    """Return the best weights of each of the best `count` checkpoints, which are scored again at full protocol.

    There is one per checkpoint, because the decays of one checkpoint are almost the same network. Only checkpoints after step `after`
    count: one that guides can guide only later ones.
    """
    best_of_step: dict[int, Candidate] = {}
    for candidate in (each for each in ranked_candidates(history) if each.step > after):
        best_of_step.setdefault(candidate.step, candidate)
    return list(best_of_step.values())[:count]


def _smallest(score: CheckpointScore) -> float:
    return min(finite_scores(score).values(), default=math.nan)


def _is_gain(score: CheckpointScore, last: CheckpointScore, min_gain: float) -> bool:
    """Return True if the score is better by more than the fraction `min_gain`, and by more than the draw explains."""
    change = _smallest(score) - _smallest(last)
    if not change < -min_gain * _smallest(last):
        return False
    now, before = _smallest_without_blocks(score), _smallest_without_blocks(last)
    if len(now) != len(before) or len(now) < 2:
        return True
    error = jackknife_error([a - b for a, b in zip(now, before, strict=True)])
    return Difference(value=change, standard_error=error, degrees_of_freedom=len(now) - 1).verdict == "better"


def _smallest_without_blocks(score: CheckpointScore) -> list[float]:
    """Return the distances without each block of the weights with the smallest score; empty in scores of earlier versions."""
    stored = score.get("without_blocks") or {}
    return next((stored.get(weights) or [] for weights, value in score["scores"].items() if value == _smallest(score)), [])

"""The final choice among the best few checkpoints, at full protocol and on new noise.

The smallest of many noisy scores is smaller than the model's true distance (the winner's curse). Scoring the best few again
with other seeds, and with the reported number's counts and sampler, chooses by what will be reported. The report then uses
a third draw. The smallest distance is chosen, also where its difference to the next can't be told: one of them has to be, and either is
right then. The choice says so.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from evaluation.distances.paired import distance_difference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate_once
from evaluation.monitoring.checkpoint_scorer import comparable, read_history
from evaluation.monitoring.early_stopping import Candidate, best_checkpoints
from evaluation.records.not_finite import NotFiniteError
from evaluation.records.paired import Difference
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import CHOICE, EVALUATIONS
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.plain import as_plain
from training.console import say


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescored:
    """A candidate at full protocol; a single candidate is not scored again, and has no `distance`.

    `difference` is that to the chosen one on common noise; None for the chosen one itself.
    """

    candidate: Candidate
    distance: float | None
    standard_error: float | None
    difference: Difference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        difference = {} if self.difference is None else {"difference": self.difference.to_dict()}
        return {
            "candidate": dataclasses.asdict(self.candidate),
            "distance": self.distance,
            "standard_error": self.standard_error,
            **difference,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The weights that will be reported and registered; all `candidates`, best first; the reason in a sentence for a person."""

    checkpoint_uri: str
    step: int
    weights: str
    candidates: tuple[Rescored, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return as_plain({**fields, "candidates": [item.to_dict() for item in self.candidates]})


def choose_best(run_uri: str, data_uri: str, reference_uri: str, *, options: EvaluationOptions | None = None) -> Choice:
    """Score the best few checkpoints of a run again, and store the choice in its directory.

    Scores of other settings than the run's own are ranked apart, as those of fewer samples are larger: the best few of both are candidates.

    All candidates are drawn on the same noise, which differs from that of the scores and that of the report. Results that
    an interrupted choice stored are not computed again. `options` are resources; likelihood and other metrics are left to the
    report.

    Raises:
        UserError: No existing checkpoint has a finite score, or none of the best ones has a finite distance.
    """
    present = set(checkpoint.steps(run_uri))
    usable = [score for score in read_history(run_uri) if int(score["step"]) in present]
    if not best_checkpoints(usable, 1):
        raise UserError(f"{run_uri}: none of {len(present)} checkpoints has a finite score; score one, or name the checkpoint to evaluate")
    evaluation = checkpoint.load_experiment(checkpoint.checkpoint_uri(run_uri, int(usable[-1]["step"]))).evaluation
    guide = evaluation.sampling.guidance_step
    kinds = (comparable(usable, evaluation), usable)  # as the training kept them
    ranked = [each for kind in kinds for each in best_checkpoints(kind, evaluation.rescore_best, after=guide)]
    candidates = list({each.step: each for each in ranked}.values())
    if not candidates:
        raise UserError(
            f"{run_uri}: no checkpoint after step {guide:,}, which guides the others, has a finite score; score one, or name the "
            "checkpoint and the sampler to evaluate"
        )
    if len(candidates) == 1:
        rescored = [Rescored(candidate=candidates[0], distance=None, standard_error=None)]
        reason = f"the best score during training, {candidates[0].score:.4g}"
    else:
        say(f"comparing the best {len(candidates)} checkpoints at full protocol")
        results: list[tuple[EvaluationResult, Candidate]] = []
        for item in candidates:
            try:
                results.append((_rescore(run_uri, item, data_uri, reference_uri, options or EvaluationOptions()), item))
            except NotFiniteError as error:
                say(f"step {item.step:,} ({item.weights}) is not chosen: {error}")
        results.sort(key=lambda pair: (pair[0].rank, pair[1].step))
        # A result of an earlier version may have a distance that is NaN.
        if not results or math.isnan(results[0][0].distance):
            raise UserError(f"{run_uri}: none of the best {len(candidates)} checkpoints has a finite distance at full protocol")
        chosen = results[0][0]
        rescored = [
            Rescored(
                candidate=candidate,
                distance=result.distance,
                standard_error=result.distance_standard_error,
                difference=None if result is chosen or math.isnan(result.distance) else distance_difference(result, chosen),
            )
            for result, candidate in results
        ]
        some = f"{len(results)} of " if len(results) < len(candidates) else ""
        reason = f"distance {chosen.distance:.4g} at full protocol, the smallest of {some}{len(candidates)} candidates"
        reason += ", as the others have no finite one" if some else ""
        for next_one in rescored[1:2]:
            reason += f"; the next, of step {next_one.candidate.step:,}, "
            reason += f"differs by {next_one.difference}" if next_one.difference else "has no finite one"
    best = rescored[0].candidate
    choice = Choice(
        checkpoint_uri=checkpoint.checkpoint_uri(run_uri, best.step),
        step=best.step,
        weights=best.weights,
        candidates=tuple(rescored),
        reason=reason,
    )
    storage.write_json(storage.join(run_uri, EVALUATIONS, CHOICE), choice.to_dict())
    say(f"chose step {choice.step:,} ({choice.weights}): {choice.reason}")
    return choice


def _rescore(run_uri: str, candidate: Candidate, data_uri: str, reference_uri: str, options: EvaluationOptions) -> EvaluationResult:
    own = dataclasses.replace(
        options,
        likelihood=False,
        held_out=False,
        metrics=(),
        purpose="choose",
        result_name=f"choose-{candidate.step:08d}-{candidate.weights}",
    )
    model = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, candidate.step), weights=candidate.weights)
    return evaluate_once(model, data_uri, reference_uri, own)

"""The model that a trial's measures evaluate."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate_once
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import run_uri_of
from evaluation.sampling.trained_model import ModelSpec
from evaluation.selection.resolve import chosen_weights
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialModel:
    """A checkpoint's weights, and all that is needed to evaluate them.

    The reference is empty where no distances are taken. The options are resources: workers, device, weights of the extractor.
    """

    run_uri: str
    checkpoint_uri: str
    weights: str
    step: int
    experiment: Experiment
    data_uri: str = ""
    reference_uri: str = ""
    options: EvaluationOptions = field(default_factory=EvaluationOptions)

    @property
    def spec(self) -> ModelSpec:
        """The weights as a specification that can be loaded."""
        return ModelSpec(checkpoint_uri=self.checkpoint_uri, weights=self.weights)

    def to_record(self) -> dict[str, Any]:
        """Return the model's fields of an `AblationTrial`."""
        fields = {name: getattr(self, name) for name in ("run_uri", "checkpoint_uri", "weights", "step")}
        return {**fields, "experiment": self.experiment.to_dict()}

    def evaluate(self, spec: ModelSpec | None = None, **protocol: Any) -> EvaluationResult:
        """Evaluate the model, or return the stored result of the same evaluation.

        `spec` are other weights or an ensemble, in place of the model's own. `protocol` is what differs from the experiment's
        protocol: fields of `EvaluationOptions`.
        """
        return evaluate_once(spec or self.spec, self.data_uri, self.reference_uri, replace(self.options, **protocol))


def find_trial_model(run_uri: str, *, best: bool = False) -> TrialModel:
    """Find the checkpoint and the weights of a run to evaluate.

    `run_uri` may also be a checkpoint's directory; then it is the checkpoint's first average. `best` takes the weights of the final
    choice, or else those with the best score, if the run's files name them. Otherwise it is the first average of the latest checkpoint.

    Raises:
        UserError: There is no checkpoint.
    """
    weights: str | None = None
    if re.search(r"step=\d{8}/*$", run_uri):
        uri = run_uri.rstrip("/")
        run_uri = run_uri_of(uri)
    else:
        latest = checkpoint.latest(run_uri)
        if latest is None:
            raise UserError(f"{run_uri}: there is no checkpoint; name the directory of a trained run")
        uri, weights = (chosen_weights(run_uri) if best else None) or (latest, None)
    return TrialModel(
        run_uri=run_uri,
        checkpoint_uri=uri,
        weights=weights or checkpoint.choose_weights(uri),
        step=checkpoint.step_of(uri),
        experiment=checkpoint.load_experiment(uri),
    )

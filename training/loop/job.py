"""What a training job is told: the experiment, the machines, where everything is, and who scores its checkpoints."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from training.config.experiment import Experiment, Resources


class Scorer(Protocol):
    """Scores checkpoints beside training and says when enough is enough. Sent to other processes, so plain data."""

    def score(self, checkpoint_uri: str) -> Mapping[str, Any]:
        """Scores one checkpoint and keeps the score in the run's directory; a score that is kept is read, not redone."""

    def history(self, run_uri: str) -> Sequence[Mapping[str, Any]]:
        """The kept scores, by step."""

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        """Why training should stop, as a pure function of the scores; None while it should not."""

    def metrics(self, score: Mapping[str, Any]) -> Mapping[str, float]:
        """What of a score is logged, at the step of its checkpoint."""

    def image(self, score: Mapping[str, Any]) -> Any:
        """The sample grid of a score, uint8 HWC, or None."""

    def keep(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        """Steps whose checkpoints must not be removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every worker is told.

    Attributes:
        experiment: What to train.
        resources: With how many workers of which kind.
        data_uri: Data set with a `train` split.
        run_uri: The run's directory.
        tracking_run_id: The MLflow run; empty tracks nothing.
        scorer: Scores checkpoints beside training; None scores none, never stops early, and keeps every checkpoint, as any
            may be the best.
        control_name: Name of the actor that carries a request to stop.
    """

    experiment: Experiment
    resources: Resources
    data_uri: str
    run_uri: str
    tracking_run_id: str = ""
    scorer: Scorer | None = None
    control_name: str = field(default_factory=lambda: f"iddpm-control-{secrets.token_hex(4)}")

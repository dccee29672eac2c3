"""A training job: the experiment, the machines, the URIs, and the scorer of its checkpoints."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from training.config.experiment import Experiment, Resources
from training.storage import OUTAGE_SECONDS


class Scorer(Protocol):
    """Scores checkpoints beside training and decides when to stop early. Pickled to other processes, so plain data."""

    def score(self, checkpoint_uri: str) -> Mapping[str, Any]:
        """Score one checkpoint and store the score in the run's directory; a stored score is read, not computed again."""

    def history(self, run_uri: str) -> Sequence[Mapping[str, Any]]:
        """Return the stored scores, by step."""

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the reason to stop training, or None; a pure function of the scores."""

    def metrics(self, score: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the metrics of a score, which are logged at the step of its checkpoint."""

    def image(self, score: Mapping[str, Any]) -> Any:
        """Return the sample grid of a score, uint8 HWC, or None."""

    def keep(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        """Return the steps whose checkpoints must not be removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A training job, as every worker receives it.

    Attributes:
        experiment: The experiment to train.
        resources: Number and kind of the workers.
        data_uri: Data set with a `train` split.
        run_uri: The run's directory.
        tracking_run_id: The MLflow run; empty tracks nothing.
        scorer: Scores checkpoints beside training; None scores none, never stops early, and keeps every checkpoint,
            because any may be the best.
        control_name: Name of the Ray actor through which a request to stop reaches rank 0.
    """

    experiment: Experiment
    resources: Resources
    data_uri: str
    run_uri: str
    tracking_run_id: str = ""
    scorer: Scorer | None = None
    control_name: str = field(default_factory=lambda: f"iddpm-control-{secrets.token_hex(4)}")

    @property
    def retry_seconds(self) -> float:
        """Seconds for which a rank retries storage while the others wait in a collective: at most half of its time-out."""
        return min(OUTAGE_SECONDS, self.resources.collective_timeout_seconds / 2)

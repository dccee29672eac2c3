"""Types between the loop and its callers: batches, hooks at its boundaries, its outcome and its errors."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from training.config.experiment import Experiment, Resources
from training.diffusion.pixels import Batch
from training.storage import OUTAGE_SECONDS

STOP_REQUESTED = "a signal"
"""The `stop_reason` of a training that SIGTERM or Ctrl-C ended; the same command resumes the training."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line with the reason and the remedy.

    Not a `UserError`: a worker that hangs or a lost machine is not a mistake of the user.
    """


class DivergedError(TrainingError):
    """The loss or its gradient stayed non-finite: the caller goes back to the last good checkpoint."""


class BatchSource(Protocol):
    """Provides the images of each step, as a pure function of the arguments."""

    def batches(
        self, first_step: int, num_steps: int, start: int = 0, stop: int | None = None, *, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """Yield images `start` to `stop` of the global batch of each step in turn, prepared ahead of their use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """Functions that the loop calls at its boundaries, on rank 0 alone.

    Attributes:
        log: Receives the step (updates done) and the mean metrics since the last call.
        save: Receives the step and the files of a checkpoint, by name; copies the tensors, which training changes afterwards.
        should_stop: Called at every log boundary; a reason ends training on all ranks after a checkpoint.
        interruption: Called after each update that is no log boundary, so it must be quick. A reason ends training after a
            checkpoint, which contains the metrics' sums since the last log line. With several ranks training ends one update
            later, so later calls must return the reason too.
    """

    log: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    save: Callable[[int, Mapping[str, Any]], None] = lambda step, files: None
    should_stop: Callable[[int], str | None] = lambda step: None
    interruption: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of a training.

    Attributes:
        stop_reason: Why it stopped before its last step, or None; `STOP_REQUESTED` after a signal.
        failure: Why it failed, where starting the workers again would not help; else None.
    """

    step: int
    stop_reason: str | None
    failure: str | None = None


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
        data_uri: Data set with a `train` split.
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

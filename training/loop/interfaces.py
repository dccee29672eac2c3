"""Types between the loop and its callers: batches, hooks at its boundaries, its outcome and its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

STOP_REQUESTED = "a signal"
"""The `stop_reason` of a training that SIGTERM or Ctrl-C ended; the same command resumes the training."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line with the reason and the remedy.

    Not a `UserError`: a worker that hangs or a lost machine is not a mistake of the user.
    """


class DivergedError(TrainingError):
    """The loss or its gradient stayed non-finite: the caller goes back to the last good checkpoint."""


class Batch(Protocol):
    """Images of one step: uint8 NCHW, labels or None, and each image's position in the stream of all batches."""

    @property
    def images(self) -> Tensor:
        """uint8 [batch, channels, height, width]."""

    @property
    def labels(self) -> Tensor | None:
        """int64 [batch], or None where the data set has none."""

    @property
    def indices(self) -> Tensor:
        """int64 [batch]: step * global batch size + place in the global batch."""


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
        interruption: Called after every other update, so it must be quick. A reason ends training on all ranks one
            update later, after a checkpoint that contains the metrics' sums since the last log line. Later calls must return it too.
    """

    log: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    save: Callable[[int, Mapping[str, Any]], None] = lambda step, files: None
    should_stop: Callable[[int], str | None] = lambda step: None
    interruption: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of a training.

    Attributes:
        step: Updates done.
        stop_reason: Why it stopped before its last step, or None; `STOP_REQUESTED` after a signal.
        failure: Why it failed, where starting the workers again would not help; else None.
    """

    step: int
    stop_reason: str | None
    failure: str | None = None

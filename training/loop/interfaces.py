"""What the loop is given and gives: batches, what its surroundings do at its boundaries, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


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
    """Gives the images of each step: a pure function of its arguments."""

    def batches(
        self, first_step: int, num_steps: int, start: int = 0, stop: int | None = None, *, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """Images `start` to `stop` of the global batch of each step in turn, made ahead of their use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What the surroundings do at the loop's boundaries; called on rank 0 alone.

    Attributes:
        log: Takes the step (updates done) and the mean metrics since the last call.
        save: Takes the step and the files of a checkpoint, by name; copies the tensors, which training goes on to change.
        should_stop: Asked at every log boundary; a reason ends training on all ranks after a checkpoint.
        interruption: Asked after every other update, so it must be quick; a reason, which it goes on to give, ends training on all
            ranks an update later, after a checkpoint that holds what is not logged yet.
    """

    log: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    save: Callable[[int, Mapping[str, Any]], None] = lambda step, files: None
    should_stop: Callable[[int], str | None] = lambda step: None
    interruption: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How training ended.

    Attributes:
        step: Updates done.
        stop_reason: Why it stopped before its last step.
        failure: Why it can't go on, where starting the workers again would not help.
    """

    step: int
    stop_reason: str | None
    failure: str | None = None

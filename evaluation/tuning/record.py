"""The record of a trial, `<tuning>/trials/NNNN.json`. The records are the tuning's whole state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluation.records.stored import finite_scores
from evaluation.tuning.search import Value
from training import storage
from training.config.validation import KnownFieldsOnly

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningTrial(KnownFieldsOnly):
    """A trial that has ended.

    Attributes:
        number: Its number, from 0.
        params: Path of each searched field -> the suggested value.
        state: "complete" also after early stopping.
        score: The smallest distance among its checkpoints; None where there is none.
        best_step: The checkpoint of that score.
        scores: Step and distance of each scored checkpoint.
        rungs: Optuna's name of each rung that it reached -> its best score there.
        reason: Why it was pruned, or failed.
        run_uri: Its run's directory; empty for values that do not fit together.
    """

    number: int
    params: dict[str, Value]
    state: State
    score: float | None = None
    best_step: int | None = None
    scores: tuple[tuple[int, float | None], ...] = ()
    rungs: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    run_uri: str = ""

    @property
    def key(self) -> str:
        """The run's key."""
        return self.run_uri.rpartition("/")[2]


def smallest_scores(history: Iterable[Mapping[str, Any]]) -> tuple[tuple[int, float | None], ...]:
    """Return step and smallest distance over the averages of each scored checkpoint; None where none is finite."""
    found = []
    for score in history:
        finite = finite_scores(score).values()
        found.append((int(score["step"]), min(finite, default=None)))
    return tuple(sorted(found))


def read_records(tuning_uri: str) -> list[TuningTrial]:
    """Read the records of a tuning, by number."""
    records = [storage.read_record(uri, TuningTrial) for uri in storage.list_uris(storage.join(tuning_uri, "trials"))]
    return sorted(records, key=lambda record: record.number)


def write_record(tuning_uri: str, record: TuningTrial) -> None:
    """Write a trial's record."""
    storage.write_json(storage.join(tuning_uri, "trials", f"{record.number:04d}.json"), dataclasses.asdict(record))


def best_of(records: Sequence[TuningTrial]) -> TuningTrial | None:
    """Return the finished trial with the smallest score; None if none is finished."""
    complete = [record for record in records if record.state == "complete" and record.score is not None]
    return min(complete, key=lambda record: record.score or 0.0, default=None)


def ranked(records: Iterable[TuningTrial]) -> list[TuningTrial]:
    """Return the records best first: finished ones, then pruned ones, each by score, then failed ones."""
    order = ("complete", "pruned", "failed")
    return sorted(records, key=lambda each: (order.index(each.state), math.inf if each.score is None else each.score, each.number))

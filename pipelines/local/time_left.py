"""The time left of ablations that run on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from components.ablations.directory import ablation_uri
from evaluation.ablations.definitions.cost import trial_cost
from evaluation.ablations.definitions.request import AblationRequest
from training.console import format_duration


class TimeLeft:
    """An estimate of the time until every trial is done, from the time that the work so far has taken.

    Work is weighed by its estimated cost on a CPU, so that a long trial counts for more than a short one. Trials that were
    finished before count for nothing.
    """

    def __init__(self, requests: Sequence[AblationRequest], storage_root_uri: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock.

        Args:
            requests: The ablations that run one after the other.
            storage_root_uri: Where their records are.
            clock: Returns seconds.
        """
        from evaluation.ablations.trials.record import read_record

        self._left: dict[tuple[str, str, str], float] = {}
        for request in requests:
            uri, settings = ablation_uri(request, storage_root_uri), {}
            for trial in request.trials():
                if trial.setting not in settings:
                    settings[trial.setting] = trial_cost(request, trial, "CPU")
                record = read_record(uri, trial.label)
                if record is None or record.error:
                    cost = settings[trial.setting]
                    self._left |= {(uri, trial.label, "training"): cost.training, (uri, trial.label, "measuring"): cost.measuring}
        self._words = " of all ablations" if len(requests) > 1 else ""
        self._done = 0.0
        self._clock, self._start = clock, clock()

    def finish(self, item: Mapping[str, Any], *parts: Literal["training", "measuring"]) -> None:
        """Note that parts of the trial of that item are done."""
        self._done += sum(self._left.pop((item["ablation_uri"], item["label"], part), 0.0) for part in parts)

    def describe(self) -> str:
        """Return text like ", about 25 min 10 s left"; empty while nothing is done, and at the end."""
        if not self._done or not self._left:
            return ""
        seconds = (self._clock() - self._start) * sum(self._left.values()) / self._done
        return f", about {format_duration(seconds)} left{self._words}"

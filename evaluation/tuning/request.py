"""A request for a tuning: what a user chooses on the command line or in the pipeline's form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.tuning.search import Axis, Value, overrides_of, parse_search
from training.config.experiment import Experiment
from training.config.files import resolve_experiment, to_toml
from training.config.plain import PlainRecord
from training.config.validation import KnownFieldsOnly, require


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneOptions(KnownFieldsOnly):
    """The options of a tuning.

    Attributes:
        seed: Seed of the suggestions; the experiment's own is a field of it.
        reduction: At each rung one of so many trials goes on, the others are pruned: 2 or more; 0 prunes none.
        hours: No trial starts after so many hours; 0 is no limit.
    """

    seed: int = 0
    reduction: int = 3
    hours: float = 0.0

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", f"must be 0 or more, got {self.seed}")
        require(self.reduction == 0 or self.reduction >= 2, "reduction", f"must be 2 or more, or 0 to prune no trial, got {self.reduction}")
        require(self.hours >= 0, "hours", f"must be 0 or more, got {self.hours}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneRequest(PlainRecord):
    """A request.

    Attributes:
        preset: The experiment whose fields are searched; empty with a file.
        file: Text of an experiment file; empty with a preset.
        search: The searched fields; see `parse_search`.
        trials: Number of trials in all.
    """

    preset: str = ""
    file: str = ""
    overrides: tuple[str, ...] = ()
    search: tuple[str, ...]
    trials: int
    options: TuneOptions = TuneOptions()

    def experiment(self) -> Experiment:
        """Return the experiment without any suggestion."""
        return resolve_experiment(preset=self.preset, file_text=self.file, overrides=self.overrides)

    def axes(self) -> tuple[Axis, ...]:
        """Return the searched fields; refuse an experiment, a field or a number of trials that does not fit."""
        require(self.trials >= 1, "trials", f"must be 1 or more, got {self.trials}")
        return parse_search(self.search, self.experiment())

    def trial(self, params: Mapping[str, Value]) -> Experiment:
        """Return the experiment of a trial; raise UserError if the values do not fit together."""
        return resolve_experiment(preset=self.preset, file_text=self.file, overrides=(*self.overrides, *overrides_of(params)))

    def as_file(self, params: Mapping[str, Value]) -> str:
        """Return a trial as an experiment file, which `iddpm train` takes."""
        return to_toml(self.trial(params), self.preset or tomllib.loads(self.file)["base"])

    def key(self, data_digest: str) -> str:
        """Return the name of its directory and MLflow run.

        The number of trials and the time limit are no part of it: more of them go on with the same tuning.
        """
        axes = [dataclasses.asdict(axis) for axis in self.axes()]
        experiment = self.experiment()
        identity = json.dumps([experiment.to_dict(), axes, self.options.seed, self.options.reduction, data_digest], sort_keys=True)
        return f"tune-{experiment.name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def command(self) -> str:
        """Return the command that goes on with the same tuning.

        FILE.toml stands for a file, whose name is not part of a request. The limit of hours is left out: it is one of a single call.
        """
        words = ["iddpm", "tune", self.preset or "FILE.toml"]
        words += [word for item in self.search for word in ("--search", item)]
        words += ["--trials", str(self.trials)]
        words += [word for item in self.overrides for word in ("--set", item)]
        for name, value in dataclasses.asdict(self.options).items():
            if name != "hours" and value != getattr(TuneOptions(), name):
                words += [f"--{name}", str(value)]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

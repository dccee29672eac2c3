"""A step's call on a Ray cluster: its key, the file with its arguments, and the file with its result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.launch.step import Step, load
from training import storage

ANSWER = "rayjob-answer.json"
TRY_AGAIN = 75
"""Exit code of a driver that failed for a reason that may pass (EX_TEMPFAIL of sysexits.h)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call of a step.

    Attributes:
        key: Key that names the job; one key has one job at a time.
        result_uri: File that exists once the call is done: a training's result, or the value that any other step returned.
        launch: Id of the launching process. It is part of the file's name, so that a launcher does not overwrite the file of another
            whose job is just starting.
    """

    step: Step
    arguments: Mapping[str, Any]
    key: str
    directory_uri: str
    result_uri: str
    launch: str = ""

    @property
    def uri(self) -> str:
        """URI of the file with step and arguments."""
        return storage.join(self.directory_uri, f"rayjob-call-{self.launch}.json" if self.launch else "rayjob-call.json")

    @property
    def driver(self) -> tuple[str, ...]:
        """Command that does it, on a node of the cluster."""
        return "python", "-m", "components.launch.driver", self.uri

    def write(self, *, answer_uri: str = "", ray_address: str = "auto") -> None:
        """Write the file with step and arguments.

        Args:
            answer_uri: File for what the step returns; by default the result's, and none for a training.
            ray_address: Where its driver finds Ray.
        """
        answer_uri = answer_uri or ("" if self.step.run_files else self.result_uri)
        call = {"step": dataclasses.asdict(self.step), "arguments": dict(self.arguments), "answer_uri": answer_uri}
        storage.write_json(self.uri, {**call, "ray_address": ray_address})

    def is_done(self) -> bool:
        """Return True if the result is there."""
        return storage.exists(self.result_uri)

    def progress(self) -> int:
        """Return the step of the run's last checkpoint, or the number of trials that a tuning has recorded; 0 for another step.

        While the storage is away it waits, so that the tries of a step that has no checkpoints are not spent on one outage.
        """
        if not self.step.run_files:
            storage.retry(self.is_done)
            return 0
        from training.checkpoints import checkpoint

        steps = storage.retry(lambda: checkpoint.steps(self.directory_uri))
        if steps:
            return max(steps)
        return len(storage.retry(lambda: storage.list_uris(storage.join(self.directory_uri, "trials"))))

    def result(self) -> Any:
        """Return the value that the step returned."""
        return self.directory_uri if self.step.run_files else storage.read_json(self.result_uri)["returned"]


def call_of(step: Step, arguments: Mapping[str, Any], scope: str = "") -> Call:
    """Make the call of a step.

    Args:
        scope: Part of the key, so that calls of different scopes differ. A training ignores it: one run has one job, whoever starts it.

    Raises:
        UserError: A training's experiment or data set does not fit.
    """
    if step.run_files:
        key, directory_uri, result_uri = load(step.run_files)(arguments)
        return Call(step=step, arguments=arguments, key=key, directory_uri=directory_uri, result_uri=result_uri)
    identity = json.dumps([dict(arguments), scope], sort_keys=True)
    key = f"{step.name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    directory_uri = storage.join(arguments[step.files_argument], "rayjobs", key)
    return Call(step=step, arguments=arguments, key=key, directory_uri=directory_uri, result_uri=storage.join(directory_uri, ANSWER))

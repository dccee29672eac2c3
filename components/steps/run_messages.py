"""Tell the webhook of a pipeline's run: that it began, that it hangs, how it ended.

Each message has one record below the storage root, `runs-told/`, so a run's end is told once: by a step, by the exit task, or
by the reaper for a run that has no exit task or whose exit task was killed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from components.cluster.failures import in_one_sentence
from components.steps.studies import FINAL, read_evaluation
from components.steps.webhook import send_once
from training import storage
from training.console import format_duration

KFP_ADDRESS_VARIABLE = "IDDPM_KFP_PUBLIC_URL"
"""The address of KFP's UI that people use."""


class End(NamedTuple):
    """The end of a pipeline's run.

    Attributes:
        succeeded: All steps did.
        cancelled: Somebody ended it.
        errors: The last error of each step that failed.
        since: When the last pod began, UTC as ISO 8601: what was told before is of an earlier try. Empty if it is not known.
    """

    succeeded: bool
    cancelled: bool = False
    errors: Mapping[str, str] = {}
    since: str = ""

    @property
    def event(self) -> str:
        """The name of the end, as the webhook calls it."""
        return "finished" if self.succeeded else "cancelled" if self.cancelled else "failed"


def record_uri(storage_root_uri: str, pipeline_run_id: str, what: str = "") -> str:
    """Return where a message about a run is recorded; `what` names its subject, and is empty for the run's end."""
    name = f"{pipeline_run_id}-{what}" if what else pipeline_run_id
    return storage.join(storage_root_uri, "runs-told", f"{name}.json")


def tell_end(
    end: End,
    pipeline_run_id: str,
    storage_root_uri: str,
    *,
    name: str,
    numbers: Mapping[str, Any] | None = None,
    needs_record: bool = True,
) -> bool:
    """Tell how a run ended, once.

    Args:
        end: The end.
        pipeline_run_id: The run.
        storage_root_uri: Its storage root.
        name: Its name for people.
        numbers: What it found: `summary` is one line of it for people.
        needs_record: See `send_once`.

    Returns:
        False if the webhook did not take the message.
    """
    numbers = numbers or {}
    reason = in_one_sentence(end.errors)
    summary = f": {numbers['summary']}" if "summary" in numbers else ""
    outcome = {"finished": f"finished{summary}", "cancelled": "was cancelled", "failed": f"failed at {reason}" if reason else "failed"}
    message = message_of(end.event, pipeline_run_id, f"{name} {outcome[end.event]}")
    message |= {"errors": dict(end.errors)} if end.errors else {}
    message |= {"numbers": dict(numbers)} if numbers else {}
    return send_once(message, record_uri(storage_root_uri, pipeline_run_id), since=end.since, needs_record=needs_record)


def tell_start(pipeline_run_id: str, storage_root_uri: str, *, name: str) -> bool:
    """Tell that a run has begun, once."""
    message = message_of("started", pipeline_run_id, f"{name} has begun")
    return send_once(message, record_uri(storage_root_uri, pipeline_run_id, "started"))


def tell_hung(pipeline_run_id: str, run_uri: str, storage_root_uri: str, *, seconds: float, since: int) -> bool:
    """Tell that a training makes no progress, once for each time that it stands still.

    Args:
        pipeline_run_id: The pipeline's run.
        run_uri: The training's directory.
        storage_root_uri: The storage root.
        seconds: How long it has made none.
        since: Time of its last progress, in seconds since 1970.
    """
    key = run_uri.rstrip("/").rpartition("/")[2]
    message = message_of("hung", pipeline_run_id, f"{key} has made no progress for {format_duration(seconds)}")
    return send_once({**message, "run_uri": run_uri, "since": since}, record_uri(storage_root_uri, pipeline_run_id, f"hung-{key}-{since}"))


def training_numbers(run_uri: str) -> dict[str, Any]:
    """Return the reported numbers of a training, and a line of them; empty if it has not been evaluated."""
    try:
        result = read_evaluation(run_uri, FINAL)
    except storage.ObjectNotFoundError:
        return {}
    error = result.distance_standard_error
    words = [f"{result.distance_name} {result.distance:.4g}" + (f" ± {error:.2g}" if error is not None else "")]
    if math.isnan(result.distance):
        words = [f"no finite {result.distance_name}"]
    if result.likelihood is not None:
        bits_per_dim = result.likelihood["bits_per_dim"]
        words.append("no finite bits/dim" if bits_per_dim is None else f"{bits_per_dim:.4g} bits/dim")
    summary = f"{', '.join(words)}, at step {result.step:,}"
    return {"summary": summary, "distance_name": result.distance_name, "step": result.step, **result.flat_metrics()}


def message_of(event: str, pipeline_run_id: str, text: str) -> dict[str, Any]:
    """Return what all messages have: the event, a text for people, the run's id, and the link to its page if KFP's address is set."""
    address = os.environ.get(KFP_ADDRESS_VARIABLE, "").rstrip("/")
    links = {"kfp": f"{address}/#/runs/details/{pipeline_run_id}"} if address else {}
    return {"event": event, "text": f"iDDPM: {text} (run {pipeline_run_id})", "run_id": pipeline_run_id, "links": links}

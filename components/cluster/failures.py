"""The last errors of a run's failed steps: from the pod's log, else from the log that KFP keeps in S3, else from Argo's words.

The Workflow knows every step that failed, also one that was killed before it could write anything. So nothing is asked of the step.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from components.cluster.workflows import Attempt, attempts
from training import storage
from training.config.redaction import without_secrets

T = TypeVar("T")

_LONGEST = 400
_S3_SECONDS = 20.0
_LAUNCHER = re.compile(r"[IWEF]\d{4} |(time|level)=|Error: exit status|exit status|\[KFP Executor [^]]* INFO\]")
"""Beginnings of lines that KFP's launcher and executor and Argo's executor write around the step's own."""
_BEFORE_JSON = re.compile(r".*(\{|executor_input:)$")
"""A line of `_LAUNCHER` after which a JSON object follows. The object ends with a brace at the beginning of a line."""
_KFPS_OWN = re.compile(
    r"^F\d{4} .*?\] (?:failed to execute component: (?!exit status|signal: )(?P<launcher>.+)|KFP driver: (?P<driver>.+))", re.MULTILINE
)
"""The last error of KFP's launcher if not the step but the launcher failed, for instance at S3, or of KFP's driver."""
_PLAIN_EXIT = re.compile(r"(main: )?Error \(exit code 1\)")
"""Argo's words for a step that ended with an error of its own, which its log says better."""


def step_errors(workflow: Mapping[str, Any], read_log: Callable[[str], str]) -> dict[str, str]:
    """Return the last error of each step that has failed, without secrets; `read_log` returns the log of a pod, or an empty text."""
    last = {attempt.step: attempt for attempt in attempts(workflow) if attempt.has_failed}
    return {step: without_secrets(_error(attempt, read_log)) for step, attempt in last.items()}


def in_one_sentence(errors: Mapping[str, str]) -> str:
    """Return the errors of steps as one line."""
    return "; ".join(f"{step}: {error}" for step, error in errors.items())


def last_error(log: str) -> str:
    """Return the error that a log names: that of KFP's launcher or driver, the end of the last traceback, else the step's last line."""
    if own := _KFPS_OWN.search(log):
        return f"KFP's {own.lastgroup}: {_shortened(own[own.lastgroup or 0])}"
    lines = [line.rstrip() for line in step_lines(log) if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[starts[-1] + 1 :] if starts else []
    ends = [line for line in after if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
    found = ends[0] if ends else lines[-1] if lines else ""
    return re.sub(r"^(\w+\.)+(?=\w+(:|$))", "", found)[:_LONGEST]  # without the module of the error's type


def _shortened(words: str) -> str:
    """Leave out the middle: Go's errors begin with what was done, and end with why it failed."""
    half = _LONGEST // 2
    return words if len(words) <= _LONGEST else f"{words[:half]} ... {words[-half:]}"


def step_lines(log: str) -> list[str]:
    """Return the lines of a log that the step itself wrote, without KFP's JSON of its inputs and outputs."""
    lines: list[str] = []
    is_json = False
    for line in log.splitlines():
        if is_json:
            is_json = line != "}"
        elif _LAUNCHER.match(line):
            is_json = bool(_BEFORE_JSON.match(line))
        else:
            lines.append(line)
    return lines


def _error(attempt: Attempt, read_log: Callable[[str], str]) -> str:
    log = read_log(attempt.pod) or stored_log(attempt.log_uri)
    error = last_error(log)
    if not error or not attempt.message or _PLAIN_EXIT.match(attempt.message):
        return error or attempt.message or "no reason is known"
    return f"{attempt.message[:_LONGEST]} (its log ends with: {error})"


def stored_log(uri: str) -> str:
    """Return a log that KFP's launcher keeps in S3; empty if it can't be read soon."""
    return (read_soon(lambda: storage.read_bytes(uri)) or b"").decode(errors="replace") if uri else ""


def read_soon(read: Callable[[], T]) -> T | None:
    """Return what is read from storage; None if it can't be read soon, as on a machine without the credentials."""
    found: queue.SimpleQueue[T | None] = queue.SimpleQueue()

    def put() -> None:
        try:
            found.put(read())
        except (storage.StorageError, OSError):
            found.put(None)

    threading.Thread(target=put, daemon=True).start()
    try:
        return found.get(timeout=_S3_SECONDS)
    except queue.Empty:
        return None

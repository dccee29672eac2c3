"""The logs of a run's steps.

The log of a step that has ended is stored in the directory of the pipeline's run. The log of another step is read from its pod. If neither
is there, as when a pod was deleted, the copy that KFP's launcher keeps in S3 is read.

The log of a training on a Ray cluster is in its step's log, because the step follows the driver. The logs of its workers are in the run's
directory (`pipelines.client.stored_logs`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from components.cluster.failures import last_error, read_soon, step_lines, stored_log
from components.cluster.workflows import Attempt, attempts, form_of
from components.launch.logs import pipeline_directory
from pipelines.client.follow import DEFAULT_POLLING, Polling, retrying
from pipelines.client.kfp_client import Kfp
from pipelines.client.runs import FINISHED, get_run
from training.config.errors import UserError
from training.config.redaction import without_secrets
from training.config.validation import close_to
from training.storage.logs import StoredLog, list_logs, read_part

_OVER = ("Succeeded", "Failed", "Error")
"""Phases of a try whose log is complete."""


def show_logs(
    kfp: Kfp,
    run_id: str,
    step: str,
    *,
    follow: bool,
    out: Callable[[str], None],
    err: Callable[[str], None],
    polling: Polling = DEFAULT_POLLING,
) -> None:
    """Print the logs of a run's steps, each try once. With several steps, a line begins with its step. KFP's drivers show only errors.

    Args:
        step: The step, like "train"; of a step in a loop all of its items, or one, like "train-trial (2)". Empty takes all steps.
        follow: Print also what comes until the run has ended.
        out: Called with each line of a log.
        err: Called with each line about a log.

    Raises:
        UserError: There is no such run, or it has no such step.
    """
    get_run(kfp, run_id)
    with_retries = retrying(kfp, err, polling)
    num_shown: dict[str, int] = {}
    complete: set[str] = set()
    while True:
        has_ended = with_retries(kfp.client.get_run, run_id).state in FINISHED
        workflow = with_retries(kfp.workflow, run_id)
        tries = attempts(workflow) if workflow else []  # KFP has none before Argo has seen it
        there = [each for each in tries if not each.is_driver]
        refused = [each for each in tries if each.is_driver and each.has_failed and step in ("", each.step)]
        wanted = [each for each in there if not step or each.step == step or each.step.startswith(f"{step} (")]
        steps = sorted({each.step for each in there})
        if step and not wanted and not refused and (has_ended or not follow):
            known = close_to(step, steps) or (f"; it has {', '.join(steps)}" if steps else "; none has begun")
            raise UserError(f"run {run_id} has no step {step!r}{known}")
        is_plain = bool(step) and len({each.step for each in wanted}) == 1
        # A log whose beginning came from the pod goes on from there: the stored one may have other lines at its end.
        unseen = [each for each in wanted if each.phase in _OVER and each.pod not in num_shown]
        directory = _directory(workflow, run_id)
        stored = read_soon(lambda: list_logs(directory)) if unseen and directory else []  # noqa: B023 - called at once
        for attempt in wanted:
            if attempt.pod in complete or (not (is_over := attempt.phase in _OVER) and attempt.phase != "Running"):
                continue
            lines = _stored_lines(stored or [], attempt) if attempt in unseen else []
            log = "" if lines else _pod_log(kfp, run_id, attempt)
            lines = lines or step_lines(log)
            if attempt.pod not in num_shown:
                empty = "it wrote nothing" if is_over else "it has written nothing yet"
                reason = empty if log else _reason(kfp, directory, is_over=is_over, can_read=stored is not None)
                err(f"--- {attempt.step}, pod {attempt.pod}" + ("" if lines else f": {reason}"))
            for line in lines[num_shown.get(attempt.pod, 0) :]:
                out(line if is_plain else f"{attempt.step}: {line}")
            num_shown[attempt.pod] = max(len(lines), num_shown.get(attempt.pod, 0))  # a server that fails shows no line this time
            complete |= {attempt.pod} if is_over else set()
        for attempt in refused:
            if attempt.pod not in complete:
                complete.add(attempt.pod)
                err(f"--- {attempt.step}, pod {attempt.pod}: it never began")
                out(f"{attempt.step}: {last_error(_pod_log(kfp, run_id, attempt)) or attempt.message}")
        if has_ended or not follow:
            return
        time.sleep(polling.interval_seconds)


def _directory(workflow: Mapping[str, Any], run_id: str) -> str:
    """Return the directory of the pipeline's run, below the storage root of the run's form; empty where that has none."""
    root = str(form_of(workflow).get("storage_root_uri") or "")
    return pipeline_directory(root, run_id) if root else ""


def _reason(kfp: Kfp, directory: str, *, is_over: bool, can_read: bool) -> str:
    """Say why there is no log of a step."""
    if not is_over and kfp.can_read_pods:
        return "no log yet"
    if not is_over:
        return "no log yet; if none comes, give --port-forward or the UI's address: KFP's API reads no pod"
    if can_read:
        return "its log is gone"
    return f"its pod is gone, and {directory} can't be read from here; with credentials for S3, iddpm logs {directory} shows its log"


def _stored_lines(stored: Sequence[StoredLog], attempt: Attempt) -> list[str]:
    """Return the lines of the log that the step's process began to store while its pod was there; none without it."""
    started, finished = (re.sub("[-:Z]", "", time) for time in (attempt.started, attempt.finished))
    parts = [part.uri for log in stored if log.step == attempt.step and started <= log.began <= finished for part in log.parts]
    return (read_soon(lambda: [line for uri in parts for line in read_part(uri)]) or []) if parts else []


def _pod_log(kfp: Kfp, run_id: str, attempt: Attempt) -> str:
    """Return the whole log of a pod, with what KFP's launcher writes; empty if it is gone."""
    log = kfp.pod_log(run_id, attempt.pod)
    return without_secrets(log or (stored_log(attempt.log_uri) if attempt.phase in _OVER else ""))

"""The logs of a run's steps: from their pods while these are there, else from those that KFP's launcher keeps in S3.

The log of a training on a Ray cluster is in its step's log, as the step follows the driver; those of its workers are in the run's
directory, see `pipelines.client.stored_logs`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from components.cluster.failures import step_lines, stored_log
from components.cluster.workflows import Attempt, attempts
from pipelines.client.arguments import close_to
from pipelines.client.follow import DEFAULT_POLLING, Polling, retrying
from pipelines.client.kfp_client import Kfp
from pipelines.client.runs import FINISHED, get_run
from training.config.errors import UserError
from training.config.redaction import without_secrets

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
    """Print the logs of a run's steps, each try once; each line after its step's name if there are several.

    Args:
        step: The step, like "train"; of a step in a loop all of its items, or one, like "train-trial (2)". Empty takes all steps.
        follow: Print also what comes until the run has ended.
        out: Called with each line of a log.
        err: Called with each line about a log.

    Raises:
        UserError: There is no such run, or it has no such step.
    """
    get_run(kfp, run_id)
    patiently = retrying(kfp, err, polling)
    num_shown: dict[str, int] = {}
    complete: set[str] = set()
    while True:
        has_ended = patiently(kfp.client.get_run, run_id).state in FINISHED
        there = [each for each in attempts(patiently(kfp.workflow, run_id)) if not each.is_driver]
        wanted = [each for each in there if not step or each.step == step or each.step.startswith(f"{step} (")]
        steps = sorted({each.step for each in there})
        if step and not wanted and (has_ended or not follow):
            known = close_to(step, steps) or (f"; it has {', '.join(steps)}" if steps else "; none has begun")
            raise UserError(f"run {run_id} has no step {step!r}{known}")
        is_plain = bool(step) and len({each.step for each in wanted}) == 1
        for attempt in wanted:
            if attempt.pod in complete or (not (is_over := attempt.phase in _OVER) and attempt.phase != "Running"):
                continue
            lines = _lines(kfp, run_id, attempt)
            if attempt.pod not in num_shown:
                err(f"--- {attempt.step}, pod {attempt.pod}" + ("" if lines or not is_over else ": its log is gone"))
            for line in lines[num_shown.get(attempt.pod, 0) :]:
                out(line if is_plain else f"{attempt.step}: {line}")
            num_shown[attempt.pod] = max(len(lines), num_shown.get(attempt.pod, 0))  # a server that fails shows nothing for once
            complete |= {attempt.pod} if is_over else set()
        if has_ended or not follow:
            return
        time.sleep(polling.interval_seconds)


def _lines(kfp: Kfp, run_id: str, attempt: Attempt) -> list[str]:
    log = kfp.pod_log(run_id, attempt.pod)
    return step_lines(without_secrets(log or (stored_log(attempt.log_uri) if attempt.phase in _OVER else "")))

"""Follow a run to its end: a line for each task whose state changes or whose pod can't start, and the errors of failed tasks.

KFP's API reports the states of Argo's nodes: for each task also its driver, its executor and its retries. It reports no
errors. Those are in the run's Workflow and in the logs of the tasks' pods, which the same server gives: no kubeconfig is needed.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import tenacity

from components.cluster.failures import in_one_sentence, step_errors
from components.cluster.workflows import attempts, is_cancelled, is_compressed, nodes_of
from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp
from pipelines.client.runs import FINISHED, format_state, was_cancelled
from training.console import format_duration

_STARTING = ("", "PodInitializing", "ContainerCreating")
"""Argo's words for a pod that starts as it should."""
_TASK_STATES = {"Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED", "Failed": "FAILED", "Error": "FAILED"}
"""KFP's words for the phases of Argo's nodes."""
_OWN_ERROR = re.compile(r"main: Error \(exit code (?!137|143)\d+\)")
"""Argo's words for a step that ended by itself. It is not tried again, but Argo says so only a minute later."""


class RunFailedError(RuntimeError):
    """The run failed; the message names the tasks that failed and their errors."""


class RunCancelledError(RunFailedError):
    """The run was cancelled. The command ends as one that was interrupted."""

    exit_status = 130


class StillRunningError(RuntimeError):
    """The time to wait is over and the run still goes on. The command ends as one that `timeout` ended."""

    exit_status = 124


@dataclass(frozen=True, kw_only=True, slots=True)
class Polling:
    """Intervals and limits of polling a run.

    Attributes:
        interval_seconds: Time between two requests.
        look_seconds: Time between two looks at the Workflow, while a task's pod does not start; it is a large answer.
        still_seconds: Time without a change of any task, after which the Workflow is looked at.
        outage_seconds: Time for which the server may give no answer.
        token_seconds: Time for which it may refuse the token of a file, which a login helper may be about to renew.
            Without such a file a refusal is final.
        silence_seconds: Time for which it may know of no task; after it a line says where to look for the reason.
    """

    interval_seconds: float = 5.0
    look_seconds: float = 10.0
    still_seconds: float = 60.0
    outage_seconds: float = 600.0
    token_seconds: float = 60.0
    silence_seconds: float = 120.0


DEFAULT_POLLING = Polling()


def follow(
    kfp: Kfp,
    run_id: str,
    *,
    task_names: Collection[str],
    say: Callable[[str], None],
    timeout_seconds: float | None = None,
    polling: Polling = DEFAULT_POLLING,
) -> Any:
    """Wait for the end of a run, and return the run, also a failed one.

    Args:
        task_names: Names of the pipeline's tasks; Argo's other nodes are not reported.
        timeout_seconds: The longest time to wait; None waits for the end.

    Raises:
        StillRunningError: The time is over.
        KfpError: The run was deleted, or the server gave no answer for too long.
    """
    began = time.monotonic()
    reported: dict[str, str] = {}
    is_silence_said = False
    tasks = _Tasks(kfp, run_id, polling)
    obstacles = _Obstacles(kfp, run_id, say, polling.look_seconds)
    get_run = retrying(kfp, say, polling).wraps(kfp.client.get_run)
    while True:
        run = get_run(run_id)
        details = tasks.of(run)
        for label, state in _task_states(run, details, task_names).items():
            if state != (before := reported.get(label, "pending")) and (before, state) != ("failed", "cancelled"):
                reported[label] = state
                say(f"{label:<24} {state}")
        if run.state in FINISHED:
            return run
        obstacles.report(details)
        waited = time.monotonic() - began
        if waited > polling.silence_seconds and not is_silence_said and not details:
            is_silence_said = True
            say(
                f"KFP knows of no step of the run after {format_duration(waited)}; if none comes, the logs of deploy/workflow-controller "
                "(nothing is started) and deploy/ml-pipeline-persistenceagent (nothing is reported) in its namespace say why"
            )
        left = math.inf if timeout_seconds is None else timeout_seconds - waited
        if left <= 0:
            raise StillRunningError(f"run {run_id} is still {format_state(run.state)} after {format_duration(waited)}; it goes on")
        time.sleep(min(polling.interval_seconds, left))


def require_success(kfp: Kfp, run: Any) -> None:
    """Raise an error unless the run succeeded.

    Raises:
        RunCancelledError: It was cancelled.
        RunFailedError: It failed.
    """
    if run.state == "SUCCEEDED":
        return
    if was_cancelled(run):
        raise RunCancelledError(f"run {run.run_id} was cancelled")
    workflow = kfp.workflow(run.run_id)
    errors = step_errors(workflow, lambda pod: kfp.pod_log(run.run_id, pod)) if workflow else {}
    reason = in_one_sentence(errors) or getattr(run.error, "message", None) or "KFP gives no reason; its page in the UI shows the steps"
    raise RunFailedError(f"run {run.run_id} failed at {reason}" if errors else f"run {run.run_id} failed: {reason}")


class _Task(NamedTuple):
    """A task, a driver or a DAG of a run, with KFP's word for its state; None if it was left out."""

    task_id: str
    display_name: str
    state: str | None
    start_time: str


class _Tasks:
    """The run's tasks, drivers and DAGs: as KFP lists them, or as the Workflow has them where KFP's list stands still.

    Argo compresses the nodes of a large Workflow, as a sweep's becomes when its trials are measured. KFP copies no states from these.
    """

    def __init__(self, kfp: Kfp, run_id: str, polling: Polling) -> None:
        self._kfp, self._run_id, self._polling = kfp, run_id, polling
        self._states: list[tuple[str, str | None]] = []
        self._looked = time.monotonic()
        self._nodes: list[_Task] = []

    def of(self, run: Any) -> list[_Task]:
        """Return them in no order; empty before KFP's persistence agent has reported the Workflow."""
        details = (run.run_details.task_details if run.run_details else None) or []
        listed = [_Task(str(each.task_id), each.display_name or "", each.state, str(each.start_time)) for each in details]
        now = time.monotonic()
        if (states := [(each.task_id, each.state) for each in listed]) != self._states:
            self._states, self._nodes, self._looked = states, [], now
        pause = self._polling.look_seconds if self._nodes else self._polling.still_seconds
        go_on = any(each.state in ("PENDING", "RUNNING") for each in listed)
        if go_on and (now - self._looked >= pause or run.state in FINISHED):
            self._looked = now
            with contextlib.suppress(KfpError):  # the run itself is followed with more patience
                workflow = self._kfp.workflow(self._run_id)
                if is_compressed(workflow):
                    self._nodes = [
                        _Task(ident, node["displayName"], _TASK_STATES.get(node["phase"]), str(node.get("startedAt") or ""))
                        for ident, node in nodes_of(workflow).items()
                    ]
        return self._nodes or listed


class _Obstacles:
    """Reports why the pods of tasks do not start, or are tried again; each reason once."""

    def __init__(self, kfp: Kfp, run_id: str, say: Callable[[str], None], look_seconds: float) -> None:
        self._kfp, self._run_id, self._say, self._look_seconds = kfp, run_id, say, look_seconds
        self._said: set[tuple[str, str]] = set()
        self._looked = 0.0

    def report(self, details: Collection[_Task]) -> None:
        now = time.monotonic()
        if now - self._looked < self._look_seconds or not any(detail.state in ("PENDING", "FAILED") for detail in details):
            return
        self._looked = now
        try:
            workflow = self._kfp.workflow(self._run_id)
        except KfpError:
            return  # the run itself is followed with more patience
        if not workflow or is_cancelled(workflow):
            return
        for attempt in attempts(workflow):
            waits = attempt.phase == "Pending" and attempt.message not in _STARTING
            has_ended = attempt.phase in ("Failed", "Error") and not attempt.has_failed
            is_retried = has_ended and attempt.message and not _OWN_ERROR.match(attempt.message)
            key = (attempt.step, attempt.message.replace(attempt.pod, ""))
            if (waits or is_retried) and key not in self._said:
                self._said.add(key)
                self._say(f"{attempt.step:<24} {'waits' if waits else 'is tried again'}: {attempt.message}")


def _task_states(run: Any, details: Collection[_Task], names: Collection[str]) -> dict[str, str]:
    """Return the states by task. The tasks of a loop are numbered in the order in which they began."""
    found: dict[str, list[_Task]] = {}
    for detail in sorted(details, key=lambda each: (each.start_time, each.task_id)):
        name = detail.display_name
        task = name.removesuffix("-driver")
        # A driver prepares its task's pod. It matters only if it fails, since its task then never begins.
        if task in names and (task == name or detail.state == "FAILED"):
            found.setdefault(task, []).append(detail)
    states: dict[str, str] = {}
    was_ended = run.state == "CANCELING" or was_cancelled(run)
    for name, nodes in found.items():
        if any(node.display_name != name for node in nodes):
            nodes = [node for node in nodes if node.state]  # a task that its failed driver left out is there too, without a state
        for number, node in enumerate(nodes, start=1):
            state = "CANCELED" if node.state == "FAILED" and was_ended else node.state
            states[name if len(nodes) == 1 else f"{name} ({number})"] = format_state(state)
    return states


def retrying(kfp: Kfp, say: Callable[[str], None], polling: Polling) -> tenacity.Retrying:
    """Return a retry policy that bears a server's outage, and reports the first failure of each.

    A refused token has a shorter limit, from its first refusal on: the file that it is read from is renewed soon, or never.
    """
    refused_since = math.inf

    def is_transient(error: BaseException) -> bool:
        return isinstance(error, KfpError) and (error.is_transient or (error.status == 401 and kfp.rereads_token))

    def is_exhausted(call: tenacity.RetryCallState) -> bool:
        nonlocal refused_since
        error, seconds = call.outcome.exception() if call.outcome else None, call.seconds_since_start or 0.0
        is_refused = isinstance(error, KfpError) and error.status == 401
        if call.attempt_number == 1 or not is_refused:
            refused_since = math.inf
        if is_refused:
            refused_since = min(refused_since, seconds)
        return seconds >= polling.outage_seconds or seconds - refused_since >= polling.token_seconds

    def report(call: tenacity.RetryCallState) -> None:
        if call.attempt_number == 1 and call.outcome:
            say(f"{call.outcome.exception()}; the run goes on, and this command asks again")

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=is_exhausted,
        wait=tenacity.wait_fixed(polling.interval_seconds),
        before_sleep=report,
        reraise=True,
    )

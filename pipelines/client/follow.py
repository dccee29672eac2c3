"""A run watched to its end: a line for each task whose state changes, and what failed named with its error.

KFP's API tells the states of Argo's nodes: each task is there beside its driver, its executor and its tries. It tells
no errors; those stand in the log of the task's pod, which is read from Kubernetes where that can be reached.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp
from pipelines.client.submit import FINISHED
from training.console import format_duration

_WORDS = {"RUNTIME_STATE_UNSPECIFIED": "pending", "CANCELED": "cancelled", "CANCELING": "being cancelled"}
_NODE_NAME = "workflows.argoproj.io/node-name"


class RunFailedError(RuntimeError):
    """The run did not end well; names the tasks that failed and their errors."""


class StillRunningError(RuntimeError):
    """The time to wait was over before the run was; the run goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How often to look, and how long to bear a server that does not answer.

    Attributes:
        poll_seconds: Between two looks.
        patience_seconds: How long the server may be silent.
    """

    poll_seconds: float = 5.0
    patience_seconds: float = 600.0


DEFAULT_PACE = Pace()


def follow(
    kfp: Kfp,
    run_id: str,
    *,
    task_names: Collection[str],
    say: Callable[[str], None],
    timeout_seconds: float | None = None,
    pace: Pace = DEFAULT_PACE,
) -> Any:
    """Waits for a run, and returns it as it ended, however it ended.

    Args:
        kfp: The connection.
        run_id: The run.
        task_names: What is a task of the pipeline, rather than a node of Argo's around one.
        say: Is given each line of progress.
        timeout_seconds: How long to wait; None waits for the end.
        pace: How often to look.

    Raises:
        StillRunningError: The time is over.
        KfpError: The run is gone, or the server silent for too long.
    """
    began = time.monotonic()
    said: dict[str, str] = {}
    while True:
        run = _patiently(lambda: kfp.client.get_run(run_id), say, pace)
        for label, state in _task_states(run, task_names).items():
            if state != said.get(label, "pending"):
                said[label] = state
                say(f"{label:<24} {state}")
        if run.state in FINISHED:
            return run
        waited = time.monotonic() - began
        if timeout_seconds is not None and waited + pace.poll_seconds > timeout_seconds:
            raise StillRunningError(f"run {run_id} is still {words(run.state)} after {format_duration(waited)}; it goes on")
        time.sleep(pace.poll_seconds)


def require_success(run: Any, *, task_names: Collection[str], namespace: str) -> None:
    """Lets a run that succeeded pass.

    Args:
        run: As it ended.
        task_names: Those of its pipeline.
        namespace: Where its pods are, or were.

    Raises:
        RunFailedError: It failed or was cancelled.
    """
    if run.state == "SUCCEEDED":
        return
    failed = [label for label, state in _task_states(run, task_names).items() if state == "failed"]
    if run.state == "CANCELED" or not failed:
        told = getattr(run.error, "message", None)
        raise RunFailedError(f"run {run.run_id} {'was cancelled' if run.state == 'CANCELED' else 'failed'}" + (f": {told}" if told else ""))
    errors = _errors(run, namespace)
    told = "; ".join(f"{label}: {errors[_bare(label)]}" if _bare(label) in errors else label for label in failed)
    unknown = any(_bare(label) not in errors for label in failed)
    where = f"the log says why: in the UI, or 'kubectl -n {namespace} logs -l pipeline/runid={run.run_id} -c main --prefix --tail=20'"
    raise RunFailedError(f"run {run.run_id} failed at {told}" + (f"; {where}" if unknown else ""))


def words(state: str | None) -> str:
    """A state as a person says it."""
    return _WORDS.get(state or "RUNTIME_STATE_UNSPECIFIED", (state or "").lower())


def _task_states(run: Any, names: Collection[str]) -> dict[str, str]:
    """Task -> state; the tasks of a loop are numbered in the order in which they began."""
    details = (run.run_details.task_details if run.run_details else None) or []
    found: dict[str, list[Any]] = {}
    for detail in sorted(details, key=lambda each: (str(each.start_time), str(each.task_id))):
        name = detail.display_name or ""
        task = name.removesuffix("-driver")
        # A driver prepares its task's pod; of interest only where that fails, as the task is then never begun.
        if task in names and (task == name or detail.state == "FAILED"):
            found.setdefault(task, []).append(detail)
    states: dict[str, str] = {}
    for name, nodes in found.items():
        for number, node in enumerate(nodes, start=1):
            states[name if len(nodes) == 1 else f"{name} ({number})"] = words(node.state)
    return states


def _bare(label: str) -> str:
    return label.partition(" (")[0]


def _patiently(look: Callable[[], Any], say: Callable[[str], None], pace: Pace) -> Any:
    silent_since: float | None = None
    while True:
        try:
            return look()
        except KfpError as error:
            now = time.monotonic()
            if silent_since is None:
                silent_since = now
                if error.may_pass and pace.patience_seconds > 0:
                    say(f"{error}; the run goes on, and this looks again")
            if not error.may_pass or now - silent_since >= pace.patience_seconds:
                raise
            time.sleep(pace.poll_seconds)


# -- why ---------------------------------------------------------------------------------------------------------------


def _errors(run: Any, namespace: str) -> dict[str, str]:
    """Task -> its error: as KFP tells it, else from its pod's log."""
    details = (run.run_details.task_details if run.run_details else None) or []
    told = {(each.display_name or "").removesuffix("-driver"): each.error.message for each in details if each.error and each.error.message}
    return {**dict(_errors_in_logs(run.run_id, namespace)), **told}


def _errors_in_logs(run_id: str, namespace: str) -> Iterator[tuple[str, str]]:
    from components.cluster.cluster_api import connect
    from components.cluster.kubernetes_api import KubernetesError

    try:
        cluster = connect(namespace)
    except KubernetesError:
        return
    pods = cluster.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"pipeline/runid={run_id}").body.get("items", [])
    for pod in pods:
        if pod.get("status", {}).get("phase") != "Failed":
            continue
        # "iddpm-train-x7k2p.root.train.executor(1)": the last part that is no executor is the task.
        node = str((pod["metadata"].get("annotations") or {}).get(_NODE_NAME, ""))
        parts = [part for part in node.split(".") if not part.startswith("executor")]
        error = error_in(cluster.log_tail(pod["metadata"]["name"]))
        if parts and error:
            yield parts[-1].removesuffix("-driver"), error


def error_in(log: str) -> str:
    """The line of a log that says what went wrong: what ended the last traceback, else the last line."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[starts[-1] + 1 :] if starts else []
    ends = [line for line in after if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
    return (ends[0] if ends else lines[-1] if lines else "")[:400]

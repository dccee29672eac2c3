"""Follow a run to its end: a line for each task whose state changes, and the errors of the tasks that failed.

KFP's API reports the states of Argo's nodes: for each task also its driver, its executor and its retries. It reports no
errors. Those are in the logs of the tasks' pods, which are read from Kubernetes if that can be reached.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import tenacity

from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp
from pipelines.client.runs import FINISHED, format_state
from training.console import format_duration

_NODE_NAME = "workflows.argoproj.io/node-name"


class RunFailedError(RuntimeError):
    """The run failed or was cancelled; the message names the tasks that failed and their errors."""


class StillRunningError(RuntimeError):
    """The time to wait is over and the run still goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Polling:
    """Intervals and limits of polling a run.

    Attributes:
        interval_seconds: Time between two requests.
        outage_seconds: Time for which the server may give no answer.
        token_seconds: Time for which it may refuse the token of a file, which a login helper may be about to renew.
            Without such a file a refusal is final.
    """

    interval_seconds: float = 5.0
    outage_seconds: float = 600.0
    token_seconds: float = 60.0


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
        kfp: The connection.
        run_id: The run.
        task_names: Names of the pipeline's tasks; Argo's other nodes are not reported.
        say: Called with each line of progress.
        timeout_seconds: The longest time to wait; None waits for the end.
        polling: How often to ask.

    Raises:
        StillRunningError: The time is over.
        KfpError: The run was deleted, or the server gave no answer for too long.
    """
    began = time.monotonic()
    reported: dict[str, str] = {}
    get_run = _retrying(kfp, say, polling).wraps(kfp.client.get_run)
    while True:
        run = get_run(run_id)
        for label, state in _task_states(run, task_names).items():
            if state != reported.get(label, "pending"):
                reported[label] = state
                say(f"{label:<24} {state}")
        if run.state in FINISHED:
            return run
        waited = time.monotonic() - began
        if timeout_seconds is not None and waited + polling.interval_seconds > timeout_seconds:
            raise StillRunningError(f"run {run_id} is still {format_state(run.state)} after {format_duration(waited)}; it goes on")
        time.sleep(polling.interval_seconds)


def require_success(run: Any, *, task_names: Collection[str], namespace: str) -> None:
    """Raise an error unless the run succeeded.

    Args:
        run: The finished run.
        task_names: Names of its pipeline's tasks.
        namespace: Namespace of its pods.

    Raises:
        RunFailedError: It failed or was cancelled.
    """
    if run.state == "SUCCEEDED":
        return
    failed = [label for label, state in _task_states(run, task_names).items() if state == "failed"]
    if run.state == "CANCELED" or not failed:
        message = getattr(run.error, "message", None)
        outcome = "was cancelled" if run.state == "CANCELED" else "failed"
        raise RunFailedError(f"run {run.run_id} {outcome}" + (f": {message}" if message else ""))
    errors = _errors(run, namespace)
    causes = "; ".join(f"{label}: {errors[_task(label)]}" if _task(label) in errors else label for label in failed)
    remedy = f"; see the log in the UI, or by 'kubectl -n {namespace} logs -l pipeline/runid={run.run_id} -c main --prefix --tail=20'"
    raise RunFailedError(f"run {run.run_id} failed at {causes}{'' if all(_task(label) in errors for label in failed) else remedy}")


def _task_states(run: Any, names: Collection[str]) -> dict[str, str]:
    """Return the states by task. The tasks of a loop are numbered in the order in which they began."""
    details = (run.run_details.task_details if run.run_details else None) or []
    found: dict[str, list[Any]] = {}
    for detail in sorted(details, key=lambda each: (str(each.start_time), str(each.task_id))):
        name = detail.display_name or ""
        task = name.removesuffix("-driver")
        # A driver prepares its task's pod. It matters only if it fails, since its task then never begins.
        if task in names and (task == name or detail.state == "FAILED"):
            found.setdefault(task, []).append(detail)
    states: dict[str, str] = {}
    for name, nodes in found.items():
        for number, node in enumerate(nodes, start=1):
            states[name if len(nodes) == 1 else f"{name} ({number})"] = format_state(node.state)
    return states


def _task(label: str) -> str:
    return label.partition(" (")[0]


def _retrying(kfp: Kfp, say: Callable[[str], None], polling: Polling) -> tenacity.Retrying:
    """Return a retry policy that bears a server's outage, and reports the first failure of each."""

    def is_transient(error: BaseException) -> bool:
        return isinstance(error, KfpError) and (error.is_transient or (error.status == 401 and kfp.rereads_token))

    def is_exhausted(call: tenacity.RetryCallState) -> bool:
        error = call.outcome.exception() if call.outcome else None
        limit = polling.token_seconds if isinstance(error, KfpError) and error.status == 401 else polling.outage_seconds
        return (call.seconds_since_start or 0.0) >= limit

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


# -- errors of tasks ---------------------------------------------------------------------------------------------------


def _errors(run: Any, namespace: str) -> dict[str, str]:
    """Return the errors by task: from KFP, else from the pod's log."""
    details = (run.run_details.task_details if run.run_details else None) or []
    from_kfp = {
        (each.display_name or "").removesuffix("-driver"): each.error.message for each in details if each.error and each.error.message
    }
    return {**dict(_errors_in_logs(run.run_id, namespace)), **from_kfp}


def _errors_in_logs(run_id: str, namespace: str) -> Iterator[tuple[str, str]]:
    from components.cluster.cluster_api import ClusterApi
    from components.cluster.connection import KubernetesError
    from components.cluster.proxies import ProxySettingsError

    try:
        cluster = ClusterApi(namespace)
    except (KubernetesError, ProxySettingsError):
        return
    pods = cluster.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"pipeline/runid={run_id}").body.get("items", [])
    for pod in pods:
        if pod.get("status", {}).get("phase") != "Failed":
            continue
        # "iddpm-train-x7k2p.root.train.executor(1)": the last part that is not an executor is the task.
        node = str((pod["metadata"].get("annotations") or {}).get(_NODE_NAME, ""))
        parts = [part for part in node.split(".") if not part.startswith("executor")]
        error = last_error(cluster.log_tail(pod["metadata"]["name"]))
        if parts and error:
            yield parts[-1].removesuffix("-driver"), error


def last_error(log: str) -> str:
    """Return the line of a log that names the error: the end of the last traceback, else the last line."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[starts[-1] + 1 :] if starts else []
    ends = [line for line in after if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
    return (ends[0] if ends else lines[-1] if lines else "")[:400]

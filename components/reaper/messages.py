"""Tell the webhook what no step has told: ends of runs whose steps were killed, runs that have begun, and trainings that hang.

The exit task of a run tells its end at once and with more detail. This is for the others, and for a webhook that was away: an end is
told up to `_LATEST_SECONDS` late. A label marks a Workflow that needs no further look; KFP's Retry takes it away.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from components.cluster.failures import step_errors
from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import RUNNING, STORED_LABEL, form_of, is_cancelled, last_start, phase_of, pipeline_of
from components.reaper.numbers import Numbers
from components.steps.run_messages import End, tell_end, tell_hung, tell_start
from components.steps.runs import last_progress
from components.steps.webhook import EVENTS, is_wanted
from training.config.errors import UserError
from training.console import say
from training.storage.errors import StorageError
from training.tracking.runs import PIPELINE_RUN_TAG, RUN_URI_TAG, STEP_TAG, TRAIN_STEP, open_runs

REPORTED_LABEL = "iddpm/told"
"""Label of a Workflow whose end the webhook knows, or need not know."""
HUNG_VARIABLE = "IDDPM_WEBHOOK_HUNG_MINUTES"
_HUNG_MINUTES = 60.0
_MOST_FAILURES = 3
_LATEST_SECONDS = 6 * 3600.0
"""An older end is no news: a webhook that is set up now is not told of last week's runs."""


class _Live(NamedTuple):
    """The fields of a running Workflow that messages need."""

    run_id: str
    root: str
    name: str
    age_seconds: float
    is_cancelled: bool


def tell_webhook(api: KubernetesApi) -> None:
    """Tell what is to be told of the Workflows in the namespace; stop if the webhook takes nothing, as each try costs 40 s.

    Raises:
        KubernetesError: The cluster does not answer, or refuses.
        TrackingError: MLflow, which knows the trainings that run, can't be reached.
        UserError: The time after which a training counts as hung is no number of 0 or more.
    """
    if not any(map(is_wanted, EVENTS)):
        return
    hung_seconds = _hung_seconds()
    running = []
    for workflow in _ours(api.workflows(RUNNING)):
        age, root = _age((workflow.get("status") or {}).get("startedAt")), form_of(workflow)["storage_root_uri"]
        running.append(_Live(_run_id(workflow), root, _name(workflow), age, is_cancelled(workflow)))
    ended = _ours(api.workflows(f"workflows.argoproj.io/completed=true,!{REPORTED_LABEL}"))
    failures = 0
    for is_done in _tell_all(api, ended, running, hung_seconds):
        failures += not is_done
        if failures == _MOST_FAILURES:
            say(f"{failures} messages could not be told; the next reaper tells them and the rest")
            return


def _tell_all(api: KubernetesApi, ended: Iterable[Mapping[str, Any]], running: list[_Live], hung_seconds: float) -> Iterator[bool]:
    """Tell one message after the other; yield True for one that was told or that nobody wants, else False."""
    numbers = Numbers()
    for workflow in ended:
        yield _tell_end(api, workflow, numbers)
    for live in running:
        yield live.age_seconds > _LATEST_SECONDS or tell_start(live.run_id, live.root, name=live.name)
    if hung_seconds and running and is_wanted("hung"):
        yield from _tell_hung(running, hung_seconds)


def _tell_end(api: KubernetesApi, workflow: Mapping[str, Any], numbers: Numbers) -> bool:
    """Tell the end of a run unless a step has."""
    metadata = workflow["metadata"]
    is_news = _age(workflow["status"].get("finishedAt")) < _LATEST_SECONDS
    if is_news:
        errors = step_errors(workflow, api.log_tail)
        end = End(phase_of(workflow) == "Succeeded", is_cancelled(workflow), errors, last_start(workflow))
        run_id, root = _run_id(workflow), form_of(workflow)["storage_root_uri"]
        found = numbers.of(run_id) if is_wanted(end.event) and end.succeeded else {}
        if not tell_end(end, run_id, root, name=_name(workflow), numbers=found, needs_record=False):
            return False
    if STORED_LABEL in metadata["labels"] or not is_news:
        api.label_workflow(metadata["name"], REPORTED_LABEL)
    return True


def _tell_hung(running: list[_Live], limit: float) -> Iterator[bool]:
    """Tell of each training that MLflow shows as running and that has logged nothing for `limit` seconds."""
    trainings = defaultdict(set)
    for run in open_runs(PIPELINE_RUN_TAG):
        if run.tags.get(STEP_TAG, TRAIN_STEP) == TRAIN_STEP:  # an evaluation logs nothing until it is done
            trainings[run.tags[PIPELINE_RUN_TAG]].add(run.tags.get(RUN_URI_TAG, ""))
    for live in running:
        for run_uri in sorted(trainings[live.run_id] - {""}):
            try:
                since = last_progress(run_uri)
            except StorageError as error:  # such as a bucket of another team
                say(str(error))
                continue
            if since and time.time() - since > limit and not live.is_cancelled:
                yield tell_hung(live.run_id, run_uri, live.root, seconds=time.time() - since, since=int(since))


def _hung_seconds() -> float:
    word = os.environ.get(HUNG_VARIABLE, "").strip() or str(_HUNG_MINUTES)
    try:
        minutes = float(word)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:  # a negative one would tell of each training at each step
        raise UserError(f"{HUNG_VARIABLE} (hung-minutes of the Secret) must be a number of minutes, 0 or more; it is {word!r}")
    return 60.0 * minutes


def _ours(workflows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the Workflows of this project's pipelines."""
    return (each for each in workflows if pipeline_of(each).startswith("iddpm-") and form_of(each).get("storage_root_uri"))


def _age(moment: str | None) -> float:
    """Return the seconds since a moment in Kubernetes' form; 0 if it is not known."""
    return time.time() - datetime.fromisoformat(moment).timestamp() if moment else 0.0


def _run_id(workflow: Mapping[str, Any]) -> str:
    return str(workflow["metadata"]["labels"]["pipeline/runid"])


def _name(workflow: Mapping[str, Any]) -> str:
    metadata = workflow["metadata"]
    return str((metadata.get("annotations") or {}).get("pipelines.kubeflow.org/run_name") or metadata["name"])

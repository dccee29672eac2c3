"""A step on a Ray cluster of its own: what the step's small pod does when Ray's mode is "rayjob".

The launcher reads from its own pod what the cluster's pods must share with it: the image, the nodes, and the Workflow that
owns them. What to do goes through a file in S3, so that no shell stands between the two, and so does what comes back.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.cluster_steps import STEPS
from components.kubernetes_api import KubernetesApi, KubernetesError, current_namespace
from components.rayjob import DEFAULT_PACE, Pace, RayJobError, run_rayjob
from components.rayjob_options import RayJobOptions, rayjob_for, workflow_of
from components.training_run import RESULT, identify
from training import storage
from training.config import Resources
from training.progress import say

CALL = "rayjob-call.json"
ANSWER = "rayjob-answer.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """A step's call on a cluster.

    Attributes:
        key: Gives the RayJob its name: one key, one job.
        directory_uri: Where its files are.
        result_uri: What is there once it is done.
    """

    key: str
    directory_uri: str
    result_uri: str

    @property
    def uri(self) -> str:
        """The file that says what to do."""
        return storage.join(self.directory_uri, CALL)


def run_on_rayjob(step: str, arguments: Mapping[str, Any], options: RayJobOptions, *, pace: Pace = DEFAULT_PACE) -> Any:
    """Runs a step on a Ray cluster of its own, or follows one that is at it.

    A training has one job for its run, whichever pipeline asks, and one that is done asks for no cluster. Any other step
    has one job in each run of a pipeline: what an earlier run of it found may be out of date.

    Args:
        step: One of `components.cluster_steps.STEPS`.
        arguments: Its arguments, by name.
        options: The cluster.
        pace: How often to look.

    Returns:
        What the step returns.

    Raises:
        ConfigError: The preset, an override or the data set does not fit.
        RayJobSpecError: The cluster that was asked for cannot be.
        RayJobError: The step did not end well.
        KubernetesError: The API refuses, or is away for too long.
        SystemExit: SIGTERM; the RayJob is deleted.
    """
    return _train(arguments, options, pace) if step == "train" else _run(step, arguments, options, pace)


def _train(arguments: Mapping[str, Any], options: RayJobOptions, pace: Pace) -> str:
    run = identify(arguments["experiment_preset"], arguments["experiment_overrides"], arguments["data_uri"], arguments["storage_root_uri"])
    call = _Call(key=run.key, directory_uri=run.uri, result_uri=storage.join(run.uri, RESULT))
    if not storage.exists(call.result_uri):
        api = KubernetesApi(current_namespace())
        _on_cluster("train", arguments, call, "", options, api, _own_pod(api), pace)
    say(f"run {run.key} is trained to step {storage.read_json(call.result_uri)['step']:,}")
    return run.uri


def _run(step: str, arguments: Mapping[str, Any], options: RayJobOptions, pace: Pace) -> Any:
    api = KubernetesApi(current_namespace())
    launcher = _own_pod(api)
    owner = workflow_of(launcher)
    identity = json.dumps([dict(arguments), owner.uid if owner else uuid.uuid4().hex], sort_keys=True)
    key = f"{step}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    directory_uri = storage.join(arguments[STEPS[step].home], "rayjobs", key)
    call = _Call(key=key, directory_uri=directory_uri, result_uri=storage.join(directory_uri, ANSWER))
    _on_cluster(step, arguments, call, call.result_uri, options, api, launcher, pace)
    return storage.read_json(call.result_uri)["returned"]


def _on_cluster(
    step: str,
    arguments: Mapping[str, Any],
    call: _Call,
    answer_uri: str,
    options: RayJobOptions,
    api: KubernetesApi,
    launcher: Mapping[str, Any] | None,
    pace: Pace,
) -> None:
    resources = Resources.from_dict(arguments["resources"])
    job = rayjob_for(call.key, call.directory_uri, call.uri, resources, options, launcher=launcher, namespace=api.namespace)
    storage.write_json(call.uri, {"step": step, "arguments": dict(arguments), "answer_uri": answer_uri})
    run_rayjob(job, api, is_done=lambda: storage.exists(call.result_uri), pace=pace)
    if not storage.exists(call.result_uri):
        raise RayJobError(f"RayJob {job.name} succeeded but {call.result_uri} is not there; do its pods write to the same S3 as this step?")


def _own_pod(api: KubernetesApi) -> dict[str, Any] | None:
    """The pod that this process runs in, by the names that KFP gives it; None outside KFP."""
    name, uid = os.environ.get("KFP_POD_NAME", ""), os.environ.get("KFP_POD_UID", "")
    if not name:
        return None
    pod = api.pod(name)
    if pod is None or (uid and pod["metadata"]["uid"] != uid):
        raise KubernetesError(f"pod {name}, which KFP says is this one, is not in namespace {api.namespace}")
    return pod

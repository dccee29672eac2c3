"""Run a step on a Ray cluster of its own: the work of the step's small pod when `ray_mode` is "rayjob".

The launcher reads from its own pod what the cluster's pods share with it: the image, and the Workflow that owns them. The call
and its result go through files in S3, so no shell has to quote them.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Mapping
from typing import Any

from components.cluster.connection import KubernetesError, current_namespace
from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import owner_of
from components.launch.call import call_of
from components.launch.rayjob.follow import DEFAULT_PACE, Pace, RayJobError, run_rayjob
from components.launch.rayjob.manifest import rayjob_for
from components.launch.resources import StageResources
from components.launch.step import Step
from training import storage
from training.console import say

_LAUNCH = uuid.uuid4().hex
"""Id of this process. All tries of a step have the same one, so a later try finds the job of an earlier one and knows it as its own."""


def run_on_rayjob(
    step: Step, arguments: Mapping[str, Any], resources: StageResources, *, pace: Pace = DEFAULT_PACE, launch: str = _LAUNCH
) -> Any:
    """Run a step on a Ray cluster of its own, or follow a cluster that runs it already; return what the step returns.

    A training has one job for its run, whichever pipeline starts it, and one that is done takes no cluster. Any other step
    has one job in each run of a pipeline: the result of an earlier pipeline run may be out of date.

    Raises:
        UserError: The experiment or the data set does not fit, or no image is known.
        RayJobError: The step failed.
        KubernetesError: The API refuses, or is away for too long.
        SystemExit: SIGTERM; the RayJob is deleted if this run of the pipeline started it and is cancelled, else it goes on.
    """
    call = call_of(step, arguments)
    if step.run_files and call.is_done():
        say(f"{call.key} is done already")
        return storage.retry(call.result)
    api = KubernetesApi(current_namespace())
    launcher = _own_pod(api)
    owner = owner_of(launcher)
    if not step.run_files:
        call = call_of(step, arguments, scope=owner.uid if owner else launch)
        if call.is_done():
            say(f"{call.key} is done already, by an earlier try of this step")
            return storage.retry(call.result)
    call = dataclasses.replace(call, launch=launch)
    job = rayjob_for(call, resources, launcher=launcher, namespace=api.namespace, launch=launch)
    run_rayjob(job, api, prepare=call.write, is_done=call.is_done, progress=call.progress, pace=pace)
    if not storage.retry(call.is_done):
        raise RayJobError(f"RayJob {job.name} succeeded but {call.result_uri} is not there; do its pods write to the same S3 as this step?")
    say(f"{call.key} is done")
    return storage.retry(call.result)


def _own_pod(api: KubernetesApi) -> dict[str, Any] | None:
    """Return the pod that this process runs in, by the names that KFP gives it; None outside KFP."""
    name, uid = os.environ.get("KFP_POD_NAME", ""), os.environ.get("KFP_POD_UID", "")
    if not name:
        return None
    pod = api.pod(name)
    if pod is None or (uid and pod["metadata"]["uid"] != uid):
        raise KubernetesError(f"pod {name}, which KFP says is this one, is not in namespace {api.namespace}")
    return pod

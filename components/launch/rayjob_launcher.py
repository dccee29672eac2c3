"""A step on a Ray cluster of its own: what the step's small pod does when Ray's mode is "rayjob".

The launcher reads from its own pod what the cluster's pods must share with it: the image, the nodes, and the Workflow that
owns them. What to do goes through a file in S3, so that no shell stands between the two, and so does what comes back.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any

from components.cluster.kubernetes_api import KubernetesApi, KubernetesError, current_namespace
from components.launch.call import call_of
from components.launch.rayjob import DEFAULT_PACE, Pace, RayJobError, run_rayjob
from components.launch.rayjob_options import RayJobOptions, rayjob_for, workflow_of
from components.launch.step import Step
from training.config.experiment import Resources
from training.console import say


def run_on_rayjob(step: Step, arguments: Mapping[str, Any], options: RayJobOptions, *, pace: Pace = DEFAULT_PACE) -> Any:
    """Runs a step on a Ray cluster of its own, or follows one that is at it.

    A training has one job for its run, whichever pipeline asks, and one that is done asks for no cluster. Any other step
    has one job in each run of a pipeline: what an earlier run of it found may be out of date.

    Args:
        step: The step.
        arguments: Its arguments, by name.
        options: The cluster.
        pace: How often to look.

    Returns:
        What the step returns.

    Raises:
        UserError: The preset, an override or the data set does not fit.
        RayJobSpecError: The cluster that was asked for cannot be.
        RayJobError: The step did not end well.
        KubernetesError: The API refuses, or is away for too long.
        SystemExit: SIGTERM; the RayJob is deleted.
    """
    call = call_of(step, arguments)
    if step.run_files and call.is_done():
        say(f"{call.key} is done already")
        return call.answer()
    api = KubernetesApi(current_namespace())
    launcher = _own_pod(api)
    owner = workflow_of(launcher)
    call = call_of(step, arguments, scope=owner.uid if owner else uuid.uuid4().hex)
    resources = Resources.from_dict(arguments["resources"])
    job = rayjob_for(call, resources, options, launcher=launcher, namespace=api.namespace)
    call.write()
    run_rayjob(job, api, is_done=call.is_done, pace=pace)
    if not call.is_done():
        raise RayJobError(f"RayJob {job.name} succeeded but {call.result_uri} is not there; do its pods write to the same S3 as this step?")
    say(f"{call.key} is done")
    return call.answer()


def _own_pod(api: KubernetesApi) -> dict[str, Any] | None:
    """The pod that this process runs in, by the names that KFP gives it; None outside KFP."""
    name, uid = os.environ.get("KFP_POD_NAME", ""), os.environ.get("KFP_POD_UID", "")
    if not name:
        return None
    pod = api.pod(name)
    if pod is None or (uid and pod["metadata"]["uid"] != uid):
        raise KubernetesError(f"pod {name}, which KFP says is this one, is not in namespace {api.namespace}")
    return pod

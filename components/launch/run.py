"""Run a step in the place that its resources name: its own pod or machine, a cluster made for it, or a standing one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from components.launch.call import call_of
from components.launch.child import run_in_child
from components.launch.logs import log_place, step_log_stored
from components.launch.repeat import repeat_lost
from components.launch.resources import StageResources, read_resources
from components.launch.step import Step, run_on_cluster
from training.distributed.cores import limit_threads


def run_step(step: Step, arguments: Mapping[str, Any], resources: str) -> Any:
    """Run a step of a pipeline, and return what it returns.

    Args:
        arguments: Its arguments, by name, without `resources`.
        resources: Resources of its stage, as text of the form; see `components.launch.resources.read_resources`.

    Raises:
        UserError: The resources, or the arguments, do not fit.
    """
    return run_with(step, arguments, read_resources(resources, stage=step.stage))


def run_with(step: Step, arguments: Mapping[str, Any], resources: StageResources) -> Any:
    """Run a step with resources that were read before, and return what it returns.

    With `ray_mode` "local", Ray starts in this process's pod or machine where it is needed, and ends with the step. With "rayjob"
    KubeRay makes a cluster for the step. "address" takes a standing cluster with the same image and storage. By a dashboard's address
    (http://HEAD:8265) the step is submitted as a job; "auto" or the cluster's own address are for a process on one of its nodes.

    Args:
        arguments: Its arguments, by name, without `resources`.
        resources: How the work is spread, and where.
    """
    if not step.is_parallel:  # one worker, whatever the rest of the stage uses
        resources = dataclasses.replace(resources, num_workers=1, min_workers=0)
    arguments = {**arguments, "resources": dataclasses.asdict(resources.work)}
    return repeat_lost(lambda: _run_once(step, arguments, resources), lambda: call_of(step, arguments).progress())


def _run_once(step: Step, arguments: Mapping[str, Any], resources: StageResources) -> Any:
    place = log_place(step, arguments)
    with step_log_stored(place.directory_uri, step.name, place.makes):
        return _run_there(step, arguments, resources)


def _run_there(step: Step, arguments: Mapping[str, Any], resources: StageResources) -> Any:
    if resources.ray_mode == "rayjob":
        from components.launch.rayjob.launcher import run_on_rayjob

        return run_on_rayjob(step, arguments, resources)
    if resources.ray_address.startswith(("http://", "https://")):
        from components.launch.dashboard import run_on_dashboard

        return run_on_dashboard(step, arguments, resources.ray_address)
    if resources.ray_mode == "address":
        return run_on_cluster(step, arguments, resources.ray_address)
    if os.environ.get("KFP_POD_NAME"):
        return run_in_child(step, arguments, memory=resources.memory)
    limit_threads()
    return step(**arguments)

"""Run a step in the place that its resources name: its own pod or machine, a cluster made for it, or a standing one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.launch.call import TRY_AGAIN, Call, call_of
from components.launch.logs import log_place, step_log_stored
from components.launch.repeat import LostError, repeat_lost
from components.launch.resources import StageResources, read_resources
from components.launch.step import Step, run_on_cluster
from training.config.errors import UserError
from training.distributed.cores import limit_threads
from training.distributed.signals import stop_flag

_POLL_SECONDS = 0.2


def run_step(step: Step, arguments: Mapping[str, Any], resources: str) -> Any:
    """Run a step of a pipeline, and return what it returns.

    With `ray_mode` "local", Ray starts in this process's pod or machine where it is needed, and ends with the step. With "rayjob"
    KubeRay makes a cluster for the step. "address" takes a standing cluster with the same image and storage. By a dashboard's address
    (http://HEAD:8265) the step is submitted as a job; "auto" or the cluster's own address are for a process on one of its nodes.

    Args:
        arguments: Its arguments, by name, without `resources`.
        resources: Resources of its stage, as text of the form; see `components.launch.resources.read_resources`.

    Raises:
        UserError: The resources, or the arguments, do not fit.
    """
    read = read_resources(resources, stage=step.stage)
    if not step.is_parallel:  # one worker, whatever the rest of the stage uses
        read = dataclasses.replace(read, num_workers=1, min_workers=0)
    arguments = {**arguments, "resources": dataclasses.asdict(read.work)}
    return repeat_lost(lambda: _run_once(step, arguments, read), lambda: call_of(step, arguments).progress())


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


class StepError(RuntimeError):
    """The step failed in its process; the message is the step's own."""


def run_in_child(step: Step, arguments: Mapping[str, Any], *, memory: str) -> Any:
    """Run a step in a process of its own, and return what it returns; `memory` is the pod's, for the message.

    Raises:
        LostError: The process was killed, ended without an error, or failed for a reason that may pass.
        UserError: The step refuses its arguments.
        StepError: The step failed otherwise.
        SystemExit: SIGTERM.
    """
    with tempfile.TemporaryDirectory(prefix="iddpm-step-") as directory, stop_flag() as stop:
        answer = Path(directory, "answer.json")
        call = Call(step=step, arguments=arguments, key=step.name, directory_uri=directory, result_uri=str(answer))
        call.write(answer_uri=str(answer), ray_address="local")
        child = subprocess.Popen([sys.executable, *call.driver[1:]])
        while child.poll() is None:
            if stop.is_set:
                child.send_signal(signal.SIGTERM)
            try:
                child.wait(_POLL_SECONDS if not stop.is_set else None)
            except subprocess.TimeoutExpired:
                continue
        stop.raise_if_set()
        answered = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
        message = answered.get("error", "")
        if child.returncode == 0 and answered:
            return answered["returned"]
        if child.returncode == -signal.SIGKILL:
            raise LostError(
                f"the process of step {step.name} was killed, most likely because the pod's memory of {memory} ran out; if it happens "
                f'again, give it more ({step.stage}_resources: {{"memory": ...}}) or a smaller microbatch_size'
            )
        if child.returncode == TRY_AGAIN:
            raise LostError(message)
        if not answered:  # a library ended it, as Ray does where one of its own processes is lost
            raise LostError(f"the process of step {step.name} ended with {child.returncode} and no error; its last lines say why")
        if answered.get("is_users"):
            raise UserError(message)
        raise StepError(message or f"the process of step {step.name} failed; its last lines say why")

"""Do a step in a process of its own, so that the step's pod outlives it: the kernel ends the process that takes too much memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.launch.call import TRY_AGAIN, Call
from components.launch.repeat import LostError
from components.launch.step import Step
from training.config.errors import UserError
from training.distributed.signals import stop_flag

_POLL_SECONDS = 0.2


class StepError(RuntimeError):
    """The step failed in its process; the message is the step's own."""


def run_in_child(step: Step, arguments: Mapping[str, Any], *, memory: str) -> Any:
    """Run a step in a process of its own, and return what it returns.

    Args:
        memory: Memory of the pod, for the message.

    Raises:
        LostError: The process was killed, or failed for a reason that may pass.
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
        answered = json.loads(answer.read_text()) if answer.exists() else {}
        message = answered.get("error", "")
        if child.returncode == 0:
            return answered["returned"]
        if child.returncode == -signal.SIGKILL:
            raise LostError(
                f"the process of step {step.name} was killed, most likely because the pod's memory of {memory} ran out; if it happens "
                f'again, give it more ({step.stage}_resources: {{"memory": ...}}) or a smaller microbatch_size'
            )
        if child.returncode == TRY_AGAIN:
            raise LostError(message)
        if answered.get("is_users"):
            raise UserError(message)
        raise StepError(message or f"the process of step {step.name} ended with {child.returncode}; its last lines say why")

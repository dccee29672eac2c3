"""A step that runs in this process or on a Ray cluster, and the two ways to run it.

A step is a function of plain values that is found by its name, so its call travels as JSON. Each takes `resources`: fields
of `training.config.experiment.Resources`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.config.errors import UserError
from training.config.experiment import Resources

WORKER_GPU_SHARE = 0.25
"""Share of a GPU that a step's worker reserves, to compute features of the images that its tasks draw; the tasks take the rest."""
_LAST_LINES_SECONDS = 1.0
"""Time that the driver waits for a worker's last lines, which reach it a moment late."""
_LONGEST_SECONDS = 30 * 86400.0
"""No step takes so long: Kubeflow Pipelines ends a run after it (`pipelines.pods.DEADLINE_SECONDS`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step.

    Attributes:
        name: Its name, in the names of its jobs and in messages.
        function: The function that does it, as "module:name".
        files_argument: The argument with the URI below which the files of its calls are.
        run_files: For a step that works on one run, such as training: the function, as "module:name", that takes the
            arguments and returns the run's key, its directory and the URI of its result. One run has one job, whoever starts it.
            Such a step takes the cluster's address and distributes its own work. Any other step (empty) is handed to a
            worker, since a cluster's head offers neither cores nor GPUs.
        find_log: For a step that makes a data set, or prepares a run that has not begun: the function, as "module:name", that takes the
            arguments and returns where the log is stored, as `components.launch.logs.LogPlace`.
        stage: The stage whose resources it uses; one of `components.launch.resources.STAGES`.
        is_parallel: True if it spreads its work over the stage's workers; otherwise it uses one.
    """

    name: str
    function: str
    files_argument: str
    run_files: str = ""
    find_log: str = ""
    stage: str = "evaluate"
    is_parallel: bool = True

    def __call__(self, **arguments: Any) -> Any:
        """Do it in this process."""
        return load(self.function)(**arguments)


def load(function: str) -> Any:
    """Import a function that is named as "module:name". Raise UserError if it is none of this project's components."""
    module, _, name = function.partition(":")
    if not module.startswith("components."):
        raise UserError(f"{function} is not a step of this project; was the file with the call changed?")
    return getattr(importlib.import_module(module), name)


def run_on_cluster(step: Step, arguments: Mapping[str, Any], ray_address: str) -> Any:
    """Run a step on the Ray cluster with that address ("auto" on one of its nodes), which this process can be a driver of.

    Raises:
        Exception: The step's own.
        MemoryShortageError: Ray killed the step's worker for its node's memory.
        StandstillError: The step had no result after 30 days; Ray kills it. A training has limits of its own.
    """
    if step.run_files:
        return step(**arguments, ray_address=ray_address)
    from training.distributed.ray_logs import MemoryShortageError, memory_shortage
    from training.distributed.ray_session import StandstillError, ray_session, standstill

    on_gpu = Resources.from_dict(arguments["resources"]).num_gpus_per_worker > 0
    with ray_session(ray_address):
        import ray

        worker = ray.remote(_run_here).options(num_cpus=1, num_gpus=WORKER_GPU_SHARE if on_gpu else 0, max_retries=3)
        result = worker.remote(step, dict(arguments))
        try:
            returned = ray.get(result, timeout=_LONGEST_SECONDS)
            time.sleep(_LAST_LINES_SECONDS)
            return returned
        except ray.exceptions.GetTimeoutError:
            ray.cancel(result, force=True)
            reason = standstill(_run_here.__name__, _LONGEST_SECONDS)
            raise StandstillError(f"step {step.name} has no result: {reason}; look at the disks, network and GPUs of its node") from None
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            if shortage := memory_shortage(error, f"{step.stage}_resources"):
                raise MemoryShortageError(shortage) from None
            raise


def _run_here(step: Step, arguments: Mapping[str, Any]) -> Any:
    return step(**arguments)

"""The steps that a Ray cluster can do, by name, and one way to run each: here, on a cluster that stands, or made for it.

A step is a function of plain values, found by its name, so that its call can travel as JSON. Each takes `resources`, fields
of `training.config.experiment.Resources`, of which a cluster has to have as much.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.config.experiment import Resources

WORKER_GPU_SHARE = 0.25
"""Of the GPU that a step holds while its tasks hold the rest of it: it computes features of what they draw."""
_LAST_LINES_SECONDS = 1.0
"""What a worker prints reaches the driver a moment later, and not at all once the driver has left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step.

    Attributes:
        function: Where it is, as module:name.
        home: The argument that holds the address under which the files of its calls lie.
        drives: Whether it hands out its own work wherever it runs and takes the cluster's address (training). Any other
            step goes to a worker, since a cluster's head has neither cores nor GPUs to give.
    """

    function: str
    home: str
    drives: bool = False

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        module, _, name = self.function.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


STEPS: dict[str, Step] = {
    "preprocess": Step(function="components.steps.preprocess:prepare_data", home="storage_root_uri"),
    "reference": Step(function="components.steps.evaluate:make_reference", home="storage_root_uri"),
    "train": Step(function="components.steps.train:train_run", home="storage_root_uri", drives=True),
    "evaluate": Step(function="components.steps.evaluate:evaluate_run", home="run_uri"),
    "measure": Step(function="components.ablations.steps:measure_trial", home="run_uri"),
    "together": Step(function="components.ablations.steps:take_together", home="ablation_uri"),
    "score": Step(function="components.steps.nightly:score_model", home="storage_root_uri"),
}


def run_here(step: str, arguments: Mapping[str, Any]) -> Any:
    """Runs a step in this process; what it spreads goes to a Ray of this machine's."""
    return STEPS[step].load()(**arguments)


def run_on_cluster(step: str, arguments: Mapping[str, Any], ray_address: str) -> Any:
    """Runs a step on a Ray cluster of which this process can be a driver.

    Args:
        step: Its name.
        arguments: Its arguments, by name.
        ray_address: The cluster's, or "auto" on one of its nodes.
    """
    if STEPS[step].drives:
        return STEPS[step].load()(**arguments, ray_address=ray_address)
    from training.distributed.ray_session import ray_session

    on_gpu = Resources.from_dict(arguments["resources"]).num_gpus_per_worker > 0
    with ray_session(ray_address):
        import ray

        worker = ray.remote(run_here).options(num_cpus=1, num_gpus=WORKER_GPU_SHARE if on_gpu else 0, max_retries=3)
        try:
            returned = ray.get(worker.remote(step, dict(arguments)))
            time.sleep(_LAST_LINES_SECONDS)
            return returned
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

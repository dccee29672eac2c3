"""A trial of an ablation on this machine: train it, or find it trained, and measure it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from training.config.experiment import Resources
from training.console import labelled, say

TRACKING_EXPERIMENT = "iddpm"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialJob:
    """A trial, as the process that runs it receives it.

    Attributes:
        item: Its part of the ablation's plan.
        position: "3 of 30".
        storage_root_uri: Where everything is stored.
        resources: Stage -> resources; it reads those of train and evaluate.
        in_own_process: It has its own process, which trains without Ray Train and stores its log.
        num_threads: CPU threads of such a process where it measures, 1 or more.
    """

    item: Mapping[str, Any]
    position: str
    storage_root_uri: str
    resources: Mapping[str, Resources]
    in_own_process: bool
    num_threads: int


def run_trial(job: TrialJob) -> None:
    """Train the trial and take its measures; both find what was done before.

    Raises:
        Exception: It cannot be trained or measured. The trial's record says why.
    """
    import torch

    from components.ablations.steps import measure_trial, train_trial

    if job.in_own_process:
        torch.set_num_threads(job.num_threads)
    with labelled(job.item["label"]):
        say(f"trial {job.position}")
        run_uri = train_trial(job.item, functools.partial(_train, job))
        measure_trial(job.item, run_uri, dataclasses.asdict(job.resources["evaluate"]))


def _train(job: TrialJob, trial_run_id: str) -> str:
    from components.steps.train import train_run
    from training.config.presets import preset

    item, root = job.item, job.storage_root_uri
    experiment = preset(item["experiment_preset"], item["overrides"]).to_json()
    with _log_stored(job, experiment):
        return train_run(
            experiment,
            item["data_uri"],
            item["reference_uri"],
            root,
            TRACKING_EXPERIMENT,
            dataclasses.asdict(job.resources["train"]),
            parent_run_id=trial_run_id,
            ray_address=None if job.in_own_process else "local",
        )


@contextlib.contextmanager
def _log_stored(job: TrialJob, experiment: str) -> Iterator[None]:
    """Store what this process prints in the directory of the trial's run; Ray Train stores the logs of its own workers."""
    from components.launch.logs import step_log_stored
    from components.steps.runs import identify, read_result
    from training.config.experiment import Experiment
    from training.tracking.runs import TRAIN_STEP

    uri = ""
    if job.in_own_process:
        run = identify(Experiment.from_json(experiment), job.item["data_uri"], job.storage_root_uri)
        uri = "" if read_result(run.uri) else run.uri  # a run that is found trained keeps the logs that it has
    with step_log_stored(uri, TRAIN_STEP):
        yield

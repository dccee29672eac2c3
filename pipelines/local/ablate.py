"""An ablation on this machine, in one process, by the functions of the pipeline's steps.

`iddpm run ablation` runs the pipeline itself. Here the steps need no processes of their own and Ray is started once, which
saves most of the time at the tiny scale.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.ablations.directory import ablation_uri
from evaluation.ablations.definitions.cost import trial_cost
from evaluation.ablations.definitions.request import AblationRequest
from pipelines.local.output import show_progress
from training.console import format_duration, say
from training.distributed.cores import available_cores

if TYPE_CHECKING:
    from pipelines.services.services import Services

TRACKING_EXPERIMENT = "iddpm"
_RESOURCES = {"num_workers": 1, "num_threads": 1}
_MEASURING = "measuring"


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationResult:
    """The results of an ablation.

    Attributes:
        uri: Its directory in storage.
        folder: Local folder with report.html, table.csv, table.json and figure.svg.
        failed: Label of a trial -> why it failed.
        log_path: Log of everything that was not shown.
    """

    uri: str
    folder: Path
    failed: dict[str, str]
    log_path: Path


def run_ablation(
    request: AblationRequest,
    services: Services,
    *,
    sources: Mapping[str, str] | None = None,
    resources: Mapping[str, Any] | None = None,
    time_left: TimeLeft | None = None,
) -> AblationResult:
    """Plan an ablation, train and measure its trials or reuse them, and write the report; a failed trial stops no other.

    Only progress is shown; the output of libraries goes into a log.

    Args:
        sources: Name of a data set -> source of its images.
        resources: Fields of `training.config.experiment.Resources` for training and evaluation.
        time_left: The estimate for this and further ablations; None makes one for this alone.

    Raises:
        UserError: The ablation is not valid.
    """
    from components.ablations.planning import list_data_sets, plan
    from components.ablations.steps import measure_joint
    from pipelines.local.images import held_out
    from training.config.experiment import Experiment
    from training.data.splits import prepare_experiment

    os.environ.update(services.env)
    root, uri = services.bucket_uri, ablation_uri(request, services.bucket_uri)
    resources = {**_RESOURCES, **(resources or {})}
    time_left = time_left or estimate_time_left([request], services)
    log_path = services.home / "logs" / f"{request.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    with show_progress(log_path, lambda: _title(request)):
        for data_set in list_data_sets(request, root, sources=sources):
            given, experiment = data_set["source"], Experiment.from_json(data_set["experiment"])
            prepare_experiment(experiment, data_set["data_uri"], source=given, source_options=held_out(given))
        items = plan(request, root, TRACKING_EXPERIMENT)
        failed = _run_trials(items, root, resources, time_left)
        if not failed or request.seeds > 1:
            _catch(failed, "joint measurement", lambda: measure_joint(uri, resources))
        folder = report_locally(request, services)
    return AblationResult(uri=uri, folder=folder, failed=failed, log_path=log_path)


def estimate_time_left(requests: Sequence[AblationRequest], services: Services) -> TimeLeft:
    """Start the estimate of the time until all trials of these ablations are done."""
    os.environ.update(services.env)
    return TimeLeft(requests, services.bucket_uri)


def report_locally(request: AblationRequest, services: Services) -> Path:
    """Write the report from the present records to storage, to MLflow and to the gallery's folder, which is returned.

    Raises:
        UserError: Nothing was planned.
    """
    from components.ablations.close import update_ablation
    from components.ablations.report import FILES
    from evaluation.ablations.page.gallery import write_gallery
    from training import storage

    os.environ.update(services.env)
    uri = ablation_uri(request, services.bucket_uri)
    update_ablation(uri)
    seeds = f"-{request.seeds}-seeds" if request.seeds > 1 else ""
    folder = gallery_folder(services) / f"{request.name}-{request.scale}{seeds}"
    for name in FILES:  # a file appears whole, for a gallery that is written at the same time
        if storage.exists(storage.join(uri, name)):
            storage.download(storage.join(uri, name), folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    write_gallery(gallery_folder(services))
    return folder


def is_planned(request: AblationRequest, services: Services) -> bool:
    """Return whether the ablation was planned, so that a report can be written."""
    from components.ablations.directory import PLAN
    from training import storage

    os.environ.update(services.env)
    return storage.exists(storage.join(ablation_uri(request, services.bucket_uri), PLAN))


def gallery_folder(services: Services) -> Path:
    """Return the folder of the reports on this machine."""
    return services.home / "ablations"


def _run_trials(items: Sequence[Mapping[str, Any]], root: str, resources: Mapping[str, Any], time_left: TimeLeft) -> dict[str, str]:
    """Train and measure every trial; return the labels of those that failed, with the reasons."""
    from components.ablations import steps
    from training.distributed.ray_session import ray_session

    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        if any(not item["run_uri"] and steps.finished_record(item) is None for item in items):
            stack.enter_context(ray_session(num_cpus=max(available_cores(), int(resources["num_workers"]) + 1)))
        # One trial is trained in Ray's processes while the one before it is measured in this process.
        measuring = ThreadPoolExecutor(1, thread_name_prefix=_MEASURING)
        stack.callback(measuring.shutdown, cancel_futures=True)  # when interrupted, only the present measure is waited for
        pending = []

        def measure(item: Mapping[str, Any], run_uri: str) -> None:
            record_uri = _catch(failed, item["label"], lambda: steps.measure_trial(item, run_uri, resources))
            time_left.finish(item, "measuring")
            if record_uri is not None:
                say(f"{item['label']}: done{time_left.describe()}")

        for number, item in enumerate(items, start=1):
            say(f"trial {number} of {len(items)}: {item['label']}{time_left.describe()}")
            run_uri = _catch(failed, item["label"], functools.partial(_train, item, root, resources))
            if run_uri is None:
                time_left.finish(item, "training", "measuring")
            else:
                time_left.finish(item, "training")
                pending.append(measuring.submit(measure, item, run_uri))
        for one in pending:
            one.result()
    return failed


def _train(item: Mapping[str, Any], root: str, resources: Mapping[str, Any]) -> str:
    from components.ablations.steps import train_trial
    from components.steps.train import train_run
    from training.config.presets import preset

    def train(trial_run_id: str) -> str:
        experiment = preset(item["experiment_preset"], item["overrides"]).to_json()
        return train_run(
            experiment, item["data_uri"], item["reference_uri"], root, TRACKING_EXPERIMENT, resources, parent_run_id=trial_run_id
        )

    return train_trial(item, train)


def _title(request: AblationRequest) -> str:
    """Return the title of a progress line; the thread of a line says whether it is of training or of measuring."""
    return f"{request.name}, measuring" if threading.current_thread().name.startswith(_MEASURING) else request.name


def _catch(failed: dict[str, str], label: str, action: Callable[[], str]) -> str | None:
    from components.ablations.steps import reason

    try:
        return action()
    except Exception as error:  # named in the report; the others continue
        failed[label] = reason(error)
        say(f"{label} failed: {failed[label]}")
        return None


class TimeLeft:
    """An estimate of the time until every trial is done, from the time that the work so far has taken.

    Work is weighed by its estimated cost on a CPU, so that a long trial counts for more than a short one. Trials that were
    finished before count for nothing.
    """

    def __init__(self, requests: Sequence[AblationRequest], storage_root_uri: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock.

        Args:
            requests: The ablations that run one after the other.
            storage_root_uri: Where their records are.
            clock: Returns seconds.
        """
        from evaluation.ablations.trials.record import read_record

        self._left: dict[tuple[str, str, str], float] = {}
        for request in requests:
            uri, settings = ablation_uri(request, storage_root_uri), {}
            for trial in request.trials():
                if trial.setting not in settings:
                    settings[trial.setting] = trial_cost(request, trial, "CPU")
                record = read_record(uri, trial.label)
                if record is None or record.error:
                    cost = settings[trial.setting]
                    self._left |= {(uri, trial.label, "training"): cost.training, (uri, trial.label, "measuring"): cost.measuring}
        self._words = " of all ablations" if len(requests) > 1 else ""
        self._done = 0.0
        self._clock, self._start = clock, clock()

    def finish(self, item: Mapping[str, Any], *parts: Literal["training", "measuring"]) -> None:
        """Note that parts of the trial of that item are done."""
        self._done += sum(self._left.pop((item["ablation_uri"], item["label"], part), 0.0) for part in parts)

    def describe(self) -> str:
        """Return text like ", about 25 min 10 s left"; empty while nothing is done, and at the end."""
        if not self._done or not self._left:
            return ""
        seconds = (self._clock() - self._start) * sum(self._left.values()) / self._done
        return f", about {format_duration(seconds)} left{self._words}"

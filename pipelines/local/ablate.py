"""An ablation on this machine, by the functions of the pipeline's steps, with several trials at once.

`iddpm run ablation` runs the pipeline itself. Here each process runs several trials, and imports its libraries once. That saves most of the
time at the tiny scale.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.ablations.directory import ablation_uri, read_plan
from components.launch.resources import STAGES
from evaluation.ablations.definitions.cost import trial_cost
from evaluation.ablations.definitions.request import AblationRequest
from pipelines.local.output import show_progress
from pipelines.local.trial import TRACKING_EXPERIMENT, TrialJob, run_trial
from training.config.errors import UserError
from training.config.experiment import Experiment, Resources
from training.console import format_duration, say
from training.distributed.cores import available_cores

if TYPE_CHECKING:
    from pipelines.services.services import Services
    from training.tracking.tracked_run import Status

_MAX_PARALLEL_TRIALS = 8
"""Trials at once on a machine of many cores, unless it is told otherwise: each takes some GiB of memory."""
_SECONDS_TO_STOP = 30.0
"""Time in which an interrupted training saves a last checkpoint and closes its run in MLflow."""


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
    data_options: str = "",
    resources: Mapping[str, Resources] | None = None,
    parallel_trials: int | None = None,
    time_left: TimeLeft | None = None,
) -> AblationResult:
    """Plan an ablation, train and measure its trials or reuse them, and write the report; a failed trial stops no other.

    Only progress is shown; the output of libraries goes into a log.

    Args:
        sources: Name of a data set -> source of its images.
        data_options: How the images of all data sets are prepared; see `pipelines.local.images.preparation`.
        resources: Stage (data, train, evaluate) -> its resources; one that is missing has the defaults. With several workers of train or
            evaluate, one trial runs at a time.
        parallel_trials: Trials at once, each in a process with one GPU or an equal part of the cores; see `choose_parallel_trials`.
        time_left: The estimate for this and further ablations; None makes one for this alone.

    Raises:
        UserError: The ablation is not valid, or its trials can't run like this.
    """
    from components.ablations.planning import list_data_sets, plan
    from components.ablations.steps import measure_joint, reason
    from components.steps.mlflow_sync import call_at_end
    from pipelines.local.images import preparation
    from training.data.splits import prepare_experiment
    from training.distributed.ray_session import parallel_map

    os.environ.update(services.env)
    root, uri = services.bucket_uri, ablation_uri(request, services.bucket_uri)
    resources = {**dict.fromkeys(STAGES, Resources()), **(resources or {})}
    parallel_trials = choose_parallel_trials(parallel_trials, resources)
    shard_map = functools.partial(parallel_map, num_workers=resources["data"].num_workers)
    time_left = time_left or estimate_time_left([request], services)
    log_path = services.home / "logs" / f"{request.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    with show_progress(log_path, request.name):
        for data_set in list_data_sets(request, root, sources=sources):
            given, experiment = data_set["source"], Experiment.from_json(data_set["experiment"])
            prepare_experiment(experiment, data_set["data_uri"], source=given, shard_map=shard_map, **preparation(data_options, given))
        items = plan(request, root, TRACKING_EXPERIMENT)
        with call_at_end(functools.partial(_end_if_stopped, read_plan(uri).parent_run_id)):
            failed = _run_trials(items, root, resources, parallel_trials, time_left)
            if not failed or request.seeds > 1:
                try:
                    measure_joint(uri, dataclasses.asdict(resources["evaluate"]))
                except Exception as error:  # named in the report
                    failed["joint measurement"] = reason(error)
                    say(f"joint measurement failed: {reason(error)}")
            folder = report_locally(request, services)
    return AblationResult(uri=uri, folder=folder, failed=failed, log_path=log_path)


def _end_if_stopped(parent_run_id: str, status: Status) -> None:
    """End a stopped ablation's run in MLflow as KILLED or FAILED, and open runs below it. The report ends the run of a finished one."""
    from training.tracking.runs import TrackingError, attach, close_open_run, open_runs
    from training.tracking.tracked_run import PARENT_TAG

    if status == "FINISHED":
        return
    with contextlib.suppress(TrackingError):  # without MLflow they stay open, until the same command runs again and ends them
        if attach(parent_run_id, check=False).finish(status, timeout_seconds=10.0):
            trials = open_runs(PARENT_TAG, parent_run_id)
            trainings = [run for trial in trials for run in open_runs(PARENT_TAG, trial.run_id)]
            for run in (*trainings, *trials):
                close_open_run(run, PARENT_TAG, status)


def estimate_time_left(requests: Sequence[AblationRequest], services: Services) -> TimeLeft:
    """Start the estimate of the time until all trials of these ablations are done."""
    os.environ.update(services.env)
    return TimeLeft(requests, services.bucket_uri)


def report_locally(request: AblationRequest, services: Services, *, at_work: bool = False) -> Path:
    """Write the report from the present records to storage, to MLflow and to a folder of the gallery, and return that folder.

    Args:
        at_work: Another command may still work on the ablation; see `components.ablations.report.make_report`.

    Raises:
        UserError: Nothing was planned.
    """
    from components.ablations.close import update_ablation
    from components.ablations.report import FILES
    from evaluation.ablations.page.gallery import write_gallery
    from training import storage

    os.environ.update(services.env)
    uri = ablation_uri(request, services.bucket_uri)
    update_ablation(uri, at_work=at_work)
    folder = gallery_folder(services) / request.folder()
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


def choose_parallel_trials(parallel_trials: int | None, resources: Mapping[str, Resources]) -> int:
    """Return how many trials run at once: the number given, one with several workers, or one for each GPU or core, but on cores 8 at most.

    Args:
        resources: Stage -> resources, with those of train and evaluate.

    Raises:
        UserError: Several trials would have several workers each, or there are too few GPUs.
    """
    num_workers, gpu = _most(resources)
    if gpu:
        import torch

        from pipelines.client.arguments import require_gpus

        require_gpus(resources)
    if num_workers > 1 and (parallel_trials or 1) > 1:
        raise UserError(
            f"{parallel_trials} trials at once have one process each, not {num_workers}; "
            "give --parallel-trials, or workers (--num-workers or --resources), not both"
        )
    if parallel_trials or num_workers > 1:
        return parallel_trials or 1
    return torch.cuda.device_count() if gpu else min(available_cores(), _MAX_PARALLEL_TRIALS)


def _most(resources: Mapping[str, Resources]) -> tuple[int, int]:
    """Return the most workers that training or measuring a trial has, and the most GPUs of a worker, 0 or 1."""
    both = resources["train"], resources["evaluate"]
    return max(each.num_workers for each in both), max(each.num_gpus_per_worker for each in both)


def _run_trials(
    items: Sequence[Mapping[str, Any]], root: str, resources: Mapping[str, Resources], parallel_trials: int, time_left: TimeLeft
) -> dict[str, str]:
    """Train and measure every trial; return the labels of those that failed, with the reasons."""
    from components.ablations.steps import finished_record, reason
    from training.distributed.ray_session import parallel_tasks, ray_session

    num_workers, num_gpus = _most(resources)
    own = num_workers == 1
    share = max(1, available_cores() // parallel_trials)
    if own and not resources["train"].num_threads:
        resources = {**resources, "train": dataclasses.replace(resources["train"], num_threads=share)}
    jobs = []
    for number, item in enumerate(items, start=1):
        if finished_record(item) is not None:
            say(f"{item['label']}: was trained and measured before")
        else:
            position = f"{number} of {len(items)}"
            job = TrialJob(item=item, position=position, storage_root_uri=root, resources=resources, in_own_process=own, num_threads=share)
            jobs.append(job)
    if not jobs:
        return {}
    failed: dict[str, str] = {}
    with ray_session(num_cpus=max(available_cores(), parallel_trials, num_workers + 1)), contextlib.ExitStack() as stack:
        results: Iterable[tuple[TrialJob, Exception | None]] = ((job, _run_here(job)) for job in jobs)
        if own:
            tasks = parallel_tasks(
                run_trial,
                jobs,
                num_workers=parallel_trials,
                num_gpus_per_worker=num_gpus,
                grace_seconds=_SECONDS_TO_STOP,
            )
            results = stack.enter_context(contextlib.closing(tasks))
        for job, error in results:
            label = job.item["label"]
            time_left.finish(job.item)
            if error is not None:
                failed[label] = reason(error)
            say(f"{label} {f'failed: {failed[label]}' if error is not None else 'is done'}{time_left.describe()}")
    return failed


def _run_here(job: TrialJob) -> Exception | None:
    try:
        run_trial(job)
    except Exception as error:  # named in the report; the others continue
        return error
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

        self._left: dict[tuple[str, str], float] = {}
        for request in requests:
            uri, settings = ablation_uri(request, storage_root_uri), {}
            for trial in request.trials():
                if trial.setting not in settings:
                    settings[trial.setting] = trial_cost(request, trial, "CPU")
                record = read_record(uri, trial.label)
                if record is None or record.error:
                    cost = settings[trial.setting]
                    self._left[uri, trial.label] = cost.training + cost.measuring
        self._words = " of all ablations" if len(requests) > 1 else ""
        self._done = 0.0
        self._clock, self._start = clock, clock()

    def finish(self, item: Mapping[str, Any]) -> None:
        """Note that the trial of that item is done."""
        self._done += self._left.pop((item["ablation_uri"], item["label"]), 0.0)

    def describe(self) -> str:
        """Return text like ", about 25 min 10 s left"; empty while nothing is done, and at the end."""
        if not self._done or not self._left:
            return ""
        seconds = (self._clock() - self._start) * sum(self._left.values()) / self._done
        return f", about {format_duration(seconds)} left{self._words}"

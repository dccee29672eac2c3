"""An ablation on this machine, in one process: the functions that are the pipeline's steps, one after the other.

`iddpm run ablation` runs the pipeline itself. Here no step pays for a process of its own and Ray is started once, which at
the tiny scale is most of the time.
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
from typing import TYPE_CHECKING, Any

from evaluation.ablations.definitions.request import AblationRequest
from pipelines.local.output import show_progress
from training.console import say

if TYPE_CHECKING:
    from pipelines.services.services import Services

TRACKING_EXPERIMENT = "iddpm"
_RESOURCES = {"num_workers": 1, "num_threads": 1}


_MEASURING = "measuring"


class AblationError(RuntimeError):
    """An ablation of which something is missing; the report is made all the same and says what."""

    def __init__(self, message: str, log_path: Path | None = None) -> None:
        super().__init__(message)
        self.log_path = log_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What an ablation left.

    Attributes:
        uri: Its directory.
        folder: Local folder with report.html, table.csv, table.json and figure.svg.
        failed: Trial -> why.
        log_path: Where everything stands that was not shown.
        seconds: How long it took.
    """

    uri: str
    folder: Path
    failed: dict[str, str]
    log_path: Path
    seconds: float


def run_ablation(
    request: AblationRequest,
    services: Services,
    *,
    sources: Mapping[str, str] | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Done:
    """Plans, trains or reuses, measures, and reports; a trial that fails takes no other down.

    Only progress is shown; what the libraries say goes into a log.

    Args:
        request: The ablation.
        services: S3 and MLflow.
        sources: Name of a data set -> where its images come from.
        resources: Fields of `training.config.experiment.Resources` for training and evaluation.

    Raises:
        UserError: The ablation can't be planned.
    """
    from components.ablations.directory import ablation_uri
    from components.ablations.planning import list_data_sets, plan
    from components.ablations.steps import measure_joint
    from training.data.splits import prepare_experiment

    started = time.monotonic()
    os.environ.update(services.env)
    root = services.bucket_uri
    log_path = services.home / "logs" / f"{request.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    with show_progress(log_path, lambda: _title(request)):
        for data_set in list_data_sets(request, root, sources=sources):
            prepare_experiment(data_set["experiment_preset"], data_set["overrides"], data_set["data_uri"], source=data_set["source"])
        items = plan(request, root, TRACKING_EXPERIMENT)
        failed = _trials(items, root, {**_RESOURCES, **(resources or {})})
        uri = ablation_uri(request, root)
        if not failed:
            _keep_going(failed, "joint measurement", lambda: measure_joint(uri, {**_RESOURCES, **(resources or {})}))
        folder = report_locally(request, services)
    return Done(uri=uri, folder=folder, failed=failed, log_path=log_path, seconds=time.monotonic() - started)


def _trials(items: Sequence[Mapping[str, Any]], root: str, resources: Mapping[str, Any]) -> dict[str, str]:
    """Trains and measures every trial; returns those that failed, and why."""
    from components.ablations import steps as steps
    from training.distributed.ray_session import ray_session

    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        if any(not item["run_uri"] and steps.finished_record(item) is None for item in items):
            stack.enter_context(ray_session(num_cpus=max(os.cpu_count() or 1, int(resources["num_workers"]) + 1)))
        # One trial is trained, in Ray's processes, while the one before it is measured in this one.
        measuring = ThreadPoolExecutor(1, thread_name_prefix=_MEASURING)
        stack.callback(measuring.shutdown, cancel_futures=True)  # stopped from outside, only what is under way is waited for
        pending = []
        for number, item in enumerate(items, start=1):
            say(f"trial {number} of {len(items)}: {item['label']}")
            run_uri = _keep_going(failed, item["label"], functools.partial(_train, item, root, resources))
            if run_uri is not None:
                measure = functools.partial(steps.measure_trial, item, run_uri, resources)
                pending.append(measuring.submit(_keep_going, failed, item["label"], measure))
        for one in pending:
            one.result()
    return failed


def _title(request: AblationRequest) -> str:
    """Trained and measured at once, lines are told apart by the thread that they come from."""
    return f"{request.name}, measuring" if threading.current_thread().name.startswith(_MEASURING) else request.name


def report_locally(request: AblationRequest, services: Services) -> Path:
    """Makes the report of what is there, in S3, in MLflow, and in the state folder, where the gallery lists it.

    Raises:
        UserError: Nothing was planned.
    """
    from components.ablations.directory import ablation_uri
    from components.ablations.report import FILES, make_report
    from evaluation.ablations.page.gallery import write_gallery
    from training import storage

    os.environ.update(services.env)
    uri = ablation_uri(request, services.bucket_uri)
    make_report(uri)
    folder = gallery_folder(services) / f"{request.name}-{request.scale}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # each appears whole, for whoever lists the gallery at the same time
        if storage.exists(storage.join(uri, name)):
            storage.download(storage.join(uri, name), folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    write_gallery(gallery_folder(services))
    return folder


def was_planned(request: AblationRequest, services: Services) -> bool:
    """Whether there is anything to report of it."""
    from components.ablations.directory import PLAN, ablation_uri
    from training import storage

    os.environ.update(services.env)
    return storage.exists(storage.join(ablation_uri(request, services.bucket_uri), PLAN))


def gallery_folder(services: Services) -> Path:
    """Where the reports are on this machine."""
    return services.home / "ablations"


def _train(item: Mapping[str, Any], root: str, resources: Mapping[str, Any]) -> str:
    from components.ablations import steps as steps
    from components.steps.train import train_run

    def train() -> str:
        return train_run(
            item["experiment_preset"],
            item["overrides"],
            item["data_uri"],
            item["reference_uri"],
            root,
            TRACKING_EXPERIMENT,
            resources,
        )

    return steps.train_trial(item, train)


def _keep_going(failed: dict[str, str], label: str, action: Callable[[], str]) -> str | None:
    from components.ablations.steps import reason

    try:
        return action()
    except Exception as error:  # named in the report; the others go on
        failed[label] = reason(error)
        say(f"{label} failed: {failed[label]}")
        return None

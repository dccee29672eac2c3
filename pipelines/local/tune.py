"""A tuning on this machine, in one process, by the functions of the pipeline's steps; Ray is started once."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.tuning.request import TuneRequest
from pipelines.local.output import show_progress
from pipelines.local.trial import TRACKING_EXPERIMENT
from training.config.experiment import Resources

if TYPE_CHECKING:
    from pipelines.services.services import Services


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneResult:
    """The results of a tuning.

    Attributes:
        folder: Local folder with report.html, table.json and best.toml.
        lines: The trials best first, as a table for a terminal.
    """

    folder: Path
    lines: list[str]


def run_tuning(
    request: TuneRequest, services: Services, *, source: str = "", data_options: str = "", resources: Mapping[str, Resources]
) -> TuneResult:
    """Prepare the data set, run the trials that are missing, and copy the report to this machine's folder.

    Only progress is shown; the output of libraries goes into a log.

    Args:
        source: Source of the images; empty takes the data set's own.
        data_options: How they are prepared; see `pipelines.local.images.preparation`.
        resources: Stage -> resources: data prepares the images, train trains each trial.

    Raises:
        UserError: The request or the data set does not fit, or this machine has too few GPUs.
        TrainingError: No trial has finished.
    """
    from components.steps.reference import reference_for
    from components.tuning.directory import tuning_uri
    from components.tuning.report import FILES
    from components.tuning.steps import tune
    from evaluation.reports.html import text_table
    from evaluation.tuning.page import table_headers, table_rows
    from evaluation.tuning.record import read_records
    from pipelines.client.arguments import require_gpus
    from pipelines.local.images import preparation
    from training import storage
    from training.data.splits import default_data_uri, prepare_experiment
    from training.distributed.ray_session import parallel_map

    require_gpus(resources)
    os.environ.update(services.env)
    root, experiment = services.bucket_uri, request.experiment()
    log_path = services.home / "logs" / f"tune-{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    shard_map = functools.partial(parallel_map, num_workers=resources["data"].num_workers)
    with show_progress(log_path, "tune"):
        prepared = preparation(data_options, source)
        data_uri = prepare_experiment(experiment, default_data_uri(experiment.data, root), source=source, shard_map=shard_map, **prepared)
        reference_uri = reference_for(experiment, data_uri, root, before_training=True)
        uri = tuning_uri(request, data_uri, root)
        try:
            tune(request.to_dict(), data_uri, reference_uri, root, TRACKING_EXPERIMENT, dataclasses.asdict(resources["train"]))
        finally:  # also a tuning that was stopped has a report
            folder = services.home / "tunings" / uri.rpartition("/")[2]
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                if storage.exists(storage.join(uri, name)):
                    storage.download(storage.join(uri, name), folder / name)
    axes = request.axes()
    return TuneResult(folder=folder, lines=text_table(table_headers(axes, "score"), table_rows(axes, read_records(uri))))

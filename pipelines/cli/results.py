"""Store the results of a command: in files, and in MLflow if it can be reached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.reports.study import Study


def save_study(study: Study, out: Path, tracking_run_ids: list[str], as_json: bool) -> None:
    """Write a study's files, log it to MLflow, and print its text or its JSON file."""
    from components.steps.studies import log_study

    written = study.write(out)
    page = log_if_reachable(lambda: log_study(study, tracking_run_ids))
    if as_json:
        print(next(content for name, content in study.files.items() if name.endswith(".json")).decode(), end="")
        return
    print(f"{study.text}\n\n{written}")
    if page:
        print(f"{'MLflow':<32} {page}")


def log_if_reachable(log: Callable[[], str]) -> str:
    """Log to MLflow and return the page; empty if MLflow cannot be reached, since the files have the results too."""
    from training.console import say
    from training.tracking.runs import TrackingError

    if "MLFLOW_TRACKING_URI" not in os.environ:
        return ""
    try:
        return log()
    except TrackingError as error:
        say(f"not logged to MLflow: {error}")
        return ""

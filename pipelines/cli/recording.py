"""Where the numbers of a command go: to files, to MLflow where there is one to reach, and to whoever asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.reports.study import Study


def keep(study: Study, out: Path, tracking_run_ids: list[str], plain: dict[str, Any] | None) -> None:
    """Writes a study's files, notes it in MLflow, and prints it: for people, or `plain` as JSON where that is given."""
    from components.steps.studies import log_study

    written = study.write(out)
    page = noted(lambda: log_study(study, tracking_run_ids))
    if plain is not None:
        print(json.dumps(plain, indent=2))
        return
    print(f"{study.text}\n\n{written}")
    if page:
        print(f"{'MLflow':<32} {page}")


def noted(note: Callable[[], str]) -> str:
    """The MLflow page of what was noted; empty where there is no MLflow to reach: the numbers stand without it."""
    import os

    from training.console import say
    from training.tracking.runs import TrackingError

    if "MLFLOW_TRACKING_URI" not in os.environ:
        return ""
    try:
        return note()
    except TrackingError as error:
        say(f"not noted in MLflow: {error}")
        return ""

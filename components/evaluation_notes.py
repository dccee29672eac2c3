"""An evaluation among the records of the run that it is of: numbers, protocol card, page and samples in MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path

from training import storage


def note_evaluation(run_uri: str, result_name: str, tracking_run_id: str) -> str:
    """Logs an evaluation to the MLflow run that trained the model.

    Args:
        run_uri: The run's directory.
        result_name: Which evaluation; its numbers are logged as `<name>/distance` and so on, at the checkpoint's step.
        tracking_run_id: The MLflow run.

    Returns:
        The run's page.

    Raises:
        TrackingError: MLflow can't be reached, or has no such run.
    """
    from evaluation.report import report_uri
    from evaluation.result import EvaluationResult
    from evaluation.scoring import EVALUATIONS
    from training.tracking import attach

    tracked = attach(tracking_run_id)
    uri = storage.join(run_uri, EVALUATIONS, f"{result_name}.json")
    result = EvaluationResult.from_dict(storage.read_json(uri))
    tracked.log_metrics(result.flat_metrics(result_name), result.step)
    with tempfile.TemporaryDirectory(prefix="iddpm-") as folder:
        for source in (uri, report_uri(run_uri, result_name), result.grid_uri):
            if source and storage.exists(source):
                path = storage.download(source, Path(folder) / source.rpartition("/")[2])
                tracked.log_file(path, f"evaluations/{path.name}")
    tracked.flush()
    return tracked.url

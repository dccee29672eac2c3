"""The steps of the nightly check: which model, its score of today, and the comparison with its history."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.steps.evaluate import options_for, reference_for
from components.steps.train import RESULT
from components.steps.webhook import tell_once
from training import storage
from training.console import say

if TYPE_CHECKING:
    from evaluation.monitoring.regression import RegressionCheck
    from evaluation.records.result import EvaluationResult

HISTORY = "nightly/distance"


class NightlyError(ValueError):
    """The model can't be found, or it has become worse; the message says which, with both numbers."""


class Model(NamedTuple):
    """A model to check, in words that a pipeline can carry."""

    checkpoint_uri: str
    weights: str
    data_uri: str
    tracking_run_id: str


def resolve_model(model: str) -> Model:
    """Finds a model.

    Args:
        model: `models:/NAME@ALIAS` (the registry), `runs:/ID` (MLflow), a run's directory, or a checkpoint's inside a run's.

    Raises:
        NightlyError: There is no such run, or it has not finished.
        UserError: There is nothing of that name.
        TrackingError: There is no such registered model.
    """
    from evaluation.selection.resolve import resolve_model

    found = resolve_model(model)
    if not (found.data_uri and found.tracking_run_id):
        raise NightlyError(f"{model}: there is no finished run ({RESULT} is missing); name a run, a checkpoint or models:/NAME@ALIAS")
    return Model(found.checkpoint_uri, found.weights or "", found.data_uri, found.tracking_run_id)


def score_model(checkpoint_uri: str, weights: str, data_uri: str, storage_root_uri: str, purpose: str, resources: Mapping[str, Any]) -> str:
    """Evaluates a model anew, with noise of its own.

    Args:
        checkpoint_uri: What to evaluate.
        weights: Which weights; empty takes the first average.
        data_uri: The data set that it was trained on.
        storage_root_uri: Where reference statistics are kept.
        purpose: Names the draw and the result: other words give other noise.
        resources: How many processes draw samples; fields of `training.config.experiment.Resources`.

    Returns:
        URI of the result.
    """
    from evaluation.evaluate.run import evaluate
    from evaluation.records.run_directory import EVALUATIONS, run_uri_of
    from training.checkpoints.checkpoint import load_experiment

    experiment = load_experiment(checkpoint_uri)
    options = dataclasses.replace(
        options_for(experiment, storage_root_uri, resources), purpose=purpose, result_name=purpose, likelihood=False
    )
    reference_uri = reference_for(experiment, data_uri, storage_root_uri)
    evaluate(checkpoint_uri, data_uri, reference_uri, weights=weights or None, options=options)
    return storage.join(run_uri_of(checkpoint_uri), EVALUATIONS, f"{purpose}.json")


@contextlib.contextmanager
def telling_of_failure(model: str, weights: str, storage_root_uri: str, purpose: str) -> Iterator[None]:
    """Tells the webhook when a model can't be found or evaluated: a check that does not run is no healthy model.

    Args:
        model: The model.
        weights: Which weights; empty where they are not known yet.
        storage_root_uri: Where it is written down that it was told.
        purpose: Of the evaluation; what is tried again under it is told of once.
    """
    try:
        yield
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        message = {
            "text": f"iDDPM nightly: {model} could not be evaluated: {what}",
            "event": "evaluation_failed",
            "model": model,
            "weights": weights,
            "error": what,
        }
        tell_once(message, storage.join(storage_root_uri, "nightly", f"{purpose}-failure-told.json"))
        raise


def compare_with_history(
    evaluation_uri: str, tracking_run_id: str, num_standard_errors: float, min_difference: float, page_path: str
) -> str:
    """Appends a score to the model's history in MLflow, and refuses one that is a regression.

    A regression is not appended: the history that tomorrow is compared with stays a healthy one. Where there is no
    history yet, the run's own reported distance is it. The webhook is told of a regression.

    Args:
        evaluation_uri: The score.
        tracking_run_id: The model's MLflow run, whose metric `nightly/distance` is the history.
        num_standard_errors: See `evaluation.monitoring.regression.check_regression`.
        min_difference: See `evaluation.monitoring.regression.check_regression`.
        page_path: Local file for the page that shows the comparison.

    Returns:
        The verdict in one sentence.

    Raises:
        NightlyError: The score is a regression; the message names both numbers.
    """
    from datetime import UTC, datetime

    from evaluation.monitoring.regression import check_regression
    from evaluation.records.result import EvaluationResult
    from evaluation.reports.report import Nightly, render_report
    from training.tracking.runs import attach

    result = EvaluationResult.from_dict(storage.read_json(evaluation_uri))
    tracked = attach(tracking_run_id)
    # The time of the evaluation is the step, so that this step run again appends nothing twice.
    now = int(datetime.fromisoformat(result.created_at).timestamp())
    earlier = [(step, value) for step, value in tracked.metric_history(HISTORY) if step < now]
    reported = tracked.metric_history("final/distance")[:1]
    values = [value for _, value in (earlier or reported)]
    verdict = check_regression(
        result.distance,
        result.distance_standard_error,
        values,
        num_standard_errors=num_standard_errors,
        min_difference=min_difference,
    )
    when = [(datetime.fromtimestamp(step, UTC), value) for step, value in earlier]
    page = render_report(
        result,
        nightly=Nightly(verdict=verdict, earlier=tuple(when)),
        grid_png=storage.read_bytes(result.grid_uri) if result.grid_uri and storage.exists(result.grid_uri) else None,
        links={"The model's run in MLflow": tracked.url},
    )
    Path(page_path).parent.mkdir(parents=True, exist_ok=True)
    Path(page_path).write_text(page)
    # By its name, so that the next night leaves it, and under one that always leads to the last.
    name = evaluation_uri.rpartition("/")[2].removesuffix(".json")
    for path in (f"evaluations/{name}.html", "nightly.html"):
        tracked.log_text(page, path)
    if verdict.regressed:
        tracked.log_metrics({"nightly/regressed_distance": result.distance}, now)
        tracked.flush()
        said = f"{result.distance_name} has regressed: {verdict.reason} ({result.checkpoint_uri}, {result.weights})"
        tell_once(
            _regression_message(said, result, verdict, evaluation_uri, tracked.url), f"{evaluation_uri.removesuffix('.json')}-told.json"
        )
        raise NightlyError(said)
    tracked.log_metrics({HISTORY: result.distance}, now)
    tracked.flush()
    say(f"healthy: {result.distance_name} {verdict.reason}")
    return verdict.reason


def _regression_message(said: str, result: EvaluationResult, verdict: RegressionCheck, evaluation_uri: str, url: str) -> dict[str, Any]:
    return {
        "text": f"iDDPM nightly: {said} {url}",
        "event": "regression",
        "model": result.checkpoint_uri,
        "weights": result.weights,
        "distance_name": result.distance_name,
        "distance": result.distance if math.isfinite(result.distance) else None,
        "standard_error": result.distance_standard_error,
        "baseline": verdict.baseline,
        "limit": verdict.limit,
        "reason": verdict.reason,
        "links": {"mlflow": url, "evaluation": evaluation_uri},
    }

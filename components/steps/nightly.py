"""The steps of the nightly check: find the model, score it, compare the score with the model's history."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.steps.evaluate import evaluation_options
from components.steps.reference import reference_for
from components.steps.runs import RESULT
from components.steps.webhook import send_once
from training import storage
from training.config.addresses import public_links
from training.config.errors import UserError
from training.console import say

if TYPE_CHECKING:
    from evaluation.monitoring.regression import RegressionCheck
    from evaluation.records.result import EvaluationResult

HISTORY = "nightly/distance"


class RegressionError(RuntimeError):
    """The model has become worse; the message names both numbers."""


class Model(NamedTuple):
    """A model to check, as text that a pipeline can carry."""

    checkpoint_uri: str
    weights: str
    data_uri: str
    tracking_run_id: str


def resolve_model(model: str) -> Model:
    """Find a model.

    Args:
        model: `models:/NAME@ALIAS` (the registry), `runs:/ID` (MLflow), a run's directory, or a checkpoint's inside a run's.

    Raises:
        UserError: There is nothing of that name, or its run has not finished.
        TrackingError: There is no such registered model.
    """
    from evaluation.selection.resolve import resolve_model

    found = resolve_model(model)
    if not (found.data_uri and found.tracking_run_id):
        raise UserError(f"{model}: there is no finished run ({RESULT} is missing); name a run, a checkpoint or models:/NAME@ALIAS")
    return Model(found.checkpoint_uri, found.weights or "", found.data_uri, found.tracking_run_id)


def score_model(checkpoint_uri: str, weights: str, data_uri: str, storage_root_uri: str, purpose: str, resources: Mapping[str, Any]) -> str:
    """Evaluate a model again, with new noise.

    Args:
        checkpoint_uri: The checkpoint.
        weights: Name of the weights; empty takes the first average.
        data_uri: The data set that it was trained on.
        storage_root_uri: Where reference statistics are stored.
        purpose: Name of the result, which seeds the noise.
        resources: Number of processes that draw samples; fields of `training.config.experiment.Resources`.

    Returns:
        URI of the result.
    """
    from evaluation.evaluate.run import evaluate
    from evaluation.records.run_directory import EVALUATIONS, run_uri_of
    from evaluation.sampling.trained_model import ModelSpec
    from training.checkpoints.checkpoint import load_experiment

    experiment = load_experiment(checkpoint_uri)
    options = dataclasses.replace(
        evaluation_options(experiment, storage_root_uri, resources), purpose=purpose, result_name=purpose, likelihood=False
    )
    reference_uri = reference_for(experiment, data_uri, storage_root_uri)
    evaluate(ModelSpec(checkpoint_uri=checkpoint_uri, weights=weights or None), data_uri, reference_uri, options=options)
    return storage.join(run_uri_of(checkpoint_uri), EVALUATIONS, f"{purpose}.json")


@contextlib.contextmanager
def reporting_failure(model: str, weights: str, storage_root_uri: str, purpose: str) -> Iterator[None]:
    """Tell the webhook of a failure inside the block, and raise it again: without a check nobody knows that the model is healthy.

    Args:
        model: The model.
        weights: Name of the weights; empty where it is not known yet.
        storage_root_uri: Where the receipt of the message is stored.
        purpose: Name of the evaluation; one message is sent for it, however often the step is tried.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        message = {
            "text": f"iDDPM nightly: {model} could not be evaluated: {reason}",
            "event": "evaluation_failed",
            "model": model,
            "weights": weights,
            "error": reason,
        }
        send_once(message, storage.join(storage_root_uri, "nightly", f"{purpose}-failure-told.json"))
        raise


def compare_with_history(
    evaluation_uri: str, tracking_run_id: str, num_standard_errors: float, min_difference: float, page_path: str
) -> str:
    """Append a score to the model's history in MLflow; raise an error if it is a regression.

    A regression is not appended, so the next score is compared with healthy ones. The first score is compared with the distance
    that the run reported. The webhook is told of a regression.

    Args:
        evaluation_uri: The score.
        tracking_run_id: The model's MLflow run, whose metric `nightly/distance` is the history.
        num_standard_errors: See `evaluation.monitoring.regression.check_regression`.
        min_difference: See `evaluation.monitoring.regression.check_regression`.
        page_path: Local file for the page that shows the comparison.

    Returns:
        The result of the comparison, one sentence.

    Raises:
        RegressionError: The score is a regression.
        TrackingError: MLflow, which has the history, does not answer.
    """
    from datetime import UTC, datetime

    from evaluation.monitoring.regression import check_regression
    from evaluation.records.result import EvaluationResult
    from evaluation.reports.report import Nightly, render_report
    from training.tracking.client import wait_for_mlflow
    from training.tracking.runs import TrackingError, attach

    wait_for_mlflow()
    result = EvaluationResult.from_dict(storage.read_json(evaluation_uri))
    tracked = attach(tracking_run_id)
    # The time of the evaluation is the step, so that this step run again appends nothing twice.
    now = int(datetime.fromisoformat(result.created_at).timestamp())
    earlier = [(step, value) for step, value in tracked.metric_history(HISTORY) if step < now]
    reported = tracked.metric_history("final/distance")[:1]
    values = [value for _, value in (earlier or reported)]
    verdict = check_regression(
        result.distance, result.distance_standard_error, values, num_standard_errors=num_standard_errors, min_difference=min_difference
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
    # One page for each night, and one path that always leads to the last.
    name = evaluation_uri.rpartition("/")[2].removesuffix(".json")
    for path in (f"evaluations/{name}.html", "nightly.html"):
        tracked.log_artifact(page, path)
    if verdict.regressed:
        tracked.log_metrics({"nightly/regressed_distance": result.distance}, now, milliseconds=now * 1000)
        tracked.flush()
        finding = f"{result.distance_name} has regressed: {verdict.reason} ({result.checkpoint_uri}, {result.weights})"
        send_once(
            _regression_message(finding, result, verdict, evaluation_uri, tracked.url), f"{evaluation_uri.removesuffix('.json')}-told.json"
        )
        raise RegressionError(finding)
    tracked.log_metrics({HISTORY: result.distance}, now, milliseconds=now * 1000)
    if not tracked.flush():
        raise TrackingError("MLflow does not answer, so the score is not in the model's history; run this step again")
    say(f"healthy: {result.distance_name} {verdict.reason}")
    return verdict.reason


def _regression_message(finding: str, result: EvaluationResult, verdict: RegressionCheck, evaluation_uri: str, url: str) -> dict[str, Any]:
    links = public_links({"mlflow": url})
    return {
        "text": f"iDDPM nightly: {finding} {links.get('mlflow', '')}".rstrip(),
        "event": "regression",
        "model": result.checkpoint_uri,
        "weights": result.weights,
        "distance_name": result.distance_name,
        "distance": result.distance if math.isfinite(result.distance) else None,
        "standard_error": result.distance_standard_error,
        "baseline": verdict.baseline,
        "limit": verdict.limit,
        "reason": verdict.reason,
        "links": {**links, "evaluation": evaluation_uri},
    }

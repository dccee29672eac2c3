"""The steps of the nightly check: which model, its score of today, and the comparison with its history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.evaluation_run import reference_for
from components.training_run import RESULT
from training import storage
from training.config import Resources
from training.progress import say

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
        model: `models:/NAME@ALIAS` (the registry), a run's directory, or a checkpoint's directory inside a run's.

    Raises:
        NightlyError: There is no such run.
        TrackingError: There is no such registered model.
    """
    if model.startswith("models:/"):
        from training.registry import CHAMPION, resolve

        name, _, alias = model.removeprefix("models:/").partition("@")
        registered = resolve(name, alias or CHAMPION)
        say(f"{name}@{alias or CHAMPION} is version {registered.version}: {registered.checkpoint_uri} ({registered.weights})")
        return Model(registered.checkpoint_uri, registered.weights, registered.data_uri, registered.run_id)
    run_uri, separator, _ = model.rstrip("/").partition("/checkpoints/")
    result_uri = storage.join(run_uri, RESULT)
    if not storage.exists(result_uri):
        raise NightlyError(f"{model}: there is no finished run ({RESULT} is missing); name a run, a checkpoint or models:/NAME@ALIAS")
    trained = storage.read_json(result_uri)
    weights = "" if separator else trained["best_weights"]
    return Model(model if separator else trained["best_checkpoint_uri"], weights, trained["data_uri"], trained["tracking_run_id"])


def score_model(checkpoint_uri: str, weights: str, data_uri: str, storage_root_uri: str, purpose: str, resources: Mapping[str, Any]) -> str:
    """Evaluates a model anew, with noise of its own.

    Args:
        checkpoint_uri: What to evaluate.
        weights: Which weights; empty takes the first average.
        data_uri: The data set that it was trained on.
        storage_root_uri: Where reference statistics are kept.
        purpose: Names the draw and the result: other words give other noise.
        resources: How many processes draw samples; fields of `training.config.Resources`.

    Returns:
        URI of the result.
    """
    from evaluation.run import EvaluationOptions, evaluate
    from evaluation.scoring import EVALUATIONS, run_uri_of
    from training.checkpoint import load_experiment

    reference_uri = reference_for(load_experiment(checkpoint_uri), data_uri, storage_root_uri)
    options = EvaluationOptions(
        purpose=purpose, result_name=purpose, likelihood=False, num_workers=Resources.from_dict(resources).num_workers
    )
    evaluate(checkpoint_uri, data_uri, reference_uri, weights=weights or None, options=options)
    return storage.join(run_uri_of(checkpoint_uri), EVALUATIONS, f"{purpose}.json")


def compare_with_history(
    evaluation_uri: str, tracking_run_id: str, num_standard_errors: float, min_difference: float, page_path: str
) -> str:
    """Appends a score to the model's history in MLflow, and refuses one that is a regression.

    A regression is not appended: the history that tomorrow is compared with stays a healthy one. Where there is no
    history yet, the run's own reported distance is it.

    Args:
        evaluation_uri: The score.
        tracking_run_id: The model's MLflow run, whose metric `nightly/distance` is the history.
        num_standard_errors: See `evaluation.regression.judge`.
        min_difference: See `evaluation.regression.judge`.
        page_path: Local file for the page that shows the comparison.

    Returns:
        The verdict in one sentence.

    Raises:
        NightlyError: The score is a regression; the message names both numbers.
    """
    from datetime import datetime

    from evaluation.regression import judge
    from evaluation.result import EvaluationResult
    from evaluation.table_page import table_page
    from training.tracking import attach

    result = EvaluationResult.from_dict(storage.read_json(evaluation_uri))
    tracked = attach(tracking_run_id)
    # The time of the evaluation is the step, so that this step run again appends nothing twice.
    now = int(datetime.fromisoformat(result.created_at).timestamp())
    earlier = [(step, value) for step, value in tracked.metric_history(HISTORY) if step < now]
    reported = tracked.metric_history("final/distance")[:1]
    values = [value for _, value in (earlier or reported)]
    verdict = judge(
        result.distance,
        result.distance_standard_error,
        values,
        num_standard_errors=num_standard_errors,
        min_difference=min_difference,
    )
    when = [(datetime.fromtimestamp(step).isoformat(sep=" ", timespec="minutes"), value) for step, value in earlier]
    page = table_page(
        f"Nightly {result.distance_name}: {'regression' if verdict.regressed else 'healthy'}",
        ["When", result.distance_name],
        [*([stamp, f"{value:.4g}"] for stamp, value in when), [f"now ({result.created_at})", f"{result.distance:.4g}"]],
        lead=[f"{result.checkpoint_uri} ({result.weights})"],
        failures=[f"Regression: {verdict.reason}."] if verdict.regressed else [],
        notes=[verdict.reason],
        links={"The model's run in MLflow": tracked.url},
    )
    Path(page_path).parent.mkdir(parents=True, exist_ok=True)
    Path(page_path).write_text(page)
    tracked.log_text(page, "nightly.html")
    if verdict.regressed:
        tracked.log_metrics({"nightly/regressed_distance": result.distance}, now)
        tracked.flush()
        raise NightlyError(f"{result.distance_name} has regressed: {verdict.reason} ({result.checkpoint_uri}, {result.weights})")
    tracked.log_metrics({HISTORY: result.distance}, now)
    tracked.flush()
    say(f"healthy: {result.distance_name} {verdict.reason}")
    return verdict.reason

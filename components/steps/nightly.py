"""The steps of the nightly check: find the model, score it, judge the score by the model's history."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from components.steps.evaluate import evaluation_options
from components.steps.reference import reference_for
from components.steps.run_messages import message_of, record_uri
from components.steps.settings import require_no_blanks_around
from components.steps.studies import FINAL
from components.steps.webhook import send_once
from evaluation.records.run_directory import RESULT
from training import storage
from training.config.addresses import public_links
from training.config.errors import UserError, in_one_line
from training.config.redaction import without_secrets
from training.console import say

if TYPE_CHECKING:
    from evaluation.monitoring.nightly import History, Judgement, SameNoise
    from evaluation.records.result import EvaluationResult

PAGE = "nightly.html"
_COMMON_NOISE = "nightly-common"
"""The purpose that seeds the noise of all nights' common samples."""
_MIN_COMMON, _COMMON_PART = 1000, 10
"""A tenth of the samples, but 1,000 at least: the difference of two nights on common noise needs fewer than a score."""
_OUTCOMES = {1: "has regressed", 0: "is healthy", -1: "has improved"}


class RegressionError(RuntimeError):
    """The model has become worse; the message says by how much and since when."""


class Model(NamedTuple):
    """A model to check, as text that a pipeline can carry."""

    checkpoint_uri: str
    weights: str
    data_uri: str
    tracking_run_id: str


def resolve_model(model: str) -> Model:
    """Find `models:/NAME@ALIAS` (the registry), `runs:/ID` (MLflow), a run's key or directory, or a checkpoint's inside a run's.

    Raises:
        UserError: There is nothing of that name, it has a blank around it, or its run has not finished.
        TrackingError: There is no such registered model.
    """
    from evaluation.selection.resolve import resolve_model

    require_no_blanks_around("model", model)
    found = resolve_model(model)
    if not (found.data_uri and found.tracking_run_id):
        raise UserError(
            f"{model}: its run has not finished ({RESULT} is missing); name a finished run, a checkpoint of one, or models:/NAME@ALIAS"
        )
    return Model(found.checkpoint_uri, found.weights or "", found.data_uri, found.tracking_run_id)


def score_model(
    checkpoint_uri: str,
    weights: str,
    data_uri: str,
    baseline_nights: int,
    min_difference: float,
    storage_root_uri: str,
    purpose: str,
    resources: Mapping[str, Any],
) -> str:
    """Evaluate a model again, with new noise, and return the result's URI.

    If the score is far from the earlier ones, or takes their cumulative sum above its limit, more samples are drawn in the same night.

    Fewer samples are drawn from the noise of every other night too, for the comparison with the first one. Their result has the name
    `<purpose>-common`. A step that was killed and is tried again draws only what is missing.

    Args:
        weights: Name of the weights; empty takes the first average.
        baseline_nights: See `evaluation.monitoring.detector.Rule`; by this rule a score is far from those before, or is not.
        min_difference: See `evaluation.monitoring.detector.Rule`.
        purpose: Name of the result, which seeds the noise; each night has its own.
        resources: Number of processes that draw samples; fields of `training.config.experiment.Resources`.

    Raises:
        StorageError: The model's history is damaged.
    """
    from evaluation.evaluate.run import evaluate_once
    from evaluation.monitoring.detector import NUM_REDRAWN, Rule
    from evaluation.monitoring.nightly import judge, night_of, read_history
    from evaluation.records.run_directory import result_uri, run_uri_of
    from evaluation.sampling.trained_model import ModelSpec
    from training.checkpoints.checkpoint import load_experiment

    experiment, model = load_experiment(checkpoint_uri), ModelSpec(checkpoint_uri=checkpoint_uri, weights=weights or None)
    reference_uri = reference_for(experiment, data_uri, storage_root_uri, models=[model])

    def draw(name: str, **changes: Any) -> EvaluationResult:
        options = evaluation_options(experiment, storage_root_uri, resources)
        options = dataclasses.replace(options, **{"purpose": name, "result_name": name, "likelihood": False, **changes})
        return evaluate_once(model, data_uri, reference_uri, options)

    run_uri = run_uri_of(checkpoint_uri)
    read_history(run_uri)  # a damaged one is refused before anything is drawn
    result = draw(purpose)
    uri = result_uri(run_uri, purpose)
    history = read_history(run_uri) or _reported(run_uri, result)
    rule = Rule(baseline_nights=baseline_nights, min_difference=min_difference)
    if judge(history.with_night(night_of(result, name=purpose, uri=uri, rule=rule))).is_suspicious:
        say(f"{result.distance_name} {result.distance:.4g} may show a change: drawing {NUM_REDRAWN} new ones")
        for number in range(NUM_REDRAWN):
            draw(_redrawn_name(purpose, number), metrics=(), held_out=False)
    count = result.protocol["distance"]["num_samples"]
    common = min(count, max(_MIN_COMMON, count // _COMMON_PART))
    say("the same from the noise that all nights have in common, for the difference to the baseline's first night")
    draw(_common_name(purpose), purpose=_COMMON_NOISE, num_samples=common, metrics=(), held_out=False)
    return uri


@contextlib.contextmanager
def reporting_failure(model: str, weights: str, storage_root_uri: str, purpose: str) -> Iterator[None]:
    """Tell the webhook of a failure inside the block, and raise it again: without a check nobody knows that the model is healthy.

    Args:
        weights: Name of the weights; empty where it is not known yet.
        storage_root_uri: Where the receipt of the message is stored.
        purpose: Name of the evaluation; one message is sent for it, however often the step is tried.
    """
    try:
        yield
    except Exception as error:
        reason = without_secrets(in_one_line(error) or type(error).__name__)
        message = {
            **message_of("failed", _run_id(purpose), f"nightly: {model} could not be evaluated: {reason}"),
            "errors": {"nightly": reason},
            "model": model,
            "weights": weights,
        }
        send_once(message, _record_uri(storage_root_uri, purpose))
        raise


def compare_with_history(
    evaluation_uri: str, tracking_run_id: str, baseline_nights: int, min_difference: float, storage_root_uri: str, page_path: str
) -> str:
    """Add a score to the model's history, judge it, and return that in one sentence.

    The history is in the run's directory (`evaluation.monitoring.nightly`). Page and numbers are logged to MLflow too. The webhook
    is told of the judgement.

    Args:
        baseline_nights: See `evaluation.monitoring.detector.Rule`.
        min_difference: See `evaluation.monitoring.detector.Rule`.
        storage_root_uri: Where the message to the webhook is recorded.

    Raises:
        RegressionError: The model has become worse.
        TrackingError: The run has no history yet, and MLflow, which may have one of an earlier version, does not answer.
    """
    from evaluation.monitoring.detector import NUM_REDRAWN, Rule
    from evaluation.monitoring.nightly import judge, night_of, update_history
    from evaluation.records.result import EvaluationResult
    from evaluation.records.run_directory import run_uri_of
    from evaluation.reports.report import render_report

    result = EvaluationResult.read(evaluation_uri)
    run_uri = run_uri_of(result.checkpoint_uri)
    folder, _, file_name = evaluation_uri.rpartition("/")
    name = file_name.removesuffix(".json")
    again = [storage.join(folder, f"{_redrawn_name(name, number)}.json") for number in range(NUM_REDRAWN)]
    distances = (EvaluationResult.read(uri).distance for uri in again if storage.exists(uri))
    redrawn = tuple(distance for distance in distances if math.isfinite(distance))
    rule = Rule(baseline_nights=baseline_nights, min_difference=min_difference)
    night = night_of(result, name=name, uri=evaluation_uri, rule=rule, redrawn=redrawn)
    history = update_history(
        run_uri,
        lambda stored: (stored or _scores_of_earlier_versions(tracking_run_id) or _reported(run_uri, result)).with_night(night),
    )
    judgement = judge(history.until(name))
    links = _links(tracking_run_id)
    same_noise = _compare_with_first_night(folder, judgement)
    page = render_report(
        result,
        nightly=judgement,
        same_noise=same_noise,
        grid_png=storage.read_bytes(result.grid_uri) if result.grid_uri and storage.exists(result.grid_uri) else None,
        links=links,
    )
    storage.write_bytes(page_path, page.encode())
    _log_to_mlflow(tracking_run_id, name, page, history, judgement, same_noise)
    finding = f"{result.distance_name} {_OUTCOMES[judgement.direction]}: {judgement.text}"
    if same_noise:
        finding += f"; {same_noise}"
    if judgement.baseline_reason and len(judgement.nights) == 1:
        finding += f"; a new baseline began: {judgement.baseline_reason}"
    message = _message(name, finding, result, judgement, same_noise, links)
    send_once(message, _record_uri(storage_root_uri, name))
    if judgement.direction > 0:
        raise RegressionError(f"{finding} ({result.checkpoint_uri}, {result.weights})")
    say(finding)
    return finding


def _record_uri(storage_root_uri: str, purpose: str) -> str:
    """Return where the message of a check is recorded: it is the message of its pipeline's end."""
    return record_uri(storage_root_uri, _run_id(purpose))


def _run_id(purpose: str) -> str:
    """Return the pipeline's run of a night, whose name begins with "nightly-"."""
    return purpose.removeprefix("nightly-")


def _redrawn_name(name: str, number: int) -> str:
    return f"{name}-again-{number + 1}"


def _common_name(name: str) -> str:
    return f"{name}-common"


def _compare_with_first_night(folder_uri: str, judgement: Judgement) -> SameNoise | None:
    """Compare tonight's samples with those of the baseline's first night that come from the same noise; None on that night itself."""
    from evaluation.distances.paired import distance_difference
    from evaluation.monitoring.nightly import SameNoise
    from evaluation.records.result import EvaluationResult
    from evaluation.records.run_directory import SAMPLES

    # A run may have been moved, so the addresses in its results don't count.
    samples_uri = storage.join(folder_uri.rpartition("/")[0], SAMPLES)
    there = {*storage.list_uris(folder_uri), *storage.list_uris(samples_uri)}
    files = {
        night.id: (storage.join(folder_uri, f"{_common_name(night.id)}.json"), storage.join(samples_uri, f"{_common_name(night.id)}.png"))
        for night in judgement.nights
    }
    first = next((night for night in judgement.nights if there.issuperset(files[night.id])), judgement.night)
    if first.id == judgement.night.id or not there.issuperset(files[judgement.night.id]):
        return None
    then, now = (EvaluationResult.read(files[night.id][0]) for night in (first, judgement.night))
    same = all(then.protocol["distance"][name] == now.protocol["distance"][name] for name in ("seed", "num_samples"))
    if not same or not math.isfinite(now.distance - then.distance):
        return None
    then_png, now_png = (storage.read_bytes(files[night.id][1]) for night in (first, judgement.night))
    return SameNoise(first=first.at, difference=distance_difference(now, then), first_png=then_png, png=now_png)


def _scores_of_earlier_versions(tracking_run_id: str) -> History | None:
    """Return the scores that earlier versions kept in MLflow alone, whose step was the time in seconds; None if there are none."""
    from datetime import UTC, datetime

    from evaluation.monitoring.nightly import History, Night
    from training.tracking.client import wait_for_mlflow
    from training.tracking.runs import attach

    wait_for_mlflow()
    found = attach(tracking_run_id).metric_history("nightly/distance")
    nights = (Night(id=f"mlflow-{step}", at=datetime.fromtimestamp(step, UTC), distance=value) for step, value in found)
    history = History(nights=tuple(night for night in nights if night.distance is not None and math.isfinite(night.distance)))
    return history if history.nights else None


def _reported(run_uri: str, result: EvaluationResult) -> History:
    """Return a history of the distance that the run reported, if that is comparable; it comes from other noise than any night's."""
    from evaluation.monitoring.detector import Rule
    from evaluation.monitoring.nightly import History, night_of, protocol_of
    from evaluation.records.result import EvaluationResult
    from evaluation.records.run_directory import result_uri

    uri = result_uri(run_uri, FINAL)
    if not storage.exists(uri):
        return History()
    final = EvaluationResult.read(uri)
    if protocol_of(final) != protocol_of(result):
        return History()
    return History(nights=(night_of(final, name=FINAL, uri=uri, rule=Rule()),))


def _links(tracking_run_id: str) -> dict[str, str]:
    """Return links to the night's page and to its pipeline, as far as browsers can open them."""
    from training.tracking.runs import TrackingError, attach

    links = {}
    try:
        url = attach(tracking_run_id).url
        links = {"The night in MLflow": url.replace("?", f"/artifacts/{PAGE}?"), "The model's run in MLflow": url}
    except TrackingError as error:
        say(f"{error}; the page has no link to the MLflow run")
    return public_links(links)


def _log_to_mlflow(
    tracking_run_id: str, name: str, page: str, history: History, judgement: Judgement, same_noise: SameNoise | None
) -> None:
    """Log page and numbers to the model's run, with the number of the night as the step. The history is complete without them."""
    from training.tracking.runs import TrackingError, attach

    trace = judgement.trace
    values = {"baseline": trace.centre, "spread": trace.spread, "sum_worse": trace.up, "sum_better": trace.down}
    now = {f"nightly/{key}": float(value[-1]) for key, value in values.items()} | {"nightly/alarm": float(judgement.direction)}
    if same_noise:
        now["nightly/same_noise_difference"] = same_noise.difference.value
    try:
        tracked = attach(tracking_run_id)
        # All nights of the history, because MLflow may have been away in an earlier one. It keeps the first value of a step.
        for step, night in enumerate(history.nights):
            score = {"nightly/score": night.distance} if night.distance is not None else {}
            own = {key: value for key, value in now.items() if math.isfinite(value)} if night.id == judgement.night.id else {}
            tracked.log_metrics({**score, **own}, step, milliseconds=int(night.at.timestamp() * 1000))
        # One page for each night, and one path that always leads to the last.
        for path in (f"evaluations/{name}.html", PAGE):
            tracked.log_artifact(page, path)
        if not tracked.flush():
            say("MLflow does not answer; the next night logs this one's score")
    except TrackingError as error:
        say(f"{error}; the next night logs this one's score")


def _message(
    name: str, finding: str, result: EvaluationResult, judgement: Judgement, same_noise: SameNoise | None, links: Mapping[str, str]
) -> dict[str, Any]:
    improves = judgement.direction < 0 and judgement.began
    event = "regression" if judgement.direction > 0 else "improvement" if improves else "finished"
    message = message_of(event, _run_id(name), f"nightly: {finding} ({result.checkpoint_uri}, {result.weights})")
    return {
        **message,
        "links": {**message["links"], **links},
        "model": result.checkpoint_uri,
        "weights": result.weights,
        "numbers": {
            "distance_name": result.distance_name,
            "distance": _number(result.distance),
            "standard_error": result.distance_standard_error,
            "reason": judgement.text,
            "since": judgement.since and judgement.since.isoformat(),
            "baseline": _number(judgement.trace.centre[-1]),
            "change": _number(judgement.change),
            "change_error": _number(judgement.change_error),
            "same_noise": same_noise and same_noise.difference.to_dict(),
            "changed_versions": list(judgement.changed_versions),
        },
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

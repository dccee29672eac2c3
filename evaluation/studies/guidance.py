"""Guidance sweep: one model guided more and more, on common noise: what it gains in precision, and what it loses in recall.

The guide is the model without its label (Ho and Salimans 2022, "Classifier-free diffusion guidance") or an earlier checkpoint
(Karras et al. 2024, "Guiding a diffusion model with a bad version of itself"); see `SamplingConfig.guidance_scale`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.distances.paired import distance_difference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import preflight
from evaluation.evaluate.run import evaluate_once
from evaluation.records.numbers import plain_estimate
from evaluation.records.protocol_card import card_rows, same_protocol
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import result_uri, run_uri_of
from evaluation.records.score_card import ScoreCardRow, in_words, interval_in_words
from evaluation.reports import figures
from evaluation.reports.html import table_page, text_table
from evaluation.reports.study import Study, as_json
from evaluation.sampling.generate import require_guide
from evaluation.sampling.trained_model import ModelSpec
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import SamplingConfig
from training.config.plain import PlainRecord

METRIC = "precision_recall"
"""The metric beside the distance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedPoint:
    """One guidance scale.

    Attributes:
        distance, standard_error: The Frechet distance of the guided samples.
        behind: Its distance minus the smallest distance of the sweep.
        behind_standard_error: Of `behind`, on common noise; None for the best scale itself.
        precision, recall: Rows of the score card, with their intervals.
    """

    scale: float
    distance: float
    standard_error: float | None
    behind: float
    behind_standard_error: float | None
    precision: ScoreCardRow
    recall: ScoreCardRow


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceSweep(PlainRecord):
    """The scales in increasing order; `protocol` is the protocol card of the first of them."""

    model: str
    checkpoint_uri: str
    guide: str
    distance_name: str
    points: tuple[GuidedPoint, ...]
    protocol: dict[str, Any]


def guided_samplers(
    spec: ModelSpec, scales: Sequence[float], *, guidance_step: int = 0, sampling: SamplingConfig | None = None
) -> list[SamplingConfig]:
    """Return the samplers of a sweep, by increasing scale.

    Args:
        scales: Guidance scales, 0 or more; 1 is the model without guidance.
        guidance_step: Training step of the earlier checkpoint that guides; 0 takes the model without its label.
        sampling: The sampler that is guided; None takes the experiment's.

    Raises:
        UserError: No scale is given, one is negative, two are equal in hundredths, or the model has no such guide.
    """
    if not scales or min(scales) < 0:
        raise UserError(f"guidance scales are numbers of 0 or more, such as 1,1.5,2,3; got {list(scales)}")
    members = {uri: checkpoint.load_experiment(uri) for uri in spec.checkpoint_uris}
    base = sampling or members[spec.checkpoint_uri].evaluation.sampling
    samplers = [
        dataclasses.replace(base, guidance_scale=scale, guidance_step=guidance_step if scale != 1 else 0)
        for scale in sorted({float(scale) for scale in scales})
    ]
    for one, other in itertools.pairwise(each.guidance_scale for each in samplers):
        if _hundredths(one) == _hundredths(other):
            raise UserError(f"guidance scales are told apart by their hundredths, and {one} and {other} are equal there; leave one out")
    for each in samplers:
        require_guide(each, members)
    return samplers


def sweep(
    spec: ModelSpec, samplers: Sequence[SamplingConfig], data_uri: str, reference_uri: str, options: EvaluationOptions
) -> GuidanceSweep:
    """Evaluate a model with each of the samplers that `guided_samplers` returns.

    Args:
        options: Resources, and deviations from the experiment's protocol.
    """
    shared = dataclasses.replace(options, likelihood=False, held_out=False, metrics=(METRIC,), purpose="guidance")
    results = [_evaluate(spec, data_uri, reference_uri, dataclasses.replace(shared, sampling=each), each) for each in samplers]
    best = min(results, key=lambda result: result.rank)
    guidance_step = max(each.guidance_step for each in samplers)
    return GuidanceSweep(
        model=run_uri_of(spec.checkpoint_uri).rstrip("/").rpartition("/")[2],
        checkpoint_uri=spec.checkpoint_uri,
        guide=f"the checkpoint of step {guidance_step:,}" if guidance_step else "the model without its label",
        distance_name=best.distance_name,
        points=tuple(_point(each.guidance_scale, result, best) for each, result in zip(samplers, results, strict=True)),
        protocol=results[0].protocol,
    )


def _evaluate(spec: ModelSpec, data_uri: str, reference_uri: str, options: EvaluationOptions, sampling: SamplingConfig) -> EvaluationResult:
    """Evaluate a model with one of the samplers, or return the stored result, also that of an earlier version."""
    # Earlier versions named a result by its scale alone, so it may be another checkpoint's.
    earlier = dataclasses.replace(options, result_name=f"guidance-{sampling.guidance_scale:g}-{sampling.guidance_step}")
    uri = result_uri(run_uri_of(spec.checkpoint_uri), earlier.result_name)
    if storage.exists(uri) and same_protocol(EvaluationResult.read(uri).protocol, preflight(spec, data_uri, reference_uri, earlier).card):
        return evaluate_once(spec, data_uri, reference_uri, earlier)
    return evaluate_once(spec, data_uri, reference_uri, dataclasses.replace(options, result_name=_result_name(spec, sampling)))


def _result_name(spec: ModelSpec, sampling: SamplingConfig) -> str:
    """Return the name of a result, which differs for each checkpoint, weights, scale and guide."""
    members = [(spec.checkpoint_uri, spec.weights)]
    if spec.ends_checkpoint_uri:
        members.append((spec.ends_checkpoint_uri, spec.ends_weights))
    model = "-".join(f"{checkpoint.step_of(uri):08d}-{checkpoint.choose_weights(uri, weights)}" for uri, weights in members)
    scale = str(sampling.guidance_scale).replace("+", "")  # 1e+16: a name has no plus
    return f"guidance-{model}-{scale}-{sampling.guidance_step}"


def _hundredths(scale: float) -> int:
    """Return a scale as MLflow's step."""
    return round(100 * scale)


def _point(scale: float, result: EvaluationResult, best: EvaluationResult) -> GuidedPoint:
    card = {score.name: score for score in result.score_card()}
    difference = distance_difference(result, best)
    return GuidedPoint(
        scale=scale,
        distance=result.distance,
        standard_error=result.distance_standard_error,
        behind=difference.value,
        behind_standard_error=difference.standard_error if result is not best else None,
        precision=card["precision"],
        recall=card["recall"],
    )


def as_study(found: GuidanceSweep) -> Study:
    """Return the table, its figures and the metrics for MLflow, whose steps are the scale in hundredths."""
    points: dict[tuple[str, int], float | None] = {}
    for point in found.points:
        at = _hundredths(point.scale)
        points |= {
            ("distance_by_hundredths_of_scale", at): point.distance,
            ("precision_by_hundredths_of_scale", at): point.precision.value,
            ("recall_by_hundredths_of_scale", at): point.recall.value,
        }
    headers = ["scale", found.distance_name, "behind the best", "precision (95%)", "recall (95%)"]
    rows = [_row(point) for point in found.points]
    curve = figures.precision_and_recall({point.scale: (point.recall, point.precision) for point in found.points}).encode()
    distances = {point.scale: (point.distance, point.standard_error or 0.0) for point in found.points}
    figure = figures.distance_by_guidance(distances, distance_name=found.distance_name).encode()
    distance = found.protocol["distance"]
    page = table_page(
        f"Guidance of {found.model}",
        headers,
        rows,
        card=card_rows(found.protocol, model=False),
        lead=[f"{found.checkpoint_uri}, guided by {found.guide}."],
        notes=[f"{distance['num_samples']:,} samples a scale, the same noise for all. A scale of 1 is the model without guidance."],
        pictures={
            "Each point is a guidance scale, with 95% intervals. Higher: more samples look real; further right: more variety.": curve,
            "The band is one standard error; the errors of differences on common noise are smaller.": figure,
        },
    )
    return Study(
        kind="guidance-sweep",
        title=f"Guidance sweep: {found.model}",
        text="\n".join(text_table(headers, rows)),
        models={found.model: found.checkpoint_uri},
        protocol=found.protocol,
        points=points,
        files={
            "guidance.html": page.encode(),
            "guidance.json": as_json(found.to_dict()),
            "precision-recall.svg": curve,
            "distance.svg": figure,
        },
    )


def _row(point: GuidedPoint) -> list[str]:
    behind = "best" if point.behind == 0 else plain_estimate(point.behind, point.behind_standard_error, digits=3)
    shares = [_with_interval(score) for score in (point.precision, point.recall)]
    return [f"{point.scale:g}", plain_estimate(point.distance, point.standard_error), behind, *shares]


def _with_interval(score: ScoreCardRow) -> str:
    return in_words(score.value, score) + (f" ({interval_in_words(score)})" if score.interval else "")

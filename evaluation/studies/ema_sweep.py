"""EMA sweep: averages of many decays from one run, scored on common noise (supplement figure 7 without more training).

A decay that training stored is read from its checkpoint. Any other decay is rebuilt from the run's snapshots of
power-function averages (`training.checkpoints.averages`), if they determine it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.distances.paired import distance_difference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate_once
from evaluation.records.numbers import plain_estimate
from evaluation.records.protocol_card import card_rows
from evaluation.records.result import EvaluationResult
from evaluation.reports import figures
from evaluation.reports.html import table_page, text_table
from evaluation.reports.study import Study, as_csv, as_json
from evaluation.sampling.trained_model import ModelSpec
from training.checkpoints import averages, checkpoint
from training.config.errors import UserError
from training.config.experiment import EvaluationConfig
from training.config.plain import PlainRecord
from training.models.ema import average_name
from training.models.posthoc_ema import ReconstructionError


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """One average.

    Attributes:
        source: "stored", "rebuilt", or why the average is not available.
        rebuild_error: Expected error of a rebuilt average, in units of the distance from the weights to the average; else None.
        distance: On the sweep's noise; None where the average is not available.
        behind: Its distance minus the distance of the best average of the same step.
        behind_standard_error: Of `behind`, on common noise; None for the best average itself.
    """

    step: int
    decay: float
    source: str
    rebuild_error: float | None = None
    distance: float | None = None
    standard_error: float | None = None
    behind: float | None = None
    behind_standard_error: float | None = None
    checkpoint_uri: str = ""
    weights: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep(PlainRecord):
    """The averages of a run, by step, then decay; `protocol` is the protocol card of one of them."""

    run_uri: str
    distance_name: str
    points: tuple[SweepPoint, ...]
    protocol: dict[str, Any]


def sweep(
    run_uri: str,
    decays: Sequence[float],
    data_uri: str,
    reference_uri: str,
    *,
    steps: Sequence[int] = (),
    at_full_protocol: bool = False,
    max_error: float = 0.005,
    options: EvaluationOptions | None = None,
) -> Sweep:
    """Score averages of a run.

    Args:
        run_uri: The run's directory; other decays than those of its checkpoints need snapshots (`optim.ema_snapshot_stds`).
        decays: Decays of the averages, between 0 and 1.
        steps: Training steps; empty takes the latest.
        at_full_protocol: Use the protocol of reported numbers; otherwise that of the scores beside training.
        max_error: Largest expected error of a rebuilt average, in units of the distance from the weights to the average.
        options: Resources, and deviations from the protocol.

    Raises:
        UserError: No decay is given, one is not in (0, 1), or no average is available.
    """
    swept = _steps(run_uri, decays, steps)
    present, snapshots = checkpoint.steps(run_uri), averages.snapshots(run_uri)
    # One protocol for all: a rebuilt average has that of the time when its snapshots were stored, and the run's may have changed.
    stored_in = run_uri if present else averages.snapshots_uri(run_uri)
    last = checkpoint.checkpoint_uri(stored_in, present[-1] if present else snapshots[-1].step)
    evaluation = checkpoint.load_experiment(last).evaluation
    shared = _shared_options(evaluation, options or EvaluationOptions(), at_full_protocol)
    points: list[SweepPoint] = []
    results: list[EvaluationResult] = []
    for step in swept:
        found = [_find(run_uri, step, decay, max_error=max_error) for decay in sorted(set(decays))]
        scored = {point: _score(point, data_uri, reference_uri, shared) for point in found if point.weights}
        best = min(scored.values(), key=lambda result: result.rank, default=None)
        points += [_measured(point, scored[point], best) if best and point in scored else point for point in found]
        results += scored.values()
    if not results:
        raise UserError(f"{run_uri}: none of these averages is available: {'; '.join(sorted({point.source for point in points}))}")
    return Sweep(run_uri=run_uri, distance_name=results[0].distance_name, points=tuple(points), protocol=results[0].protocol)


def stored_averages(run_uri: str, decays: Sequence[float], steps: Sequence[int] = ()) -> Iterator[ModelSpec]:
    """Yield the averages of a sweep that training stored; a sweep rebuilds the others. Arguments and errors are those of `sweep`."""
    found = (_stored(run_uri, step, decay) for step in _steps(run_uri, decays, steps) for decay in decays)
    yield from (spec for spec in found if spec is not None)


def _steps(run_uri: str, decays: Sequence[float], steps: Sequence[int]) -> list[int]:
    """Return the steps of a sweep: the given ones, or the latest. Refuse decays outside (0, 1), and a run without averages."""
    if not decays or not all(0 < decay < 1 for decay in decays):
        raise UserError(f"decays are numbers between 0 and 1, such as 0.99,0.999; got {list(decays)}")
    stored, snapshots = checkpoint.steps(run_uri), [snapshot.step for snapshot in averages.snapshots(run_uri)]
    present = [*stored, *snapshots]
    if not present:
        raise UserError(f"{run_uri}: the run has neither checkpoints nor snapshots")
    for step in set(steps) - set(stored):
        if not 0 < step <= max(snapshots, default=0):  # an average can be rebuilt at any other
            steps_there = ", ".join(map(str, sorted(set(present))))
            raise UserError(f"{run_uri}: has no checkpoint of step {step}; its checkpoints and snapshots are of the steps {steps_there}")
    return sorted(set(steps) or {max(present)})


def _stored(run_uri: str, step: int, decay: float) -> ModelSpec | None:
    """Return the average if training stored it."""
    uri, weights = checkpoint.checkpoint_uri(run_uri, step), average_name(decay)
    is_there = step in checkpoint.steps(run_uri) and weights in checkpoint.weights_names(uri)
    return ModelSpec(checkpoint_uri=uri, weights=weights) if is_there else None


def _find(run_uri: str, step: int, decay: float, *, max_error: float) -> SweepPoint:
    """Find the average, or rebuild it."""
    point = SweepPoint(step=step, decay=decay, source="stored")
    if stored := _stored(run_uri, step, decay):
        return dataclasses.replace(point, checkpoint_uri=stored.checkpoint_uri, weights=stored.weights or "")
    try:
        rebuilt = averages.find_or_rebuild(run_uri, decay=decay, step=step, max_error=max_error)
    except ReconstructionError as error:
        return dataclasses.replace(point, source=str(error))
    return dataclasses.replace(
        point, source="rebuilt", rebuild_error=rebuilt.error, checkpoint_uri=rebuilt.checkpoint_uri, weights=rebuilt.weights
    )


def _shared_options(evaluation: EvaluationConfig, options: EvaluationOptions, full: bool) -> EvaluationOptions:
    return dataclasses.replace(
        options,
        likelihood=False,
        held_out=False,
        metrics=(),
        purpose="ema-sweep",
        num_samples=options.num_samples or (evaluation.num_samples if full else evaluation.scoring_num_samples),
        sampling=options.sampling or (evaluation.sampling if full else evaluation.scoring_sampling),
        extractor=options.extractor or evaluation.extractor,
    )


def _score(point: SweepPoint, data_uri: str, reference_uri: str, options: EvaluationOptions) -> EvaluationResult:
    named = dataclasses.replace(options, result_name=f"ema-sweep-{point.step:08d}-{point.weights}")
    return evaluate_once(ModelSpec(checkpoint_uri=point.checkpoint_uri, weights=point.weights), data_uri, reference_uri, named)


def _measured(point: SweepPoint, result: EvaluationResult, best: EvaluationResult) -> SweepPoint:
    difference = distance_difference(result, best)
    return dataclasses.replace(
        point,
        distance=result.distance,
        standard_error=result.distance_standard_error,
        behind=difference.value,
        behind_standard_error=difference.standard_error if result is not best else None,
    )


def as_study(found: Sweep) -> Study:
    """Return the table, its figure and the metrics for MLflow.

    Each decay has a metric of its own, `distance/0.9999`, at the checkpoint's step. The figure's line is
    `distance_by_updates_averaged/step_200000`, whose steps are 1 / (1 - decay), the figure's axis.
    """
    available = [point for point in found.points if point.distance is not None]
    points: dict[tuple[str, int], float | None] = {}
    lines: dict[str, list[tuple[float, float, float | None]]] = {}
    for point in available:
        lines.setdefault(f"step {point.step:,}", []).append((point.decay, point.distance or 0.0, point.standard_error))
        points |= {
            (f"distance/{point.decay}", point.step): point.distance,
            (f"distance_standard_error/{point.decay}", point.step): point.standard_error,
            (f"behind_best/{point.decay}", point.step): point.behind,
            (f"distance_by_updates_averaged/step_{point.step}", round(1 / (1 - point.decay))): point.distance,
        }
    for step, point in {point.step: point for point in available if point.behind == 0}.items():
        points |= {("best_decay", step): point.decay, ("best_distance", step): point.distance}
    headers = ["step", "decay", found.distance_name, "behind the best of its step", "weights"]
    rows = [_row(point) for point in found.points]
    unavailable = list(dict.fromkeys(point.source for point in found.points if point.distance is None))
    figure = figures.distance_by_decay(lines, distance_name=found.distance_name).encode()
    distance = found.protocol["distance"]
    page = table_page(
        f"Averages of one run: {found.distance_name} by decay",
        headers,
        rows,
        card=card_rows(found.protocol, model=False),
        lead=[f"{found.run_uri}: supplement figure 7, computed after training."],
        notes=[f"{distance['num_samples']:,} samples, {distance['sampler']}, the same noise for every average.", *unavailable],
        pictures={"Bands are one standard error; the errors of differences on common noise are smaller.": figure},
    )
    name = found.run_uri.rstrip("/").rpartition("/")[2]
    return Study(
        kind="ema-sweep",
        title=f"EMA sweep: {name}",
        text="\n".join([*text_table(headers, rows), *unavailable]),
        models={name: found.run_uri},
        protocol=found.protocol,
        points=points,
        files={
            "sweep.html": page.encode(),
            "sweep.csv": as_csv([dataclasses.asdict(point) for point in found.points]).encode(),
            "sweep.json": as_json(found.to_dict()),
            "sweep.svg": figure,
        },
    )


def _row(point: SweepPoint) -> list[str]:
    if point.distance is None or point.behind is None:
        return [f"{point.step:,}", f"{point.decay:g}", "-", "-", "not available"]
    behind = "best" if point.behind == 0 else plain_estimate(point.behind, point.behind_standard_error, digits=3)
    source = f"rebuilt, {point.rebuild_error:.2%} off" if point.rebuild_error is not None else point.source
    return [f"{point.step:,}", f"{point.decay:g}", plain_estimate(point.distance, point.standard_error), behind, source]

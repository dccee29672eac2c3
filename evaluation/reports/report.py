"""One self-contained page for one evaluation: numbers with their errors, samples, curves, protocol, and what they mean.

Nothing is loaded from elsewhere, so that the page is the same in the KFP UI, in MLflow and on disk.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.monitoring.checkpoint_scorer import read_history
from evaluation.monitoring.regression import RegressionCheck
from evaluation.records import grids
from evaluation.records.protocol_card import card_rows
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import CHOICE, EVALUATIONS, run_uri_of
from evaluation.reports import figures
from evaluation.reports import paper_numbers as paper
from training import storage
from training.config.experiment import Experiment
from training.console import format_duration

TEMPLATE_PATH = Path(__file__).parent / "report.html.jinja"
REPORT = "report.html"

_METRIC_WORDS = {
    "kid": "KID",
    "kernel_distance": "Kernel distance",
    "inception_score": "Inception score",
    "precision": "Precision",
    "recall": "Recall",
    "sfid": "sFID",
    "label_agreement": "Label agreement",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tile:
    name: str
    value: str
    error: str
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Nightly:
    """The comparison of an evaluation with the model's history.

    Attributes:
        verdict: The judgement.
        earlier: When, and which distance; oldest first.
    """

    verdict: RegressionCheck
    earlier: tuple[tuple[datetime, float], ...]


def write_report(
    run_uri: str,
    *,
    losses: Sequence[tuple[int, float]] = (),
    links: Mapping[str, str] | None = None,
    result_name: str = "final",
) -> str:
    """Makes the report of a run's evaluation from what is in its directory, and keeps it there.

    Args:
        run_uri: The run's directory.
        losses: (step, training loss), by step, where they are at hand.
        links: Words and addresses: the MLflow run, the pipeline's page.
        result_name: Which evaluation.

    Returns:
        The page's address: `<run>/evaluations/report.html`, or named as the evaluation if that is not the final one.

    Raises:
        ObjectNotFoundError: The run has no such evaluation.
    """
    directory = storage.join(run_uri, EVALUATIONS)
    result = EvaluationResult.from_dict(storage.read_json(storage.join(directory, f"{result_name}.json")))
    choice_uri = storage.join(directory, CHOICE)
    html = render_report(
        result,
        history=read_history(run_uri),
        losses=losses,
        choice=storage.read_json(choice_uri) if storage.exists(choice_uri) else None,
        grid_png=storage.read_bytes(result.grid_uri) if result.grid_uri else None,
        links=links,
    )
    uri = report_uri(run_uri, result_name)
    storage.write_bytes(uri, html.encode())
    return uri


def report_uri(run_uri: str, result_name: str = "final") -> str:
    """Where the page about an evaluation is kept."""
    return storage.join(run_uri, EVALUATIONS, REPORT if result_name == "final" else f"{result_name}.html")


def render_report(
    result: EvaluationResult,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    losses: Sequence[tuple[int, float]] = (),
    choice: Mapping[str, Any] | None = None,
    grid_png: bytes | None = None,
    links: Mapping[str, str] | None = None,
    nightly: Nightly | None = None,
) -> str:
    """The page as HTML.

    Args:
        result: The evaluation.
        history: Scores beside training.
        losses: (step, training loss), by step.
        choice: The choice among the best few checkpoints, as `evaluation.selection.final_choice` keeps it.
        grid_png: Sample grid.
        links: Words and addresses.
        nightly: The comparison with the model's history, where that is what the page is about.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE_PATH.read_text()
    )
    likelihood = result.likelihood or {}
    experiment = result.experiment
    return template.render(
        result=result,
        experiment=experiment,
        tiles=_tiles(result),
        is_fid=result.distance_name == "FID",
        grid=base64.b64encode(grid_png).decode() if grid_png else "",
        conditional=experiment["model"]["class_conditional"],
        class_columns=experiment["model"]["class_conditional"] and experiment["data"]["num_classes"] <= grids.MAX_COLUMNS,
        distance_figure=figures.distance_by_step(
            history, distance_name=history[-1]["distance_name"], chosen_step=result.step, chosen_weights=result.weights
        )
        if history
        else "",
        score_protocol=history[-1]["protocol"] if history else None,
        loss_figure=figures.loss_by_step(losses, objective=experiment["diffusion"]["objective"]) if losses else "",
        bound_figure=figures.bound_by_timestep(likelihood["timesteps"], likelihood["per_t"]) if likelihood.get("timesteps") else "",
        candidates=_candidates(choice),
        paper_rows=paper.rows_beside(Experiment.from_dict(experiment)),
        card=card_rows(result.protocol, result.likelihood),
        experiment_json=json.dumps(experiment, indent=2),
        links={"Checkpoint": result.checkpoint_uri, "Run directory": run_uri_of(result.checkpoint_uri), **(links or {})},
        duration=format_duration(result.seconds),
        verdict=nightly.verdict if nightly else None,
        nights=_nights(result, nightly) if nightly else [],
    )


def _nights(result: EvaluationResult, nightly: Nightly) -> list[tuple[str, str]]:
    """When and how much, newest first."""
    now = datetime.fromisoformat(result.created_at).astimezone(UTC)
    told = [*nightly.earlier, (now, result.distance)]
    return [(when.strftime("%Y-%m-%d %H:%M UTC"), f"{value:.4g}") for when, value in reversed(told)]


def _tiles(result: EvaluationResult) -> list[_Tile]:
    """The numbers that are read first."""
    distance = result.protocol["distance"]
    tiles = [
        _Tile(
            name=result.distance_name,
            value=_digits(result.distance, result.distance_standard_error),
            error=_error(result.distance_standard_error),
            note=f"Frechet distance of {distance['num_samples']:,} samples, lower is better",
        )
    ]
    if result.likelihood is not None:
        likelihood = result.likelihood
        tiles.append(
            _Tile(
                name="Bits/dim",
                value=_digits(likelihood["bits_per_dim"], likelihood["standard_error"]),
                error=_error(likelihood["standard_error"]),
                note=f"upper bound on {likelihood['num_images']:,} {result.protocol['likelihood']['split']} images, lower is better",
            )
        )
    for name, item in result.metrics.items():
        percent = name in ("label_agreement", "precision", "recall")
        scale, unit = (100.0, " %") if percent else (1.0, "")
        error = item["standard_error"] * scale if item["standard_error"] is not None else None
        tiles.append(
            _Tile(
                name=_METRIC_WORDS.get(name, name),
                value=_digits(item["value"] * scale, error) + unit,
                error=_error(error, unit),
                note=item["note"],
            )
        )
    return tiles


def _digits(value: float, error: float | None) -> str:
    """A value to the first two digits of its error, or to four digits where that is unknown."""
    if error is None or not error > 0:
        return f"{value:.4g}"
    return f"{value:,.{max(0, 1 - math.floor(math.log10(error)))}f}"


def _error(error: float | None, unit: str = "") -> str:
    return f"± {_digits(error, error)}{unit}" if error else ""


def _candidates(choice: Mapping[str, Any] | None) -> list[dict[str, str]]:
    if choice is None or len(choice["candidates"]) < 2:
        return []
    return [
        {
            "step": f"{item['candidate']['step']:,}",
            "weights": item["candidate"]["weights"],
            "score": f"{item['candidate']['score']:.4g}",
            "distance": f"{_digits(item['distance'], item['standard_error'])} {_error(item['standard_error'])}",
        }
        for item in choice["candidates"]
    ]

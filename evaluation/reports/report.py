"""The page of one evaluation: numbers with their errors and their meaning, samples, curves and protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.monitoring.checkpoint_scorer import read_comparable
from evaluation.monitoring.detector import FALSE_ALARMS_IN_A_YEAR
from evaluation.monitoring.nightly import Judgement, SameNoise
from evaluation.records import grids
from evaluation.records.numbers import NONE, format_estimate
from evaluation.records.paired import Difference
from evaluation.records.protocol_card import card_rows
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import CHOICE, EVALUATIONS, run_uri_of
from evaluation.records.score_card import ScoreCardRow, error_in_words, in_words, interval_in_words
from evaluation.reports import figures
from evaluation.reports import paper_numbers as paper
from evaluation.reports.html import data_uri, render
from evaluation.selection.final_choice import Choice
from training import storage
from training.config.addresses import public_links
from training.config.experiment import Experiment
from training.console import format_duration

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
REPORT = "report.html"


def write_report(
    run_uri: str,
    *,
    losses: Sequence[tuple[int, float]] = (),
    links: Mapping[str, str] | None = None,
    result_name: str = "final",
) -> str:
    """Make the report of an evaluation from the run's directory, and write it there.

    `losses` are (step, training loss) by step; `links` are name -> address, such as that of the MLflow run.

    Returns:
        URI of the page: `<run>/evaluations/report.html`, or `<result_name>.html` for another evaluation than the final one.

    Raises:
        ObjectNotFoundError: The run has no such evaluation.
    """
    directory = storage.join(run_uri, EVALUATIONS)
    result = EvaluationResult.read(storage.join(directory, f"{result_name}.json"))
    choice_uri = storage.join(directory, CHOICE)
    html = render_report(
        result,
        history=read_comparable(run_uri, Experiment.from_dict(result.experiment).evaluation),
        losses=losses,
        choice=storage.read_record(choice_uri, Choice) if storage.exists(choice_uri) else None,
        grid_png=storage.read_bytes(result.grid_uri) if result.grid_uri and storage.exists(result.grid_uri) else None,
        links=links,
    )
    uri = report_uri(run_uri, result_name)
    storage.write_bytes(uri, html.encode())
    return uri


def report_uri(run_uri: str, result_name: str = "final") -> str:
    """Return the URI of the page of an evaluation."""
    return storage.join(run_uri, EVALUATIONS, REPORT if result_name == "final" else f"{result_name}.html")


def render_report(
    result: EvaluationResult,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    losses: Sequence[tuple[int, float]] = (),
    choice: Choice | None = None,
    grid_png: bytes | None = None,
    links: Mapping[str, str] | None = None,
    nightly: Judgement | None = None,
    same_noise: SameNoise | None = None,
) -> str:
    """Return the page as HTML; `losses` and `links` as in `write_report`.

    `history` has the scores beside training, and `nightly` makes it a page about a nightly evaluation; `same_noise` compares that
    night with the first one.
    """
    likelihood = result.likelihood or {}
    experiment = result.experiment
    scores = result.score_card()
    return render(
        _TEMPLATE,
        result=result,
        experiment=experiment,
        tiles=_tiles(scores),
        scores=_card_rows(scores),
        distance=format_estimate(result.distance),
        is_fid=result.distance_name == "FID",
        grid=data_uri(grid_png) if grid_png else "",
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
        paper_rows=paper.rows_for(Experiment.from_dict(experiment)),
        card=card_rows(result.protocol, result.likelihood),
        experiment_json=json.dumps(experiment, indent=2),
        links={
            "Checkpoint": result.checkpoint_uri,
            "Run directory": run_uri_of(result.checkpoint_uri),
            **public_links(links or {}),
        },
        duration=format_duration(result.seconds),
        nightly=nightly,
        same_noise=same_noise,
        pair=_pair(same_noise),
        false_alarms=FALSE_ALARMS_IN_A_YEAR,
        nightly_figures=figures.nights(nightly, distance_name=result.distance_name) if nightly else (),
    )


def _pair(same_noise: SameNoise | None) -> list[tuple[str, str]]:
    """Return the sample grids of a baseline's first night and of tonight, by name."""
    if same_noise is None:
        return []
    return [(f"{same_noise.first:%Y-%m-%d}", data_uri(same_noise.first_png)), ("Tonight", data_uri(same_noise.png))]


def _tiles(card: Sequence[ScoreCardRow]) -> list[dict[str, str]]:
    """Return the numbers at the top of the page."""
    return [
        {
            "name": score.title,
            "value": in_words(score.value, score),
            "error": error_in_words(score),
            "note": score.note,
        }
        for score in card
    ]


def _card_rows(card: Sequence[ScoreCardRow]) -> list[dict[str, str]]:
    """Return the rows of the score card's table."""
    return [
        {
            "title": score.title,
            "value": in_words(score.value, score),
            "interval": interval_in_words(score) or NONE,
            "method": score.method or NONE,
            "bias": NONE if score.bias is None else "none" if score.is_unbiased else f"{score.bias:+.2g}",
        }
        for score in card
    ]


def _candidates(choice: Choice | None) -> list[dict[str, str]]:
    if choice is None or len(choice.candidates) < 2:
        return []
    return [
        {
            "step": f"{item.candidate.step:,}",
            "weights": item.candidate.weights,
            "score": f"{item.candidate.score:.4g}",
            "distance": format_estimate(item.distance, item.standard_error),
            "difference": _against_chosen(item.difference),
        }
        for item in choice.candidates
    ]


def _against_chosen(difference: Difference | None) -> str:
    """Describe a candidate's difference to the chosen one on common noise."""
    if difference is None or difference.interval is None or math.isnan(difference.value):
        return NONE
    return f"{difference.value_and_interval}: {difference.verdict}"

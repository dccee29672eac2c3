"""A comparison for people: a table for the terminal, a page with the paired samples inside, and what MLflow keeps of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from evaluation.records.protocol_card import card_rows
from evaluation.reports.study import Study, as_json
from evaluation.reports.table_page import table_page
from evaluation.studies.compare import Compared, Comparison, Difference

_NOISE = 2.0
"""Standard errors below which a difference is called noise."""


def headers(comparison: Comparison) -> list[str]:
    """Of the table's columns."""
    first = comparison.models[0].result
    names = ["Model", first.distance_name, "against the first"]
    if first.likelihood is not None:
        names += ["bits/dim", "against the first"]
    return names + [name.replace("_", " ") for name in first.metrics]


def rows(comparison: Comparison) -> list[list[str]]:
    """The table, a row a model."""
    return [_row(model) for model in comparison.models]


def as_text(comparison: Comparison) -> str:
    """The table as a terminal shows it, with what there is to know below it."""
    cells = [headers(comparison), *rows(comparison)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*lines, "", *_notes(comparison)])


def as_page(comparison: Comparison) -> str:
    """The table and the paired samples as one page."""
    first = comparison.models[0].result
    card = [(name, said) for name, said in card_rows(first.protocol, first.likelihood) if name != "Model"]
    return table_page(
        f"Comparison: {', '.join(model.name for model in comparison.models)}",
        headers(comparison),
        rows(comparison),
        card=card,
        notes=[*_notes(comparison), *(f"{model.name}: {model.result.protocol['model']}" for model in comparison.models)],
        pictures={"A row for each model; in a column all start from the same noise, and are asked for the same class.": comparison.grid},
    )


def as_study(comparison: Comparison) -> Study:
    """The files, and the numbers by model: `distance/1_step_200`, and against the first `distance_difference/2_step_400`."""
    return Study(
        kind="comparison",
        title=" vs ".join(model.name for model in comparison.models),
        text=as_text(comparison),
        models={model.name: model.result.protocol["model"] for model in comparison.models},
        protocol=comparison.models[0].result.protocol,
        points={(name, 0): value for name, value in _numbers(comparison)},
        files={
            "comparison.html": as_page(comparison).encode(),
            "samples.png": comparison.grid,
            "comparison.json": as_json(comparison.to_dict()),
        },
    )


def _numbers(comparison: Comparison) -> Iterator[tuple[str, float | None]]:
    """Metrics as MLflow names them, the models' numbers in one group a measure."""
    for number, model in enumerate(comparison.models, start=1):
        name = re.sub(r"[^A-Za-z0-9_.\-]+", "_", f"{number} {model.name.replace(',', '')}").strip("_")[:100]
        for measure, value in model.result.flat_metrics("").items():
            yield f"{measure.lstrip('/')}/{name}", value
        for measure, difference in (("distance", model.distance_difference), ("bits_per_dim", model.likelihood_difference)):
            if difference is not None:
                yield f"{measure}_difference/{name}", difference.value
                yield f"{measure}_difference_standard_error/{name}", difference.standard_error


def words(difference: Difference | None) -> str:
    """A difference with its error, and whether it is more than noise."""
    if difference is None:
        return ""
    sure = difference.num_standard_errors
    if sure is None or difference.standard_error is None:
        return f"{difference.value:+.3g}"
    judgement = "within noise" if abs(sure) < _NOISE else "better" if difference.value < 0 else "worse"
    return f"{difference.value:+.3g} +- {difference.standard_error:.2g} ({abs(sure):.1f} SE, {judgement})"


def _row(model: Compared) -> list[str]:
    result = model.result
    cells = [model.name, _number(result.distance, result.distance_standard_error), words(model.distance_difference) or "-"]
    if result.likelihood is not None:
        bits = _number(result.likelihood["bits_per_dim"], result.likelihood["standard_error"])
        cells += [bits, words(model.likelihood_difference) or "-"]
    return cells + [_number(item["value"], item["standard_error"]) for item in result.metrics.values()]


def _number(value: float, error: float | None) -> str:
    return f"{value:.4g}" + (f" +- {error:.2g}" if error else "")


def _notes(comparison: Comparison) -> Sequence[str]:
    card: dict[str, Any] = comparison.models[0].result.protocol
    distance = card["distance"]
    said = f"Protocol of all: {distance['num_samples']:,} samples, {distance['sampler']}, seed {distance['seed']}"
    if card["likelihood"] is not None:
        likelihood = card["likelihood"]
        said += f"; bits/dim of {likelihood['num_images']:,} {likelihood['split']} images, {likelihood['form']}"
    return [
        f"{said}.",
        "Numbers after +- are one standard error; differences are on the same noise and images, so they are surer than either number.",
        *(f"{note}." for note in comparison.notes),
    ]

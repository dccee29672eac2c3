"""The page of a comparison: what differs in the experiments, the numbers with verdicts, samples, and scores over training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.distances.paired import difference_method, why_unpaired
from evaluation.records.intervals import JACKKNIFE
from evaluation.records.metric_numbers import SHARES
from evaluation.records.numbers import NONE, plain_estimate
from evaluation.records.paired import Difference, judge_together
from evaluation.records.protocol_card import card_rows
from evaluation.records.result import EvaluationResult
from evaluation.records.stored import finite_scores
from evaluation.reports.charts import COLOURS, Chart, Line, Picture, draw_lines
from evaluation.reports.html import data_uri, render, text_table
from evaluation.reports.study import Study, as_json
from evaluation.studies.compare import Compared, Comparison, format_field
from training.config.experiment import Experiment
from training.cost.estimate import TRAINING_PASSES, count_macs

_TEMPLATE = Path(__file__).with_name("comparison.html.jinja")
_VERDICT = "verdict"
_Estimate = tuple[float | None, float | None]
"""A number and its standard error; None where it is not finite, or unknown."""
_MOST_NAMED = 3
"""A title names so many models; of more it gives the number."""


def as_study(comparison: Comparison) -> Study:
    """Return page, table and paired samples, and the metrics by model: `distance/1_step_200`, `distance_difference/2_step_400`."""
    first = comparison.models[0].result
    fields, tables, notes = _field_table(comparison), _tables(comparison), _notes(comparison)
    names = [model.name for model in comparison.models]
    title = f"Comparison: {' vs '.join(names) if len(names) <= _MOST_NAMED else f'{len(names)} models, compared with {names[0]}'}"
    page = render(
        _TEMPLATE,
        title=title,
        fields=fields,
        tables=[[[cell.replace(" +- ", "\u00a0\u00b1\u00a0") for cell in row] for row in table] for table in tables],
        verdict=_VERDICT,
        notes=[line.replace(" +- ", " ± ") for line in notes],
        grid=data_uri(comparison.grid),
        curves=_curves(comparison),
        card=card_rows(first.protocol, first.likelihood, model=False),
        models=[(model.name, model.result.protocol["model"]) for model in comparison.models],
    )
    texts = [text_table(table[0], table[1:]) for table in (fields, *_for_terminal(tables, 1 if first.likelihood is None else 2)) if table]
    return Study(
        kind="comparison",
        title=title,
        text="\n\n".join("\n".join(lines) for lines in (*texts, notes)),
        models={model.name: model.result.protocol["model"] for model in comparison.models},
        protocol=first.protocol,
        points={(name, 0): value for name, value in _metrics(comparison)},
        files={"comparison.html": page.encode(), "samples.png": comparison.grid, "comparison.json": as_json(comparison.to_dict())},
    )


def _field_table(comparison: Comparison) -> list[list[str]]:
    """Return the fields that differ as a table with headers; empty if none differs. A row is a field or a model, whichever is narrower.

    The presets' names are left out: where they differ, they are part of the models' names.
    """
    differing = comparison.differing_fields()
    fields = {name: [format_field(value) for value in values] for name, values in differing.items() if name != "name"}
    if not fields:
        return []
    names = [model.name for model in comparison.models]
    by_field = [["Field", *names], *([field, *values] for field, values in fields.items())]
    by_model = [["Model", *fields], *([name, *values] for name, *values in zip(names, *fields.values(), strict=True))]
    return min(by_field, by_model, key=lambda table: sum(max(map(len, column)) for column in zip(*table, strict=True)))


def _differences(model: Compared) -> dict[str, Difference | None]:
    """Return the differences to the first model by measure."""
    return {"distance": model.distance_difference, "bits_per_dim": model.likelihood_difference, **model.metric_differences}


def _tables(comparison: Comparison) -> list[list[list[str]]]:
    """Return a table for each number whose difference is known, and one for the others; the first row has the headers."""
    results = [model.result for model in comparison.models]
    measures: list[tuple[str, str, list[_Estimate]]] = [
        (results[0].distance_name, "distance", [(each.distance, each.distance_standard_error) for each in results])
    ]
    bits: list[_Estimate] = [
        (each.likelihood["bits_per_dim"], each.likelihood["standard_error"]) for each in results if each.likelihood is not None
    ]
    measures += [("bits/dim", "bits_per_dim", bits)] if bits else []
    unpaired = _unpaired(comparison)
    for name in (each for each in results[0].metrics if each not in unpaired):
        measures.append((_title(name), name, [_metric_value(each, name) for each in results]))
    tables = []
    for name, measure, values in measures:
        differences = [_differences(model).get(measure) for model in comparison.models]
        judged = _judged([_in_percent(each) for each in differences] if measure in SHARES else differences)
        rows = [[model.name, plain_estimate(*value), *cells] for model, value, cells in zip(comparison.models, values, judged, strict=True)]
        tables.append([["Model", name, "difference to the first", "P(better)", _VERDICT], *rows])
    if unpaired:
        estimates = [[plain_estimate(*_metric_value(each, name)) for name in unpaired] for each in results]
        rows = [[model.name, *cells] for model, cells in zip(comparison.models, estimates, strict=True)]
        tables.append([["Model", *map(_title, unpaired)], *rows])
    return tables


def _title(metric: str) -> str:
    return metric.replace("_", " ") + (" in %" if metric in SHARES else "")


def _metric_value(result: EvaluationResult, name: str) -> _Estimate:
    """Return a metric and its standard error; a share in percent, as an evaluation shows it."""
    value, error = (result.metrics[name][key] for key in ("value", "standard_error"))
    scale = 100.0 if name in SHARES else 1.0
    return value and value * scale, error and error * scale


def _in_percent(difference: Difference | None) -> Difference | None:
    if difference is None:
        return None
    error = difference.standard_error
    return dataclasses.replace(difference, value=100 * difference.value, standard_error=None if error is None else 100 * error)


def _unpaired(comparison: Comparison) -> list[str]:
    """Return the further metrics whose difference is not judged."""
    return [
        name for name in comparison.models[0].result.metrics if any(name not in model.metric_differences for model in comparison.models[1:])
    ]


def _for_terminal(tables: Sequence[list[list[str]]], num_first: int) -> list[list[list[str]]]:
    """Join the first judged tables and the unjudged one into one table. Each further judged metric keeps its own: it is wide already."""
    judged = [table for table in tables if table[0][-1] == _VERDICT]
    unjudged = [table for table in tables if table not in judged]
    return [_in_one_table([*judged[:num_first], *unjudged]), *(_in_one_table([table]) for table in judged[num_first:])]


def _in_one_table(tables: Sequence[Sequence[list[str]]]) -> list[list[str]]:
    """Return the tables as one for a terminal, with each judged difference as a sentence."""
    merged = [[row[0]] for row in tables[0]]
    for headers, *rows in tables:
        judged = headers[-1] == _VERDICT
        merged[0] += [headers[1], "against the first"] if judged else headers[1:]
        for line, (_, value, *cells) in zip(merged[1:], rows, strict=True):
            line += [value, _sentence(*cells)] if judged else [value, *cells]
    return merged


def _sentence(difference: str, probability: str, verdict: str) -> str:
    return difference if probability == NONE else f"{difference}, better with probability {probability}: {verdict}"


def _judged(differences: Sequence[Difference | None]) -> list[list[str]]:
    """Return three cells for each model: the difference with its interval, the probability, and the verdict among all differences."""
    known = [each for each in differences if each is not None]
    together = iter(judge_together(known))
    cells = []
    for each in differences:
        if each is None:
            cells.append([NONE] * 3)
            continue
        verdict, probability = next(together), each.probability_better
        if probability is None:  # the error is unknown or 0; the coverage of a few samples may have an error of 0
            cells.append([each.value_and_interval, NONE, NONE])
            continue
        words = each.finding if verdict == each.verdict else f"{each.verdict} by itself, {verdict} among {len(known)}"
        cells.append([each.value_and_interval, f"{probability:.1%}", words])
    return cells


def _notes(comparison: Comparison) -> list[str]:
    card: dict[str, Any] = comparison.models[0].result.protocol
    distance, likelihood = card["distance"], card["likelihood"]
    protocol = f"Protocol of all: {distance['num_samples']:,} samples, {distance['sampler']}, seed {distance['seed']}"
    if likelihood is not None:
        protocol += f"; bits/dim of {likelihood['num_images']:,} {likelihood['split']} images, {likelihood['form']}"
    num_differences = len(comparison.models) - 1
    together = (
        f"Verdicts hold for all {num_differences} differences of a column at once "
        "(Holm's method: where no model differs, all of them are inconclusive with 95% probability)."
    )
    return [
        f"{protocol}.",
        "Numbers after +- are one standard error. Differences are on the same noise and images, so their errors are smaller; in brackets "
        "is their 95% interval (jackknife over blocks of samples, or over images, with Student's t).",
        *_other_methods(comparison),
        *(f"No difference is judged for {name.replace('_', ' ')}: {why_unpaired(name)}." for name in _unpaired(comparison)),
        *([together] if num_differences > 1 else []),
        *(
            ["Each model is one training run: the errors leave out how far runs of other seeds would be apart."]
            if comparison.differing_fields()
            else []
        ),
        *(f"{note[:1].upper()}{note[1:]}." for note in comparison.notes),
    ]


def _other_methods(comparison: Comparison) -> Iterator[str]:
    """Yield a note for each metric whose difference has another interval than the jackknife's with Student's t."""
    unpaired = _unpaired(comparison)
    for name, item in comparison.models[0].result.metrics.items():
        if name not in unpaired and (method := difference_method(item)) != JACKKNIFE:
            yield f"The interval of a difference of {name.replace('_', ' ')} is by another method: {method}."


def _metrics(comparison: Comparison) -> Iterator[tuple[str, float | None]]:
    """Yield the metrics under names that MLflow accepts; the numbers of all models for one measure form a group."""
    for number, model in enumerate(comparison.models, start=1):
        name = re.sub(r"[^A-Za-z0-9_.\-]+", "_", f"{number} {model.name.replace(',', '')}").strip("_")[:100]
        for measure, value in model.result.flat_metrics("").items():
            yield f"{measure.lstrip('/')}/{name}", value
        for measure, difference in _differences(model).items():
            if difference is not None:
                yield f"{measure}_difference/{name}", difference.value
                yield f"{measure}_difference_standard_error/{name}", difference.standard_error
                yield f"{measure}_probability_better/{name}", difference.probability_better


def _curves(comparison: Comparison) -> list[Picture]:
    """Draw the scores of the checkpoints by training step and by training compute.

    A score is that of the evaluated weights, or else the best one. Of many models the first and those with the smallest distances
    have colours.
    """
    scored = [model for model in comparison.models if model.history]
    if not scored:
        return []
    ranked = sorted(scored, key=lambda model: (model is not comparison.models[0], model.result.rank))
    coloured = [model.name for model in ranked[: len(COLOURS)]]
    name = scored[0].history[-1]["distance_name"]
    protocols = [_score_protocol(model) for model in scored]
    words = f"Scores beside training ({name}) of the evaluated weights"
    if any(protocol != protocols[0] for protocol in protocols):
        words += ", whose protocols differ, so that levels can't be compared"
    faint = len(scored) - len(coloured)
    if faint > 0:
        words += f" (in colour the first model and those with the smallest distance, pale the {faint} others)"
    has_bands = any(error for model in scored if model.name in coloured for _, error in _scores(model).values())
    bands = " Bands are one standard error." if has_bands else ""
    flops = {model.name: _flops_per_step(model.result) for model in scored}
    charts = [(f"{words}, by training step.{bands}", "training step", dict.fromkeys(flops, 1.0))]
    if len(set(flops.values())) > 1:
        charts.append((f"{words}, by training compute as iddpm cost counts it.{bands}", "training compute, FLOPs", flops))
    else:
        cost = f"A step costs every model {flops[scored[0].name]:.3g} FLOPs."
        charts[0] = (f"{words}, by training step. {cost}{bands}", *charts[0][1:])
    drawn = []
    for caption, x, per_step in charts:
        lines = [
            Line(
                label=model.name if model.name in coloured else "",
                points={step * per_step[model.name]: point for step, point in _scores(model).items()},
                style=coloured.index(model.name) if model.name in coloured else 0,
                faint=model.name not in coloured,
            )
            for model in sorted(scored, key=lambda model: model.name in coloured)  # the pale ones below
        ]
        lines = [line.without_errors() if line.faint else line for line in lines]
        drawn.append(draw_lines(lines, Chart(x=x, y=f"{name}, lower is better", caption=caption, log_x=per_step is flops)))
    return [picture for picture in drawn if picture is not None]


def _scores(model: Compared) -> dict[int, tuple[float, float]]:
    points = {}
    for score in model.history:
        finite = finite_scores(score)
        if finite:
            weights = model.result.weights if model.result.weights in finite else min(finite, key=lambda name: finite[name])
            points[int(score["step"])] = (finite[weights], (score.get("standard_errors") or {}).get(weights) or 0.0)
    return points


def _score_protocol(model: Compared) -> dict[str, Any]:
    """Return a model's protocol of scoring, without the seed of its noise."""
    return {name: value for name, value in model.history[-1]["protocol"].items() if name != "seed"}


def _flops_per_step(result: EvaluationResult) -> float:
    experiment = Experiment.from_dict(dict(result.experiment))
    return 2.0 * TRAINING_PASSES * experiment.optim.global_batch_size * sum(count_macs(experiment).values())

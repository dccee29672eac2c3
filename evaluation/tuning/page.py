"""The page of a tuning: the trials best first, the best one as an experiment file, scores by step and by the value of each field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from evaluation.monitoring.checkpoint_scorer import comparable, read_history
from evaluation.records.numbers import NONE
from evaluation.reports.charts import COLOURS, STYLE, Chart, Line, Picture, as_svg, draw_lines
from evaluation.reports.html import render as fill
from evaluation.tuning.record import TuningTrial, best_of, ranked
from evaluation.tuning.request import TuneRequest
from evaluation.tuning.search import Axis
from training.config.addresses import public_links

_TEMPLATE = Path(__file__).with_name("tuning.html.jinja")
_LONGEST_VALUE = 20
"""Letters of a choice at a tick."""
_LETTERS_OF_A_PANEL = 24
"""Letters of all choices that fit below a panel in one line."""


def render(request: TuneRequest, records: Sequence[TuningTrial], *, links: Mapping[str, str]) -> str:
    """Return the page as HTML; `links` are name -> address."""
    best, axes = best_of(records), request.axes()
    scored = next((record for record in ranked(records) if record.scores), None)
    experiment = request.experiment()
    history = comparable(read_history(scored.run_uri), experiment.evaluation) if scored else []
    protocol = history[0]["protocol"] if history else {}
    name = protocol.get("distance", "score")
    return fill(
        _TEMPLATE,
        title=f"Tuning of {experiment.name}",
        lead=_lead(request, records, name),
        headers=table_headers(axes, name),
        rows=[
            {"cells": cells, "kind": "ours" if record is best else record.state}
            for record, cells in zip(ranked(records), table_rows(axes, records), strict=True)
        ],
        reasons=[record for record in records if record.state == "failed"],
        file=request.as_file(best.params) if best else "",
        pictures=[picture for picture in (_by_step(records, best, name), _by_value(axes, records, best, name)) if picture],
        card=_card(request, protocol),
        command=request.command(),
        links=public_links({**links, **{f"Run of trial {record.number}": record.run_uri for record in records if record.run_uri}}),
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )


def table_headers(axes: Sequence[Axis], name: str) -> list[str]:
    """Return the heads of the table of trials."""
    return ["trial", "state", *(axis.name for axis in axes), name, "at step", "steps scored"]


def table_rows(axes: Sequence[Axis], records: Sequence[TuningTrial]) -> list[list[str]]:
    """Return a row for each trial, best first."""
    return [
        [
            str(record.number),
            record.state,
            *(str(record.params[axis.field]) for axis in axes),
            NONE if record.score is None else f"{record.score:.4g}",
            NONE if record.best_step is None else f"{record.best_step:,}",
            f"{record.scores[-1][0]:,}" if record.scores else NONE,
        ]
        for record in ranked(records)
    ]


def _lead(request: TuneRequest, records: Sequence[TuningTrial], name: str) -> str:
    counts = {state: sum(record.state == state for record in records) for state in ("complete", "pruned", "failed")}
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    fields = ", ".join(axis.field for axis in request.axes())
    return (
        f"{len(records)} of {request.trials} trials have ended ({words or 'none'}). Searched: {fields}. A trial's score is the smallest "
        f"{name} among its checkpoints, by the scores of early stopping: they rank trials, and are no reported numbers."
    )


def _card(request: TuneRequest, protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    options, experiment = request.options, request.experiment()
    interval = experiment.optim.checkpoint_interval
    pruning = f"ASHA; of the trials at {interval:,}, {interval * options.reduction:,}, ... updates the best 1/{options.reduction} go on"
    card = [
        ("Searched", "; ".join(request.search)),
        ("Changes of every trial", "; ".join(request.overrides)),
        ("Suggestions", f"TPE (Optuna), seed {options.seed}; the first trial has the experiment's own values where they are in the ranges"),
        ("Pruning", pruning if options.reduction else "none"),
    ]
    if protocol:
        card.append(("Scores", f"{protocol['num_samples']:,} samples, {protocol['sampler']}, the same noise for every trial and step"))
    return [(name, text) for name, text in card if text]


def _by_step(records: Sequence[TuningTrial], best: TuningTrial | None, name: str) -> Picture | None:
    """Draw the scores of every trial over its training: the best in colour, pruned and failed ones pale."""
    lines, named = [], set()
    for record in reversed(ranked(records)):  # the best on top
        kind = f"trial {record.number}, the best" if record is best else "finished" if record.state == "complete" else "pruned"
        points = {step: (score, 0.0) for step, score in record.scores if score is not None}
        is_pale = record.state != "complete"
        lines.append(
            Line(label="" if kind in named else kind, points=points, style=1 if record is best else 0, dashes=int(is_pale), faint=is_pale)
        )
        named.add(kind if points else "")
    caption = "Scores of all trials by training step"
    return draw_lines(lines, Chart(x="training step", y=f"{name}, lower is better", caption=caption))


def _by_value(axes: Sequence[Axis], records: Sequence[TuningTrial], best: TuningTrial | None, name: str) -> Picture | None:
    """Draw the score of each trial over the value of each searched field; pruned trials are hollow."""
    scored = [record for record in records if record.score is not None]
    if not scored:
        return None
    kinds = (
        ([record for record in scored if record.state != "complete"], COLOURS[0], "none"),
        ([record for record in scored if record.state == "complete" and record is not best], COLOURS[0], COLOURS[0]),
        ([best] if best else [], COLOURS[1], COLOURS[1]),
    )
    columns = min(len(axes), 3)
    num_rows = -(-len(axes) // columns)
    caption = "Score by the value of each searched field; a hollow point is a pruned trial, with its best score until then"
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.2 * num_rows), layout="constrained")
        panels = figure.subplots(num_rows, columns, sharey=True, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=False):
            for shown, colour, face in kinds:
                values = [record.params[axis.field] for record in shown]
                xs = [axis.choices.index(str(value)) for value in values] if axis.choices else values
                panel.plot(xs, [record.score for record in shown], "o", color=colour, markerfacecolor=face)
            panel.set_xlabel(axis.name)
            if axis.low is not None and axis.high is not None:
                panel.plot([axis.low, axis.high], [scored[0].score] * 2, alpha=0)  # the axis shows the whole range
            _label_values(panel, axis)
        for panel in panels[len(axes) :]:
            panel.remove()
        figure.supylabel(name, fontsize="medium")
        return Picture(svg=as_svg(figure, caption), caption=caption)


def _label_values(panel: Axes, axis: Axis) -> None:
    """Label the values of a searched field, so that the labels of a narrow panel don't overlap."""
    if axis.low is None or axis.high is None:
        names = [choice if len(choice) <= _LONGEST_VALUE else f"{choice[: _LONGEST_VALUE - 1]}…" for choice in axis.choices]
        slant: dict[str, Any] = {"rotation": 45, "ha": "right"} if len("".join(names)) > _LETTERS_OF_A_PANEL else {}
        panel.set_xticks(range(len(names)), names, **slant)
        return
    if axis.log:
        decades = math.log10(axis.high / axis.low)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1 else (1.0, 3.0) if decades < 2 else (1.0,)))
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=isinstance(axis.low, int)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.7g}"))

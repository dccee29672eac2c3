"""The charts of one run: its distance by step, decay and guidance, its loss, and the terms of its bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import PercentFormatter

from evaluation.monitoring.early_stopping import CheckpointScore
from evaluation.monitoring.nightly import Judgement
from evaluation.records.score_card import ScoreCardRow
from evaluation.reports.charts import COLOURS, STYLE, Chart, Line, Picture, as_svg, draw_lines, new_axes


def distance_by_step(history: Sequence[CheckpointScore], *, distance_name: str, chosen_step: int | None, chosen_weights: str | None) -> str:
    """Draw the score of each decay at each checkpoint, with the chosen weights marked (supplement figure 7, for one run).

    `history` has scores by step, with `scores` and `standard_errors` by name of the weights. The SVG is empty without a finite score.
    """
    names = list(dict.fromkeys(name for score in history for name in score["scores"]))
    lines = []
    for style, name in enumerate(names):
        points = {
            int(score["step"]): (float(value), float((score.get("standard_errors") or {}).get(name) or 0.0))
            for score in history
            if (value := score["scores"].get(name)) is not None and math.isfinite(value)
        }
        lines.append(Line(label=f"decay {name.removeprefix('ema_')}" if name.startswith("ema_") else name, points=points, style=style))
    mark = None
    if chosen_step is not None and chosen_weights in names:
        points = dict(lines[names.index(chosen_weights)].points)
        if chosen_step in points:
            mark = (float(chosen_step), points[chosen_step][0], f"chosen: step {chosen_step:,}")
    chart = Chart(
        x="training step",
        y=f"{distance_name}, lower is better",
        caption=f"{distance_name} by training step, a line for each decay",
        height=3.8,
        legend="weights averaged with",
        mark=mark,
    )
    return _svg(lines, chart)


def distance_by_decay(lines: Mapping[str, Sequence[tuple[float, float, float | None]]], *, distance_name: str) -> str:
    """Draw the distance over the length of the average, at single checkpoints (supplement figure 7).

    `lines` maps a name, such as "step 20,000", to (decay, distance, its standard error or None), by decay.
    """
    chart = Chart(
        x="decay of the average (equal steps are equal factors of the number of updates averaged)",
        y=f"{distance_name}, lower is better",
        caption=f"{distance_name} by decay of the average",
        height=3.8,
        log_x=True,
        ticks={1 / (1 - decay): f"{decay:g}" for decay in sorted({decay for points in lines.values() for decay, _, _ in points})},
    )
    return _svg(
        [
            Line(label=name, points={1 / (1 - decay): (value, error or 0.0) for decay, value, error in points}, style=style)
            for style, (name, points) in enumerate(lines.items())
        ],
        chart,
    )


def distance_by_guidance(points: Mapping[float, tuple[float, float]], *, distance_name: str) -> str:
    """Draw the distance over the guidance scale; `points` maps a scale to the distance and its standard error."""
    chart = Chart(
        x="guidance scale (1 is no guidance)",
        y=f"{distance_name}, lower is better",
        caption=f"{distance_name} by guidance scale",
        height=3.2,
        ticks={scale: f"{scale:g}" for scale in points},
    )
    return _svg([Line(label="", points=dict(points))], chart)


def precision_and_recall(points: Mapping[float, tuple[ScoreCardRow, ScoreCardRow]]) -> str:
    """Draw the trade-off of guidance with its intervals; `points` maps a scale to its recall and precision."""
    with rc_context(STYLE):
        figure, axes = new_axes(3.8)
        xs, ys = ([pair[k].value for _, pair in sorted(points.items())] for k in (0, 1))
        axes.plot(xs, ys, "o-", color=COLOURS[0], markersize=5.5, linewidth=1.8)
        for scale, (recall, precision) in points.items():
            x, y = recall.value, precision.value
            axes.annotate(f"{scale:g}", (x, y), xytext=(6, 6), textcoords="offset points")
            if recall.interval and precision.interval:
                axes.hlines(y, *recall.interval, color=COLOURS[0], alpha=0.35, linewidth=1.0)
                axes.vlines(x, *precision.interval, color=COLOURS[0], alpha=0.35, linewidth=1.0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axes.set_xlabel("recall: real images near a sample")
        axes.set_ylabel("precision: samples near a real image")
        return as_svg(figure, "Precision over recall by guidance scale")


def loss_by_step(losses: Sequence[tuple[int, float]], *, objective: str) -> str:
    """Draw the logged (step, loss) of training; with 80 values or more, also their running mean."""
    steps, values = [step for step, _ in losses], [value for _, value in losses]
    window = max(1, len(values) // 40)
    lines = [Line(label="each logged value", points={step: (value, 0.0) for step, value in losses}, faint=window > 1)]
    if window > 1:
        means = np.convolve(values, np.ones(window) / window, "valid")
        points = {step: (float(mean), 0.0) for step, mean in zip(steps[window - 1 :], means, strict=True)}
        lines.append(Line(label=f"mean of {window}", points=points))
    chart = Chart(x="training step", y=f"training loss L_{objective}", caption="Training loss by step", height=2.9)
    return _svg(lines, chart)


def bound_by_timestep(timesteps: Sequence[int], terms: Sequence[float | None]) -> str:
    """Draw the terms of the variational bound in bits/dim by original timestep; timestep 0 is drawn at t = 1."""
    chart = Chart(
        x="timestep t (1 is the least noise)",
        y="term of the bound, bits/dim",
        caption="Terms of the variational bound by timestep",
        height=2.9,
        log_x=True,
    )
    line = Line(label="terms", points={t + 1: (term, 0.0) for t, term in zip(timesteps, terms, strict=True) if term is not None})
    return _svg([line], chart)


def _svg(lines: Sequence[Line], chart: Chart) -> str:
    drawn = draw_lines(lines, chart)
    return drawn.svg if drawn else ""


def nights(judgement: Judgement, *, distance_name: str) -> list[Picture]:
    """Draw the scores since the baseline began, with their baseline and limits, and the cumulative sums below them."""
    trace, rule = judgement.trace, judgement.night.rule
    numbers = range(1, len(trace.value) + 1)

    def line(label: str, values: Sequence[float], errors: Sequence[float] | None = None, style: int = 0, dashes: int = 0) -> Line:
        errors = [0.0] * len(values) if errors is None else errors
        points = {night: (y, error) for night, y, error in zip(numbers, values, errors, strict=True) if math.isfinite(y)}
        return Line(label=label, points=points, style=style, dashes=dashes)

    published = (
        line("baseline (mean)", np.where(np.isfinite(trace.limit), trace.centre, np.nan).tolist()),
        line("limit of a jump", (trace.centre + trace.limit).tolist(), dashes=2),
        line("", (trace.centre - trace.limit).tolist(), dashes=2),
    )
    frozen = {rule.baseline_nights + 0.5: "the sums begin"} if len(numbers) > rule.baseline_nights else None
    errors = [night.standard_error or 0.0 for night in judgement.nights]
    since = f"{judgement.nights[0].at:%Y-%m-%d}"
    scores = Chart(
        x=f"night since {since}",
        y=f"{distance_name}, lower is better",
        caption="Scores by night; the band is one standard error. "
        "A score far from the baseline is drawn again, and the mean of the new ones is shown, whose limit is nearer.",
        places=frozen,
        published=published,
        legend_beside=True,
        log_y=False,
    )
    sums = Chart(
        x=f"night since {since}",
        y="cumulative sum",
        caption="Cumulative sums (Page's CUSUM), in standard deviations of the baseline; above the dotted line the level has changed.",
        height=3.0,
        places=frozen,
        level=rule.decision_interval,
        legend_beside=True,
        log_y=False,
    )
    lines = [line("worse", trace.up.tolist(), style=1), line("better", trace.down.tolist(), style=2)]
    drawn = [draw_lines([line("score of the night", trace.value.tolist(), errors)], scores), draw_lines(lines, sums)]
    return [picture for picture in drawn if picture is not None]

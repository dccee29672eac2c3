"""The figures of an ablation, each drawn like the paper's."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from matplotlib import rc_context

from evaluation.ablations.claims.estimates import (
    Estimate,
    bits,
    bound_ratio,
    curve,
    distance_name,
    find,
    full_likelihood_steps,
    score_curve,
)
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.page.table import COLUMN_TITLES, TableRow, format_cell
from evaluation.ablations.trials.joint import ENDS_SHARE
from evaluation.ablations.trials.record import AblationTrial, split_by_seed
from evaluation.records.intervals import mean_interval
from evaluation.reports.charts import COLOURS, STYLE, Chart, Line, Picture, as_svg, draw_lines, new_axes

Records = Sequence[AblationTrial]
Drawing = tuple[Sequence[Line], Chart]
Drawings = Iterator[Drawing]

_BITS = "bits/dim, lower is better"
_SAMPLING_STEPS = "sampling steps"
_TRAINING_STEP = "training step"
_BANDS = " Bands are one standard error."
_LETTERS_BESIDE_BARS = 48
"""Letters in a line of a bar's name: with many more of them no width is left for the bars."""


def figures(request: AblationRequest, records: Records, rows: Sequence[TableRow]) -> list[Picture]:
    """Draw the figures of an ablation; where the paper has a table and no figure, draw the distances in `rows` as bars.

    Failed trials and figures without points are left out.
    """
    draw = None if request.grid else _FIGURES.get(request.name)
    if draw is None:
        pictures = [draw_bars(rows, distance_name(records))]
    else:
        seeds = split_by_seed(record for record in records if not record.error)
        drawn = [list(draw(of_seed)) for of_seed in seeds.values()]
        pictures = [draw_lines(lines, chart) for lines, chart in (mean_curves(drawn) if len(drawn) > 1 else itertools.chain(*drawn))]
    return [picture for picture in pictures if picture is not None]


def mean_curves(seeds: Sequence[Sequence[Drawing]]) -> Drawings:
    """Merge the charts of several seeds: the mean of each curve with its 95% interval, and the curve of each seed as a thin line."""
    charts = {chart.caption: chart for drawings in seeds for _, chart in drawings}
    for caption, chart in charts.items():
        curves: dict[str, list[Line]] = {}
        for lines, other in itertools.chain(*seeds):
            for line in lines if other.caption == caption else ():
                curves.setdefault(line.label, []).append(line)
        thin = [replace(line.without_errors(), label="", faint=True) for of_seeds in curves.values() for line in of_seeds]
        means = [replace(of_seeds[0], points=_mean_points(of_seeds)) for of_seeds in curves.values()]
        words = "Thick lines are means over the seeds, with the 95% interval of the mean as a band; thin lines are the seeds."
        yield [*thin, *means], replace(chart, caption=f"{caption.removesuffix(_BANDS)} {words}")


def _mean_points(seeds: Sequence[Line]) -> dict[Any, Estimate]:
    """Return the mean of the curves where they have a point, and half the width of its interval; 0 where there is a single one."""
    values: dict[Any, list[float]] = {}
    for line in seeds:
        for x, (y, _) in line.points.items():
            values.setdefault(x, []).append(y)
    return {x: (math.fsum(ys) / len(ys), float(mean_interval(ys)[1]) if len(ys) > 1 else 0.0) for x, ys in values.items()}


def draw_bars(rows: Sequence[TableRow], name: str) -> Picture | None:
    """Draw the distance of each setting as a bar with its error, the seeds as dots, and the paper's FID if the two are comparable.

    Return None if no row has a distance. `name` is the name of the distance.
    """
    rows = [row for row in rows if row.distance.ours is not None]
    if not rows:
        return None
    names = [textwrap.fill(name, _LETTERS_BESIDE_BARS) for name in name_bars(rows)]
    num_lines = 1 + max(name.count("\n") for name in names)
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = new_axes(0.9 + (0.2 + 0.22 * num_lines) * len(rows))
        heights = list(range(len(rows)))[::-1]
        axes.barh(
            heights,
            [float(row.distance.ours or 0.0) for row in rows],
            xerr=[math.nan if row.distance.error is None else row.distance.error for row in rows],  # NaN has no whisker
            color=COLOURS[0],
            alpha=0.85,
            height=0.6,
            error_kw={"ecolor": "#111827", "capsize": 3},
            label="ours",
        )
        seeds = [(value, height) for row, height in zip(rows, heights, strict=True) for value in row.distance.seeds]
        if seeds:
            values, at = zip(*seeds, strict=True)
            axes.plot(values, at, "o", markersize=4.5, markerfacecolor="white", markeredgecolor="#111827", zorder=4, label="a seed")
        published = [
            (float(row.distance.paper or 0.0), height)
            for row, height in zip(rows, heights, strict=True)
            if row.distance.difference is not None
        ]
        if published:
            axes.plot([value for value, _ in published], [height for _, height in published], "D", color=COLOURS[1], label="the paper's")
        if published or seeds:
            axes.legend()
        axes.set_yticks(heights, names)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{name}, lower is better")
        caption = "The distance of every trial; the whisker is one standard error."
        if seeds:
            caption = (
                "The distance of every setting: the mean over its seeds, which are the dots. The whisker is the 95% interval of the mean."
            )
        return Picture(svg=as_svg(figure, caption), caption=caption)


def name_bars(rows: Sequence[TableRow]) -> list[str]:
    """Name each row by the columns that differ."""
    columns = [name for name in rows[0].values if len({str(row.values.get(name)) for row in rows}) > 1]
    by_role = any("=" not in row.label for row in rows)
    if by_role or not columns:
        return [row.label for row in rows]
    return [", ".join(f"{COLUMN_TITLES.get(name, name)} {format_cell(row.values.get(name))}" for name in columns) for row in rows]


def _distance_axis(records: Records, measure: str) -> str:
    return f"{distance_name(records, measure)}, lower is better"


def _crossing(records: Records) -> dict[float, str]:
    """Return the number of steps at which the paper's curves of DDIM and the ancestral sampler cross; a tenth of it on the digits."""
    tiny = any(str(record.data.get("name")).startswith("digits") for record in records)
    return {5.0: "5 steps: the paper's 50, divided by ten"} if tiny else {50.0: "50 steps, where the paper's curves cross"}


def _without_errors(values: dict[int, float]) -> dict[int, Estimate]:
    return {step: (value, 0.0) for step, value in values.items()}


def _sampling_steps(records: Records) -> Drawings:
    lines = [
        Line(label=f"{_run_name(record)}, {name}", points=curve(record, "sampling-steps", method), style=style, dashes=dashes)
        for style, record in enumerate(records)
        for dashes, (method, name) in enumerate((("ancestral", "ancestral"), ("ddim", "DDIM")))
    ]
    caption = (
        "Distance by number of sampling steps, as supplement figure 1 draws it: whole lines are the ancestral sampler, dashed ones "
        f"DDIM.{_BANDS}"
    )
    yield (
        lines,
        Chart(x=_SAMPLING_STEPS, y=_distance_axis(records, "sampling-steps"), caption=caption, log_x=True, places=_crossing(records)),
    )


def _figure_1(records: Records) -> Drawings:
    largest = max((record.values["global_batch_size"] for record in records), default=0)
    lines = []
    for record in records:
        hybrid, batch = record.values["objective"] == "hybrid", record.values["global_batch_size"]
        label = f"{'L_hybrid' if hybrid else 'DDIM (L_simple)'}, batch {batch}, rate {record.values['learning_rate']:g}"
        style = 2 * int(not hybrid) + int(batch < largest)
        lines.append(Line(label=label, points=curve(record, "figure-1"), style=style, dashes=int(not hybrid)))
    caption = "Distance by number of sampling steps for two batch sizes and learning rates (supplement figure 1)."
    yield (lines, Chart(x=_SAMPLING_STEPS, y=_distance_axis(records, "figure-1"), caption=caption, log_x=True, places=_crossing(records)))


def _likelihood_steps(records: Records) -> Drawings:
    lines = [
        Line(
            label=f"{_run_name(record)}, {name}", points=bits_by_steps(record, spacing), style=style, dashes=int(spacing == "strided")
        ).without_errors()
        for style, record in enumerate(records)
        for spacing, name in (("with-small-t", "with every t to T/K"), ("strided", "strided alone"))
    ]
    caption = "Negative log-likelihood by number of evaluation steps (supplement figure 5); dashed: the even stride alone."
    yield lines, Chart(x="evaluation steps K", y=_BITS, caption=caption, log_x=True)


def bits_by_steps(record: AblationTrial, spacing: str) -> dict[int, Estimate]:
    """Return the bits/dim of a spacing by number of steps. Both spacings share the point of all T steps, if it was measured."""
    points, full = curve(record, "likelihood-steps", spacing), full_likelihood_steps(record)
    return points | {steps: value for steps, value in curve(record, "likelihood-steps", "strided").items() if steps == full}


def _vlb_ratio(records: Records) -> Drawings:
    hybrid, vlb = find(records, role="hybrid"), find(records, role="vlb")
    if hybrid is None or vlb is None:
        return
    ratio = bound_ratio(hybrid, vlb)
    if ratio is None:
        return
    width, timestep = len(ratio) // ENDS_SHARE, "timestep t (1 is the least noise)"
    yield (
        [Line(label="ratio", points={t + 1: (value, 0.0) for t, value in enumerate(ratio)})],
        Chart(
            x=timestep,
            y="term of theta_hybrid / term of theta_vlb",
            caption="Ratio of the terms of the bound (supplement figure 3): below 1, theta_hybrid is the better one there.",
            level=1.0,
            places={float(width): f"the ensemble's ends, {width} timesteps each", float(len(ratio) - width): ""},
        ),
    )
    terms = [
        Line(label=name, points={t + 1: (max(term, 1e-9), 0.0) for t, term in enumerate(record.measures["bound"]["per_t"])}, style=style)
        for style, (record, name) in enumerate(((hybrid, "theta_hybrid"), (vlb, "theta_vlb")))
    ]
    yield terms, Chart(x=timestep, y="term of the bound, bits/dim", caption="The terms themselves.", log_x=True, log_y=True)


def _dropout(records: Records) -> Drawings:
    figure_6 = [record for record in records if record.values["dropout"] == 0.1]
    scores = [
        Line(label=str(record.values["schedule"]), points=_without_errors(score_curve(record)), style=style)
        for style, record in enumerate(figure_6)
    ]
    bits_lines = {
        record.label: Line(
            label=f"{record.values['schedule']}, dropout {record.values['dropout']}",
            points=curve(record, "history-likelihood"),
            style=("linear", "cosine").index(record.values["schedule"]),
            dashes=round(10 * record.values["dropout"]) - 1,
        ).without_errors()
        for record in records
    }
    course, test_bits = "over the course of training, dropout 0.1 (supplement figure 6", "bits/dim of test images"
    caption = f"Distance {course}, top): few-step scores."
    yield scores, Chart(x=_TRAINING_STEP, y=_distance_axis(records, "history"), caption=caption, legend="schedule")
    caption = f"Negative log-likelihood {course}, bottom)."
    shown = [bits_lines[record.label] for record in figure_6]
    yield shown, Chart(x=_TRAINING_STEP, y=test_bits, caption=caption, legend="schedule")
    yield list(bits_lines.values()), Chart(x=_TRAINING_STEP, y=test_bits, caption="The same for every dropout of the sweep.")


def _overfitting(records: Records) -> Drawings:
    scores = [point["scores"] for record in records for point in (record.measures.get("history") or {}).get("points", ())]
    weights = list(dict.fromkeys(name for score in scores for name in score))
    lines = [
        Line(
            label=f"dropout {record.values['dropout']}, decay {name.removeprefix('ema_')}",
            points=_without_errors(score_curve(record, name)),
            style=style,
            dashes=dashes,
        )
        for dashes, record in enumerate(records)
        for style, name in enumerate(weights)
    ]
    caption = (
        "Distance over the course of training for every dropout and decay of the average (supplement figure 7): a colour is a decay, "
        "a dash a dropout. Few-step scores on the same noise."
    )
    yield lines, Chart(x=_TRAINING_STEP, y=_distance_axis(records, "history"), caption=caption)


def _width(records: Records) -> Drawings:
    """Draw the distance and bits/dim by training compute, with the main paper's fits where the images are those of the fits."""
    scores, reported = [], []
    for style, record in enumerate(records):
        per_step, label, final = float(record.measures.get("flops_per_step") or 0.0), f"C = {record.values['width']}", bits(record)
        points = {per_step * step: (value, 0.0) for step, value in score_curve(record).items()}
        scores.append(Line(label=label, points=points, style=style))
        reported.append(Line(label=label, points={per_step * record.step: final} if final else {}, style=style))
    fitted = any(record.data.get("name") == "imagenet64-official" for record in records)
    for lines, y, caption, fit in (
        (
            scores,
            _distance_axis(records, "history"),
            "Distance by training compute, a line a width (main paper, scaling).",
            (4.00, 2.5e-25, 0.22),
        ),
        (reported, _BITS, "Bits/dim of the evaluated checkpoint by training compute (main paper, scaling).", (3.40, 3.0e-15, 0.17)),
    ):
        published = _power_law(lines, *fit) if fitted else ()
        yield lines, Chart(x="training compute, FLOPs", y=y, caption=caption, log_x=True, published=published)


def _power_law(lines: Sequence[Line], floor: float, scale: float, power: float) -> list[Line]:
    """Return the main paper's fit, floor + (scale C)^-power for a compute of C FLOPs, over the range of the lines."""
    compute = [float(x) for line in lines for x in line.points]
    if not compute:
        return []
    low, high = min(compute), max(compute)
    points = {c: (floor + (scale * c) ** -power, 0.0) for c in (low * (high / low) ** (k / 20) for k in range(21))}
    return [Line(label="the paper's fit", points=points)]


def _run_name(record: AblationTrial) -> str:
    """Name an evaluated run in a legend: objective, schedule, and the data set unless it is the digits."""
    values = record.values
    parts = [f"L_{values['objective']}"] if "objective" in values else []
    parts += [str(values["schedule"])] if "schedule" in values else []
    if values.get("data") not in (None, "digits"):
        parts.append(str(values["data"]))
    return ", ".join(parts) or record.label


_FIGURES: dict[str, Callable[[Records], Drawings]] = {
    "sampling-steps": _sampling_steps,
    "lsun-batch-size": _figure_1,
    "likelihood-steps": _likelihood_steps,
    "vlb-ratio": _vlb_ratio,
    "cifar10-dropout": _dropout,
    "cond64-overfitting": _overfitting,
    "width": _width,
    "same-noise": lambda records: iter(()),
}

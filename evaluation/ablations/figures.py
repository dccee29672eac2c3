"""The figures of an ablation as the paper draws them; style and colours are those of all reports.

A curve is told apart by colour and marker; what is varied twice, by dashes too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from evaluation.ablations.claims import bound_ratio, score_curve
from evaluation.ablations.record import TrialRecord
from evaluation.ablations.rows import TableRow
from evaluation.figures import COLOURS, MARKERS, STYLE, as_svg
from training.ablation_request import AblationRequest

_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure.

    Attributes:
        svg: The drawing.
        caption: What is seen, and which figure of the paper it is like.
    """

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: x -> y, with standard errors where they are known."""

    label: str
    points: Mapping[Any, tuple[float, float]]
    style: int = 0
    dashes: int = 0


def pictures(request: AblationRequest, records: Sequence[TrialRecord], rows: Sequence[TableRow]) -> list[Picture]:
    """The figures of an ablation; none of a curve that has no points."""
    done = [record for record in records if not record.error]
    draw = _DRAWN.get(request.name) if not request.grid else None
    drawn = draw(done) if draw else []
    bars = _bars(rows) if draw is None or request.name in ("two-stage", "ensemble") else None
    return [picture for picture in (*drawn, bars) if picture is not None]


def _lines(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    caption: str,
    log_x: bool = False,
    level: float | None = None,
    log_y: bool | None = None,
    legend: str = "",
    curves: Sequence[Line] = (),
) -> Picture | None:
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            xs = sorted(line.points)
            values, errors = [line.points[at][0] for at in xs], [line.points[at][1] for at in xs]
            colour, many = COLOURS[line.style % len(COLOURS)], len(xs) > 40
            axes.plot(
                xs,
                values,
                color=colour,
                linestyle=_DASHES[line.dashes % len(_DASHES)],
                marker=None if many else MARKERS[line.style % len(MARKERS)],
                markersize=5.5,
                linewidth=1.8,
                label=line.label,
            )
            if any(errors):
                low, high = ([v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
                axes.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0)
        for line in curves:
            xs = sorted(line.points)
            axes.plot(xs, [line.points[at][0] for at in xs], color="#64748b", linestyle=_DASHES[1], linewidth=1.4, label=line.label)
        if level is not None:
            axes.axhline(level, color="#64748b", linewidth=1.2, linestyle=_DASHES[2])
        everything = [value for line in lines for value, _ in line.points.values()]
        _axis_y(axes, everything, log_y)
        if log_x:
            _axis_log_x(axes, sorted({float(at) for line in lines for at in line.points}))
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(lines) + len(curves) > 1:
            outside = len(lines) > 5
            place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {}
            axes.legend(title=legend or None, alignment="left", **place)
        return Picture(svg=as_svg(figure, caption), caption=caption)


def _axis_y(axes: Axes, values: Sequence[float], log: bool | None) -> None:
    positive = [value for value in values if value > 0]
    if log or (log is None and len(positive) == len(values) and max(values) > 5 * min(values)):
        axes.set_yscale("log")
        if math.log10(max(positive) / min(positive)) < 3:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))


def _axis_log_x(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    if len(ticks) <= 12:
        axes.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _bars(rows: Sequence[TableRow]) -> Picture | None:
    """Distances of the trials beside each other, with one standard error; what a table without a figure is drawn as."""
    shown = [row for row in rows if row.distance.ours is not None]
    if not shown:
        return None
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(8.6, 0.9 + 0.42 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        values = [float(row.distance.ours or 0.0) for row in shown]
        errors = [row.distance.standard_error or 0.0 for row in shown]
        places = list(range(len(shown)))[::-1]
        axes.barh(places, values, xerr=errors, color=COLOURS[0], alpha=0.85, height=0.6, error_kw={"ecolor": "#111827", "capsize": 3})
        axes.set_yticks(places, [row.label.replace("num_timesteps", "T").replace("learning_rate", "rate") for row in shown])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("distance of the samples, lower is better (whisker: one standard error)")
        caption = "The distance of every trial."
        return Picture(svg=as_svg(figure, caption), caption=caption)


def _of(record: TrialRecord, measure: str, x: str, y: str, **wanted: Any) -> dict[float, tuple[float, float]]:
    points = (record.measures.get(measure) or {}).get("points", ())
    return {
        float(p[x]): (float(p[y]), float(p.get("standard_error") or 0.0))
        for p in points
        if p[y] is not None and all(p[name] == value for name, value in wanted.items())
    }


def _distance_name(records: Sequence[TrialRecord], measure: str) -> str:
    return next((r.measures[measure]["distance_name"] for r in records if r.measures.get(measure)), "distance")


def _sampling_steps(records: Sequence[TrialRecord]) -> list[Picture | None]:
    lines = [
        Line(
            label=f"{_words(record)}, {'DDIM' if method == 'ddim' else method}",
            points=_of(record, "sampling-steps", "num_steps", "distance", method=method),
            style=number,
            dashes=int(method == "ddim"),
        )
        for number, record in enumerate(records)
        for method in ("ancestral", "ddim")
    ]
    return [
        _lines(
            lines,
            x="sampling steps",
            y=f"{_distance_name(records, 'sampling-steps')}, lower is better",
            caption="Distance by number of sampling steps, as supplement figure 1 draws it: whole lines are the ancestral "
            "sampler, dashed ones DDIM. Bands are one standard error.",
            log_x=True,
        )
    ]


def _figure_1(records: Sequence[TrialRecord]) -> list[Picture | None]:
    lines = []
    for record in records:
        hybrid = record.values["objective"] == "hybrid"
        method = "ancestral" if hybrid else "ddim"
        sizes = sorted({r.values["global_batch_size"] for r in records})
        larger = record.values["global_batch_size"] == sizes[-1]
        lines.append(
            Line(
                label=f"{'L_hybrid' if hybrid else 'DDIM (L_simple)'}, batch {record.values['global_batch_size']}, "
                f"rate {record.values['learning_rate']:g}",
                points=_of(record, "figure-1", "num_steps", "distance", method=method),
                style=2 * int(not hybrid) + int(not larger),
                dashes=int(not hybrid),
            )
        )
    return [
        _lines(
            lines,
            x="sampling steps",
            y=f"{_distance_name(records, 'figure-1')}, lower is better",
            caption="Distance by number of sampling steps for two batch sizes and learning rates (supplement figure 1).",
            log_x=True,
        )
    ]


def _likelihood_steps(records: Sequence[TrialRecord]) -> list[Picture | None]:
    lines = [
        Line(
            label=f"{_words(record)}, {words}",
            points=_of(record, "likelihood-steps", "num_steps", "bits_per_dim", spacing=spacing),
            style=number,
            dashes=int(spacing == "strided"),
        )
        for number, record in enumerate(records)
        for spacing, words in (("with-small-t", "with every t to T/K"), ("strided", "strided alone"))
    ]
    return [
        _lines(
            [_without_errors(line) for line in lines],
            x="evaluation steps K",
            y="bits/dim, lower is better",
            caption="Negative log-likelihood by number of evaluation steps (supplement figure 5); dashed: the even stride alone.",
            log_x=True,
        )
    ]


def _without_errors(line: Line) -> Line:
    """The spread over images is common to every point of a curve, and would hide the curve."""
    return Line(label=line.label, points={at: (value, 0.0) for at, (value, _) in line.points.items()}, style=line.style, dashes=line.dashes)


def _vlb_ratio(records: Sequence[TrialRecord]) -> list[Picture | None]:
    roles = {record.role: record for record in records}
    if not {"hybrid", "vlb"} <= roles.keys():
        return []
    ratio = bound_ratio(roles["hybrid"], roles["vlb"])
    terms = [
        Line(
            label=name,
            points={t + 1: (max(value, 1e-9), 0.0) for t, value in enumerate(roles[role].measures["bound"]["per_t"])},
            style=number,
        )
        for number, (role, name) in enumerate((("hybrid", "theta_hybrid"), ("vlb", "theta_vlb")))
    ]
    return [
        _lines(
            [Line(label="ratio", points={t + 1: (value, 0.0) for t, value in enumerate(ratio)})],
            x="timestep t (1 is the least noise)",
            y="term of theta_hybrid / term of theta_vlb",
            caption="Ratio of the terms of the bound (supplement figure 3): below 1, theta_hybrid is the better one at that timestep.",
            level=1.0,
            log_y=max(ratio) > 5 * min(ratio),
        ),
        _lines(
            terms,
            x="timestep t (1 is the least noise)",
            y="term of the bound, bits/dim",
            caption="The terms themselves.",
            log_x=True,
            log_y=True,
        ),
    ]


def _dropout(records: Sequence[TrialRecord]) -> list[Picture | None]:
    figure_6 = [record for record in records if record.values["dropout"] == 0.1]
    lines = [
        Line(label=f"{r.values['schedule']}", points={at: (value, 0.0) for at, value in score_curve(r).items()}, style=number)
        for number, r in enumerate(figure_6)
    ]
    every = [
        Line(
            label=f"{r.values['schedule']}, dropout {r.values['dropout']}",
            points=_of(r, "history-likelihood", "step", "bits_per_dim"),
            style=("linear", "cosine").index(r.values["schedule"]),
            dashes=round(10 * r.values["dropout"]) - 1,
        )
        for r in records
    ]
    by_step = "training step"
    return [
        _lines(
            lines,
            x=by_step,
            y=f"{_distance_name(records, 'history')}, lower is better",
            caption="Distance over the course of training, dropout 0.1 (supplement figure 6, top): few-step scores.",
            legend="schedule",
        ),
        _lines(
            [_without_errors(line) for line in every if line.label.endswith("0.1")],
            x=by_step,
            y="bits/dim of test images",
            caption="Negative log-likelihood over the course of training, dropout 0.1 (supplement figure 6, bottom).",
            legend="schedule",
        ),
        _lines(
            [_without_errors(line) for line in every],
            x=by_step,
            y="bits/dim of test images",
            caption="The same for every dropout of the sweep.",
        ),
    ]


def _overfitting(records: Sequence[TrialRecord]) -> list[Picture | None]:
    weights = list(dict.fromkeys(w for r in records for p in (r.measures.get("history") or {}).get("points", ()) for w in p["scores"]))
    lines = [
        Line(
            label=f"dropout {r.values['dropout']}, decay {name.removeprefix('ema_')}",
            points={at: (value, 0.0) for at, value in score_curve(r, name).items()},
            style=weights.index(name),
            dashes=number,
        )
        for number, r in enumerate(records)
        for name in weights
    ]
    return [
        _lines(
            lines,
            x="training step",
            y=f"{_distance_name(records, 'history')}, lower is better",
            caption="Distance over the course of training for every dropout and decay of the average (supplement figure 7): a "
            "colour is a decay, a dash a dropout. Few-step scores on the same noise.",
        )
    ]


def _width(records: Sequence[TrialRecord]) -> list[Picture | None]:
    found: list[Picture | None] = []
    for name, words, fit in (("distance", None, (4.00, 2.5e-25, 0.22)), ("bits", "bits/dim", (3.40, 3.0e-15, 0.17))):
        lines = []
        for number, record in enumerate(records):
            per_step = record.measures.get("flops_per_step", 0.0)
            curve = (
                {per_step * at: (value, 0.0) for at, value in score_curve(record).items()}
                if name == "distance"
                else {per_step * record.step: (_bits(record), 0.0)}
                if _bits(record) is not None
                else {}
            )
            lines.append(Line(label=f"C = {record.values['width']}", points=curve, style=number))
        ends = [at for line in lines for at in line.points]
        paper_scale = any(record.data.get("name") == "imagenet64-official" for record in records)
        fitted = (
            Line(label="the paper's fit", points={at: (fit[0] + (fit[1] * at) ** -fit[2], 0.0) for at in ends}) if paper_scale else None
        )
        found.append(
            _lines(
                lines,
                x="training compute, FLOPs",
                y=words or f"{_distance_name(records, 'history')}, lower is better",
                caption=f"{'Bits/dim' if words else 'Distance'} by training compute, a line a width (main paper, scaling).",
                log_x=True,
                curves=[fitted] if fitted else [],
            )
        )
    return found


def _bits(record: TrialRecord) -> float:
    likelihood = (record.final or {}).get("likelihood")
    return float(likelihood["bits_per_dim"]) if likelihood else math.nan


def _words(record: TrialRecord) -> str:
    """A run of an evaluation, as a legend says it."""
    values = record.values
    parts = [f"L_{values['objective']}"] if "objective" in values else []
    parts += [str(values["schedule"])] if "schedule" in values else []
    if values.get("data") not in (None, "digits"):
        parts.append(str(values["data"]))
    return ", ".join(parts) or record.label


_DRAWN: dict[str, Callable[[Sequence[TrialRecord]], list[Picture | None]]] = {
    "sampling-steps": _sampling_steps,
    "lsun-batch-size": _figure_1,
    "likelihood-steps": _likelihood_steps,
    "vlb-ratio": _vlb_ratio,
    "cifar10-dropout": _dropout,
    "cond64-overfitting": _overfitting,
    "width": _width,
    "same-noise": lambda records: [],
    "ensemble": lambda records: [],
    "two-stage": lambda records: [],
}

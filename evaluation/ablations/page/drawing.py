"""How an ablation's figures are drawn; style and colours are those of all reports.

A curve is told apart by colour and marker; what is varied twice, by dashes too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from evaluation.ablations.definitions.ablation import plain_word
from evaluation.ablations.page.table import COLUMN_WORDS, TableRow
from evaluation.reports.figures import COLOURS, MARKERS, STYLE, as_svg

_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_GREY = "#64748b"
_FEW_TICKS = 12
_MANY_POINTS = 40


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
    """One curve.

    Attributes:
        label: In the legend.
        points: x -> y and its standard error, 0 where that is unknown.
        style: Number of its colour and marker.
        dashes: Number of its dashes.
    """

    label: str
    points: Mapping[Any, tuple[float, float]]
    style: int = 0
    dashes: int = 0

    def without_errors(self) -> Line:
        """The curve alone: where an error is common to every point of it, a band would hide it."""
        points = {at: (value, 0.0) for at, (value, _) in self.points.items()}
        return Line(label=self.label, points=points, style=self.style, dashes=self.dashes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What stands around the curves.

    Attributes:
        x: Name and unit of the axis.
        y: Name and unit of the axis.
        caption: Below the figure.
        log_x: Logarithmic, with the points' own places as ticks where they are few.
        log_y: Logarithmic; None where the values span more than a factor of five.
        legend: Its title.
        level: A horizontal line to compare with.
        places: Vertical lines: x -> what the paper says of it.
        published: The paper's own curves.
    """

    x: str
    y: str
    caption: str
    log_x: bool = False
    log_y: bool | None = None
    legend: str = ""
    level: float | None = None
    places: Mapping[float, str] | None = None
    published: Sequence[Line] = ()


def draw_lines(lines: Sequence[Line], frame: Frame) -> Picture | None:
    """The curves in one figure; None where none has a point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line)
        for line in frame.published:
            xs = sorted(line.points)
            axes.plot(xs, [line.points[at][0] for at in xs], color=_GREY, linestyle=_DASHES[1], linewidth=1.4, label=line.label)
        if frame.level is not None:
            axes.axhline(frame.level, color=_GREY, linewidth=1.2, linestyle=_DASHES[2])
        for number, (at, words) in enumerate((frame.places or {}).items()):
            axes.axvline(at, color=_GREY, linewidth=1.2, linestyle=_DASHES[2], label=words if not number or words else None)
        _scale_y(axes, [value for line in lines for value, _ in line.points.values()], frame.log_y)
        if frame.log_x:
            _scale_log_x(axes, sorted({float(at) for line in lines for at in line.points}))
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(frame.x)
        axes.set_ylabel(frame.y)
        if len(lines) + len(frame.published) + len(frame.places or {}) > 1:
            outside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(lines) > 4 else {}
            axes.legend(title=frame.legend or None, alignment="left", handlelength=3.2, **outside)
        return Picture(svg=as_svg(figure, frame.caption), caption=frame.caption)


def draw_bars(rows: Sequence[TableRow], distance_name: str) -> Picture | None:
    """Distances of the trials beside each other, with one standard error: what a table without a figure is drawn as.

    Where they are of one kind with the paper's, its numbers are marked.
    """
    shown = [row for row in rows if row.distance.ours is not None]
    if not shown:
        return None
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(8.6, 0.9 + 0.42 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        places = list(range(len(shown)))[::-1]
        axes.barh(
            places,
            [float(row.distance.ours or 0.0) for row in shown],
            xerr=[row.distance.standard_error or 0.0 for row in shown],
            color=COLOURS[0],
            alpha=0.85,
            height=0.6,
            error_kw={"ecolor": "#111827", "capsize": 3},
            label="ours",
        )
        published = [
            (float(row.distance.paper or 0.0), at) for row, at in zip(shown, places, strict=True) if row.distance.difference is not None
        ]
        if published:
            axes.plot([value for value, _ in published], [at for _, at in published], "D", color=COLOURS[1], label="the paper's")
            axes.legend()
        axes.set_yticks(places, _names(shown))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{distance_name}, lower is better")
        caption = "The distance of every trial; the whisker is one standard error."
        return Picture(svg=as_svg(figure, caption), caption=caption)


def _names(rows: Sequence[TableRow]) -> list[str]:
    """The rows, each by what tells it apart."""
    columns = [name for name in rows[0].values if len({str(row.values.get(name)) for row in rows}) > 1]
    by_role = any("=" not in row.label for row in rows)
    if by_role or not columns:
        return [row.label for row in rows]
    return [", ".join(f"{COLUMN_WORDS.get(name, name)} {plain_word(row.values.get(name))}" for name in columns) for row in rows]


def _draw(axes: Axes, line: Line) -> None:
    xs = sorted(line.points)
    values, errors = [line.points[at][0] for at in xs], [line.points[at][1] for at in xs]
    colour = COLOURS[line.style % len(COLOURS)]
    axes.plot(
        xs,
        values,
        color=colour,
        linestyle=_DASHES[line.dashes % len(_DASHES)],
        marker=None if len(xs) > _MANY_POINTS else MARKERS[line.style % len(MARKERS)],
        markersize=5.5,
        linewidth=1.8,
        label=line.label,
    )
    if any(errors):
        low, high = ([v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0)


def _scale_y(axes: Axes, values: Sequence[float], log: bool | None) -> None:
    positive = [value for value in values if value > 0]
    if log or (log is None and len(positive) == len(values) and max(values) > 5 * min(values)):
        axes.set_yscale("log")
        if math.log10(max(positive) / min(positive)) < 3:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))


def _scale_log_x(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    if len(ticks) <= _FEW_TICKS and ticks[-1] < 1e6:
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    elif ticks[-1] < 1e6:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

"""Line charts of reports, as SVG inside a page.

Colours are those of Okabe and Ito, which readers with any colour vision can tell apart. Every line also has its own marker.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_INK, _GREY, _BLACK = "#334155", "#64748b", "#111827"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "iddpm",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#94a3b8",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
}
_MAX_LABELLED_TICKS = 12
_MAX_MARKED_POINTS = 40
_MAX_LINES_IN_AXES = 4
_WIDTH = 8.6
_MAX_LETTERS_BESIDE = 28
_LEGEND_LINE = 0.24


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A chart in a page, and its caption: what it shows, and which figure of the paper it corresponds to."""

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve.

    Attributes:
        label: Its name in the legend, which leaves out a curve without one.
        points: x -> y and its error; the error is 0 where it is unknown. Errors are drawn as a band.
        style: Index of its colour and marker.
        dashes: Index of its dash pattern.
        faint: Draw it thin and pale, as the background of another line; only a single point has a marker.
    """

    label: str
    points: Mapping[Any, tuple[float, float]]
    style: int = 0
    dashes: int = 0
    faint: bool = False

    def without_errors(self) -> Line:
        """Return the curve without its band, for errors that all its points share and that would hide its shape."""
        return replace(self, points={x: (y, 0.0) for x, (y, _) in self.points.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Axes, legend and reference lines of a chart.

    Attributes:
        x, y: Labels of the axes, with their units.
        caption: The text below the chart, which is also its description for screen readers.
        height: In inches; the width is the same for all charts.
        ticks: x -> its tick label; None labels each point's x on a logarithmic axis, if there are at most twelve.
        log_y: Logarithmic y axis; None makes it logarithmic if the values span more than a factor of five.
        level: y of a horizontal reference line.
        places: Vertical reference lines, x -> name.
        published: The paper's own curves, or curves to compare with, in grey.
        legend_beside: Put the legend right of the axes, where curves fill them.
        mark: A point to circle, and its name.
    """

    x: str
    y: str
    caption: str
    height: float = 4.2
    log_x: bool = False
    ticks: Mapping[float, str] | None = None
    log_y: bool | None = None
    legend: str = ""
    level: float | None = None
    places: Mapping[float, str] | None = None
    published: Sequence[Line] = ()
    legend_beside: bool = False
    mark: tuple[float, float, str] | None = None


def draw_lines(lines: Sequence[Line], chart: Chart) -> Picture | None:
    """Draw the curves in one chart; return None if no curve has a point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    with rc_context(STYLE):
        figure, axes = new_axes(chart.height)
        for line in lines:
            _draw(axes, line)
        for line in chart.published:
            xs = sorted(line.points)
            axes.plot(
                xs, [line.points[x][0] for x in xs], color=_GREY, linestyle=_DASHES[line.dashes or 1], linewidth=1.4, label=line.label
            )
        if chart.level is not None:
            axes.axhline(chart.level, color=_GREY, linewidth=1.2, linestyle=_DASHES[2])
        places = chart.places or {}
        for number, (x, name) in enumerate(places.items()):
            axes.axvline(x, color=_GREY, linewidth=1.2, linestyle=_DASHES[2], label=name if not number or name else None)
        _scale_y(axes, [y for line in lines for y, _ in line.points.values()], chart.log_y)
        xs = sorted({float(x) for line in lines for x in line.points})
        _scale_x(axes, xs, log=chart.log_x, ticks=chart.ticks)
        axes.set_xlabel(chart.x)
        axes.set_ylabel(chart.y)
        if chart.mark is not None:
            _mark(axes, *chart.mark, at_right=chart.mark[0] > 0.7 * xs[-1])
        num_named = sum(bool(line.label) for line in lines)
        if num_named + len(chart.published) + len(places) > 1 or chart.legend:
            _add_legend(figure, axes, chart.legend, outside=num_named > _MAX_LINES_IN_AXES or chart.legend_beside)
        return Picture(svg=as_svg(figure, chart.caption), caption=chart.caption)


def _add_legend(figure: Figure, axes: Axes, title: str, *, outside: bool) -> None:
    """Add the legend inside the axes, right of them, or below them where long names would leave too little width for the axes."""
    handles, labels = axes.get_legend_handles_labels()
    style: dict[str, Any] = {"title": title or None, "alignment": "left", "handlelength": 3.2}
    if outside and max(map(len, labels)) > _MAX_LETTERS_BESIDE:
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * len(labels))
        figure.legend(handles, labels, loc="outside lower left", **style)
    else:
        axes.legend(**style, **({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {}))


def new_axes(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of a page's width; call it inside `rc_context(STYLE)`."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _scale_y(axes: Axes, values: Sequence[float], log: bool | None) -> None:
    """Set the y axis: logarithmic with plain numbers, or linear; without `log`, the values decide (see `Chart.log_y`)."""
    positive = [value for value in values if value > 0]
    if log or (log is None and positive and len(positive) == len(values) and max(values) > 5 * min(values)):
        axes.set_yscale("log")
        if math.log10(max(positive) / min(positive)) < 3:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))


def as_svg(figure: Figure, description: str) -> str:
    """Return the figure as an SVG element: its text as text, and a description for readers who cannot see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def _draw(axes: Axes, line: Line) -> None:
    xs = sorted(line.points)
    ys, errors = [line.points[x][0] for x in xs], [line.points[x][1] for x in xs]
    colour = COLOURS[line.style % len(COLOURS)]
    dashes = _DASHES[(line.dashes + line.style // len(COLOURS)) % len(_DASHES)]  # of more lines than colours none looks like another
    axes.plot(
        xs,
        ys,
        color=colour,
        linestyle=dashes,
        marker=None if len(xs) > _MAX_MARKED_POINTS or (line.faint and len(xs) > 1) else _MARKERS[line.style % len(_MARKERS)],
        markersize=3 if line.faint else 5.5,
        linewidth=0.8 if line.faint else 1.8,
        alpha=0.4 if line.faint else 1.0,
        label=line.label,
    )
    if any(errors):
        low, high = ([y + sign * error for y, error in zip(ys, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.14, linewidth=0)


def _scale_x(axes: Axes, xs: Sequence[float], *, log: bool, ticks: Mapping[float, str] | None) -> None:
    few = len(xs) <= _MAX_LABELLED_TICKS and xs[-1] < 1e6
    if log:
        axes.set_xscale("log")
    if ticks or (log and few):
        ticks = ticks or {x: f"{x:,.0f}" for x in xs}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
    elif not log or xs[-1] < 1e6:
        if not log:
            axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))  # 22.5 would be labelled 22
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _mark(axes: Axes, x: float, y: float, name: str, *, at_right: bool) -> None:
    axes.plot([x], [y], "o", markersize=14, markerfacecolor="none", markeredgecolor=_BLACK, markeredgewidth=1.8)
    axes.annotate(
        name,
        (x, y),
        xytext=(0, 26),
        textcoords="offset points",
        ha="right" if at_right else "center",
        color=_BLACK,
        arrowprops={"arrowstyle": "-", "color": _BLACK, "shrinkB": 8},
    )

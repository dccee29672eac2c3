"""The figures of reports, as SVG to be put into a page.

Colours are Okabe and Ito's, which people with any colour vision tell apart; every line has a marker of its own too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
_INK = "#334155"
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
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
}

Score = Mapping[str, Any]


def distance_by_step(history: Sequence[Score], *, distance_name: str, chosen_step: int | None, chosen_weights: str | None) -> str:
    """Figure 7's question in one run: the score of each decay at each checkpoint, the chosen one marked.

    Args:
        history: Scores by step.
        distance_name: What the distance is called.
        chosen_step: Step of the chosen checkpoint, or None.
        chosen_weights: Which of its weights.
    """
    with rc_context(STYLE):
        figure, axes = _figure()
        names = list(dict.fromkeys(name for score in history for name in score["scores"]))
        for number, name in enumerate(names):
            points = [
                (int(score["step"]), score["scores"][name], (score.get("standard_errors") or {}).get(name))
                for score in history
                if score["scores"].get(name) is not None
            ]
            if not points:
                continue
            steps, values, errors = (np.array([point[i] for point in points], dtype=float) for i in range(3))
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(steps, values, color=colour, marker=marker, markersize=5, linewidth=1.8, label=_weights_words(name))
            if np.isfinite(errors).any():
                axes.fill_between(steps, values - errors, values + errors, color=colour, alpha=0.15, linewidth=0)
            if chosen_step is not None and name == chosen_weights and chosen_step in steps:
                value = float(values[list(steps).index(chosen_step)])
                axes.plot(
                    [chosen_step], [value], "o", markersize=14, markerfacecolor="none", markeredgecolor="#111827", markeredgewidth=1.8
                )
                axes.annotate(
                    f"chosen: step {chosen_step:,}",
                    (chosen_step, value),
                    xytext=(0, 26),
                    textcoords="offset points",
                    ha="right" if chosen_step > 0.7 * max(steps) else "center",
                    color="#111827",
                    arrowprops={"arrowstyle": "-", "color": "#111827", "shrinkB": 8},
                )
        finite = [value for score in history for value in score["scores"].values() if value is not None and value > 0]
        _log_if_wide(axes, finite)
        axes.set_xlabel("training step")
        axes.set_ylabel(f"{distance_name}, lower is better")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend(title="weights averaged with", alignment="left")
        return as_svg(figure, f"{distance_name} by training step, a line for each decay")


def distance_by_decay(lines: Mapping[str, Sequence[tuple[float, float, float | None]]], *, distance_name: str) -> str:
    """Supplement figure 7 at single checkpoints: the distance over how long the weights are averaged.

    Args:
        lines: By name, such as "step 20,000": (decay, distance, its standard error or None), by decay.
        distance_name: What the distance is called.
    """
    with rc_context(STYLE):
        figure, axes = _figure()
        for number, (name, points) in enumerate(lines.items()):
            lengths = np.array([1 / (1 - decay) for decay, _, _ in points])
            values, errors = (np.array([point[i] for point in points], dtype=float) for i in (1, 2))
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.errorbar(lengths, values, yerr=errors, color=colour, marker=marker, markersize=5, linewidth=1.8, capsize=3, label=name)
        decays = sorted({decay for points in lines.values() for decay, _, _ in points})
        axes.set_xscale("log")
        axes.set_xticks([1 / (1 - decay) for decay in decays], [f"{decay:g}" for decay in decays])
        axes.xaxis.set_minor_formatter(NullFormatter())
        _log_if_wide(axes, [value for points in lines.values() for _, value, _ in points if value > 0])
        axes.set_xlabel("decay of the average (equal steps are equal factors of the number of updates averaged)")
        axes.set_ylabel(f"{distance_name}, lower is better")
        if len(lines) > 1:
            axes.legend()
        return as_svg(figure, f"{distance_name} by decay of the average")


def loss_by_step(losses: Sequence[tuple[int, float]], *, objective: str) -> str:
    """The training loss: every logged value, and its running mean.

    Args:
        losses: (step, loss), by step.
        objective: "simple", "vlb" or "hybrid".
    """
    with rc_context(STYLE):
        figure, axes = _figure(height=2.9)
        steps, values = np.array([s for s, _ in losses], dtype=float), np.array([v for _, v in losses], dtype=float)
        window = max(1, len(values) // 40)
        # Few points are a line of their own; many are the pale background of their mean.
        look: Any = {"alpha": 0.25, "linewidth": 0.8} if window > 1 else {"linewidth": 2, "marker": "o", "markersize": 3}
        axes.plot(steps, values, color=COLOURS[0], label="each logged value", **look)
        if window > 1:
            kernel = np.ones(window) / window
            axes.plot(steps[window - 1 :], np.convolve(values, kernel, "valid"), color=COLOURS[0], linewidth=2, label=f"mean of {window}")
        _log_if_wide(axes, [float(value) for value in values if value > 0])
        axes.set_xlabel("training step")
        axes.set_ylabel(f"training loss L_{objective}")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend()
        return as_svg(figure, "Training loss by step")


def bound_by_timestep(timesteps: Sequence[int], terms: Sequence[float]) -> str:
    """Where the bits are: the terms of the variational bound by t.

    Args:
        timesteps: Original timesteps, from 0.
        terms: Bits/dim of each.
    """
    with rc_context(STYLE):
        figure, axes = _figure(height=2.9)
        axes.plot(np.array(timesteps) + 1, terms, color=COLOURS[0], linewidth=1.6, marker="o" if len(terms) < 60 else None, markersize=3)
        axes.set_xscale("log")
        _log_if_wide(axes, [float(term) for term in terms if term > 0])
        axes.set_xlabel("timestep t (1 is the least noise)")
        axes.set_ylabel("term of the bound, bits/dim")
        return as_svg(figure, "Terms of the variational bound by timestep")


def _figure(width: float = 8.6, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers where values span more than a factor of five."""
    if len(values) > 1 and max(values) > 5 * min(values):
        axes.set_yscale("log")
        decades = math.log10(max(values) / min(values))
        if decades < 3:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))


def _weights_words(name: str) -> str:
    return f"decay {name.removeprefix('ema_')}" if name.startswith("ema_") else name


def as_svg(figure: Figure, description: str) -> str:
    """The drawing as an element of a page, its text as text, with the description for those who can't see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    start = text.index("<svg")
    return text[start:].replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)

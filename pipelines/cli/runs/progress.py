"""The table of `iddpm runs`: pipelines' runs with their trainings below them, and `--watch`, which shows it again and again."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from pipelines.cli.options import format_time, out, table
from pipelines.client.errors import KfpError
from training.config.errors import UserError
from training.console import format_duration
from training.tracking.trainings import Training

_WIDTH = 100
_TRIAL_WIDTH = 60
"""Room for the longest label of the paper's ablations, with the seed at its end."""
_SILENT_SECONDS = 600.0
"""A running training that has logged nothing for longer is shown as silent. The webhook waits longer before it tells of it."""
_WATCH_SECONDS = 5.0
_HEADS = ("training", "state", "updates", "images/s", "best score", "card-hours", "GPU")


def run_lines(runs: Sequence[dict[str, Any]], trainings: Sequence[Training], price_per_hour: float | None) -> list[str]:
    """Return the pipelines' runs as KFP lists them, each with its trainings below it."""
    if not runs:
        return []
    heads = table([(run["run_id"], run["state"], format_time(run["created"]), run["pipeline"], run["name"]) for run in runs])
    by_run = [[each for each in trainings if each.pipeline_run_id == run["run_id"]] for run in runs]
    shown = list(itertools.chain(*by_run))
    if not shown:
        return heads
    titles, *rows = training_lines(shown, price_per_hour, indent=2)
    lines = [titles]
    for head, own in zip(heads, by_run, strict=True):
        lines += [head, *rows[: len(own)]]
        rows = rows[len(own) :]
    return lines


def training_lines(trainings: Sequence[Training], price_per_hour: float | None = None, *, indent: int = 0) -> list[str]:
    """Return a table of trainings, at most 100 characters wide but for trial labels. A long key loses its middle, never its digits."""
    if not trainings:
        return []
    heads = [head if head != "card-hours" or price_per_hour is None else "cost" for head in _HEADS]
    rows = [heads, *(_cells(each, price_per_hour) for each in _with_short_trials(trainings))]
    filled = [column for column in range(len(heads)) if any(row[column] for row in rows[1:])]
    rest = sum(2 + max(len(row[column]) for row in rows) for column in filled[1:])
    names = [_shorten(row[0], _WIDTH - indent - rest) for row in rows]
    lines = table([(name, *(row[column] for column in filled[1:])) for name, row in zip(names, rows, strict=True)])
    return [" " * indent + line for line in lines]


def _with_short_trials(trainings: Sequence[Training]) -> list[Training]:
    """Shorten the trials' labels: leave out settings that all trials share, and of a setting that is a word, its name. Words come first."""
    settings = [each.trial.split() for each in trainings if each.trial]
    shared = set(settings[0]).intersection(*settings) if len(settings) > 1 else set()

    def shorten(label: str) -> str:
        parts = [part.rpartition("=") for part in label.split() if part not in shared]
        words = [value for _, _, value in parts if speaks(value)]
        return " ".join([*words, *("".join(part) for part in parts if not speaks(part[2]))])

    def speaks(value: str) -> bool:
        return value[:1].isalpha() and value.lower() not in ("true", "false", "none")

    return [dataclasses.replace(each, trial=shorten(each.trial)) for each in trainings]


def watch(lines: Callable[[], list[str]]) -> None:
    """Show lines again every five seconds until Ctrl-C: in place on a terminal, else one after the other without control characters.

    An error ends it at the first look. Later errors are shown, and it goes on: MLflow may be starting again.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, first = Console(), lines()

    def look() -> list[str]:
        nonlocal first
        try:
            found, first = first or lines(), []
        except (UserError, KfpError) as error:
            return [f"error: {error}; trying again"]
        return found

    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            while True:
                for line in (f"{datetime.now():%H:%M:%S}", *look(), ""):
                    out(line)
                time.sleep(_WATCH_SECONDS)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                text = "\n".join([*look(), "", f"{datetime.now():%H:%M:%S}, Ctrl-C ends"])
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
                time.sleep(_WATCH_SECONDS)


def _cells(training: Training, price_per_hour: float | None) -> list[str]:
    rate, best, hours, in_all = training.images_per_second, training.best_score, training.card_hours, training.card_hours_in_all
    price = 1.0 if price_per_hour is None else price_per_hour
    return [
        training.key + (f" {training.trial}" if training.trial else ""),
        _state(training),
        f"{_count(training.step, training.num_steps)}/{_count(training.num_steps, training.num_steps)}",
        "" if rate is None else f"{rate:,.0f}" if rate >= 99.5 else f"{rate:.3g}",
        "" if best is None else f"{best:.4g} @ {_count(training.best_step or 0, training.num_steps)}",
        "" if hours is None or in_all is None else f"{_amount(hours * price)} of {_amount(in_all * price)}",
        "" if training.gpu_share is None else f"{training.gpu_share:.0%}",
    ]


def _state(training: Training) -> str:
    if training.silent_seconds is not None and training.silent_seconds > _SILENT_SECONDS:
        return f"silent {format_duration(training.silent_seconds)}"
    return training.state if training.seconds_left is None else f"{format_duration(training.seconds_left)} left"


def _count(number: int, total: int) -> str:
    if total < 100_000 or number < 1000:
        return f"{number:,}"
    return f"{number / 1000:,.0f}k" if total < 1_000_000 or number < 100_000 else f"{number / 1e6:.2f}M"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def _shorten(name: str, width: int) -> str:
    """Return a run key and its trial in `width` characters. The key keeps its ten digits, by which a run is found.

    A trial keeps 60 characters even if that is wider: its last digits may be all that tells it from the next one.
    """
    if len(name) <= width:
        return name
    key, _, trial = name.partition(" ")
    found = re.search(r"[0-9a-f]{10}(-[0-9]+)?$", key)
    end = found[0] if found else key[-10:]
    if not trial:
        return f"{key[: width - len(end) - 2]}…-{end}"
    room = max(width - len(end) - 2, _TRIAL_WIDTH)
    return f"…{end} {trial if len(trial) <= room else trial[: room - 1] + '…'}"

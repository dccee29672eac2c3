"""The table of an ablation: our numbers, the paper's, and their difference where both are the same quantity."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.ablations.definitions.ablation import Setting, format_overrides, format_value
from evaluation.ablations.definitions.request import OBJECTIVES, AblationRequest
from evaluation.ablations.trials.record import AblationTrial
from evaluation.records.intervals import mean_interval
from evaluation.records.numbers import NONE, format_estimate
from evaluation.reports.paper_numbers import OTHER_MODELS
from training.config.presets import find_preset, preset
from training.config.tables.row import PaperResult

COLUMN_TITLES = {
    "num_timesteps": "T",
    "vlb_weight": "lambda",
    "stop_gradient": "stop-gradient",
    "global_batch_size": "batch",
    "learning_rate": "learning rate",
    "image_size": "pixels",
    "low_res_size": "enlarges",
    "data": "data set",
}
"""Titles of columns that are not named after their field."""
_JOINT_RESULTS = {
    "ensemble": ("imagenet64-hybrid-cosine-1500k", "ensemble"),
    "two-stage": ("imagenet256-upsampler-hybrid-linear", "two-stage"),
}
"""Role of a joint measurement -> preset whose results include it, and a word of that result's source."""
_JOINT_SOURCES = ("supplement section 4", "supplement table 2, two-stage")
"""Sources of results that a preset shares with another model."""
_PREFERRED_SOURCES = {"hybrid-weight": "supplement table 1"}
"""The ablation's own table, for an experiment that two tables of the paper report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableNumber:
    """Our number and the paper's; None where there is none. `comparable` numbers are the same quantity on the same images.

    With `seeds`, the number of each seed, ours is their mean, and the standard error is that of the mean.
    """

    ours: float | None = None
    standard_error: float | None = None
    paper: float | None = None
    comparable: bool = False
    seeds: tuple[float, ...] = ()

    @property
    def error(self) -> float | None:
        """The number after "±": one standard error, or for a mean over seeds half the width of its 95% interval."""
        if not self.seeds:
            return self.standard_error
        return float(mean_interval(self.seeds)[1]) if len(self.seeds) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None where one is missing or the two are not comparable."""
        if self.ours is None or self.paper is None or not self.comparable:
            return None
        return self.ours - self.paper


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """A row of the table.

    Attributes:
        label: Label of the trial, or name of a published model.
        values: Column -> value of what the ablation varies.
        weights: Step and name of the evaluated weights.
        source: Where the paper reports its numbers; empty where it reports none.
        error: Why the trial failed; empty where it did not, or not with every seed.
        seeds: How many of its seeds have finished, like "4 of 5"; empty for an ablation without repeated seeds.
    """

    label: str
    values: Mapping[str, Any]
    distance: TableNumber
    bits_per_dim: TableNumber
    weights: str = ""
    source: str = ""
    error: str = ""
    run_uri: str = ""
    seeds: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return one flat row for CSV and JSON."""
        flat: dict[str, Any] = {"trial": self.label, **{name: format_value(value) for name, value in self.values.items()}}
        for name, number in (("distance", self.distance), ("bits_per_dim", self.bits_per_dim)):
            flat |= {
                name: number.ours,
                f"{name}_standard_error": number.standard_error,
                f"{name}_paper": number.paper,
                f"{name}_difference": number.difference,
            }
            if self.seeds:
                flat |= {f"{name}_interval": number.error, f"{name}_by_seed": " ".join(map(str, number.seeds))}
        flat |= {"seeds": self.seeds} if self.seeds else {}
        return {**flat, "weights": self.weights, "paper_source": self.source, "error": self.error, "run_uri": self.run_uri}


def table_rows(request: AblationRequest, records: Sequence[AblationTrial]) -> list[TableRow]:
    """Return a row for each setting, then a row for each model of other papers that the paper's table cites.

    The records are in the order of the trials; joint measurements come last.
    """
    experiments = {record.label: record.experiment for record in reversed(records)}
    # A run that the user names may have another experiment than the trial. A joint measurement needs the planned experiment in all runs.
    as_planned = {
        trial.label: not trial.run_uri or trial.experiment.to_dict() == experiments.get(trial.label, {}) for trial in request.trials()
    }
    as_paper = request.scale == "paper" and not request.changes
    settings: dict[str, list[AblationTrial]] = {}
    for record in records:
        settings.setdefault(record.setting, []).append(record)
    rows = [
        _row(
            of_setting,
            reported(request, index, of_setting[0]),
            comparable=as_paper and all(as_planned.get(record.label, all(as_planned.values())) for record in of_setting),
        )
        for index, of_setting in enumerate(settings.values())
    ]
    if request.ablation().joint == "cascade":
        rows += [
            TableRow(label=other.model, values={}, distance=TableNumber(paper=other.fid), bits_per_dim=TableNumber(), source=other.source)
            for other in OTHER_MODELS[("imagenet", 256, True)]
        ]
    return rows


def reported(request: AblationRequest, index: int, record: AblationTrial) -> PaperResult | None:
    """Return the paper's result for a trial. At the small and tiny scales it is that of the paper's trial which the trial repeats.

    That is the paper's trial with the same objective and schedule; of several, the n-th one for the n-th such trial. There is no result
    for what the paper did not do: a user's grid, another objective, or at these scales another preset.

    Args:
        index: The trial's place among the settings of the request's scale.
    """
    if request.grid or request.objective != OBJECTIVES[0] or (request.varies_another and request.scale != "paper"):
        return None
    if record.role in _JOINT_RESULTS:
        name, word = _JOINT_RESULTS[record.role]
        return next(result for result in find_preset(name).results if word in result.where)
    name, overrides = record.preset, record.own
    if request.scale != "paper":
        setting = _of_paper(request, index)
        if setting is None:
            return None
        name, overrides = setting.preset, format_overrides(setting.overrides)
    experiment = preset(name, overrides)
    results = [
        result
        for result in find_preset(name).results
        if preset(name, result.overrides) == experiment and (result.fid is not None or result.bits_per_dim is not None)
    ]
    first = min(results, key=lambda result: result.where != _PREFERRED_SOURCES.get(request.name), default=None)
    return None if first is None or first.where.startswith(_JOINT_SOURCES) else first


def _of_paper(request: AblationRequest, index: int) -> Setting | None:
    """Return the paper's setting that a setting of another scale repeats; None where the paper has fewer of its kind.

    A kind is an objective and a schedule. Where the paper has several data sets, the one that has most of the table's kinds comes first.
    """

    def kind(setting: Setting) -> tuple[str, str]:
        diffusion = preset(setting.preset, format_overrides(setting.overrides)).diffusion
        return diffusion.objective, diffusion.schedule

    ablation = request.ablation()
    kinds = [kind(setting) for setting in ablation.settings(request.scale)]
    by_data: dict[str, list[Setting]] = {}
    for setting in ablation.paper:
        by_data.setdefault(find_preset(setting.preset).experiment.data.name, []).append(setting)
    ordered = sorted(by_data.values(), key=lambda settings: -len(set(kinds) & set(map(kind, settings))))
    same = [setting for settings in ordered for setting in settings if kind(setting) == kinds[index]]
    place = kinds[:index].count(kinds[index])
    return same[place] if place < len(same) else None


def headers(columns: Sequence[str], distance_name: str, rows: Sequence[TableRow]) -> list[str]:
    """Return the headers: the varied `columns`, the distance and bits/dim. A paper's or difference column needs a row with a number."""
    titles = ["trial", *(COLUMN_TITLES.get(column, column) for column in columns)]
    for title, paper_title, numbers in (
        (distance_name, "the paper's FID", [row.distance for row in rows]),
        ("bits/dim", "the paper's", [row.bits_per_dim for row in rows]),
    ):
        titles += [title, *([paper_title] if any_paper(numbers) else []), *(["difference"] if _any_difference(numbers) else [])]
    return [*titles, *(["seeds"] if any(row.seeds for row in rows) else []), "weights"]


def cells(columns: Sequence[str], rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Return the kind and the cells of each row, in the order of `headers`. Without any reported number there are no rows."""
    if not any(row.distance.ours is not None or row.bits_per_dim.ours is not None or row.error for row in rows):
        return []
    table = []
    distances, bits = [row.distance for row in rows], [row.bits_per_dim for row in rows]
    for number, row in enumerate(rows, start=1):
        line = [row.label if not row.values or "=" not in row.label else str(number)]
        line += [format_cell(row.values.get(column)) for column in columns]
        line += ["failed", *_number_cells(row.distance, distances)[1:]] if row.error else _number_cells(row.distance, distances)
        line += _number_cells(row.bits_per_dim, bits, paper_format="{:.2f}")
        kind = "failed" if row.error else "cited" if row.distance.ours is None and not row.weights else ""
        table.append({"kind": kind, "cells": [*line, *([row.seeds] if any(one.seeds for one in rows) else []), row.weights]})
    return table


def any_paper(numbers: Sequence[TableNumber]) -> bool:
    """Return True if the paper reports one of the numbers."""
    return any(number.paper is not None for number in numbers)


def _any_difference(numbers: Sequence[TableNumber]) -> bool:
    return any(number.difference is not None for number in numbers)


def _number_cells(number: TableNumber, column: Sequence[TableNumber], paper_format: str = "{}") -> list[str]:
    """Return our number, then the paper's as the paper prints it and the difference, where the column has any."""
    line = [format_estimate(number.ours, number.error)]
    if any_paper(column):
        line.append(NONE if number.paper is None else paper_format.format(float(number.paper)))
    if _any_difference(column):
        line.append(NONE if number.difference is None else f"{number.difference:+.3g}")
    return line


def format_cell(value: Any) -> str:
    """Format a setting's value for a reader; empty for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else format_value(value)


def _row(records: Sequence[AblationTrial], result: PaperResult | None, *, comparable: bool) -> TableRow:
    """Return the row of a setting: of its trial, or of its seeds."""
    first, repeated = records[0], records[0].seed is not None
    done = [record for record in records if not record.error]
    finals = [record.final or {} for record in done or records]
    name = next((final["distance_name"] for final in finals if final), "")
    return TableRow(
        label=first.setting,
        values=first.values,
        distance=_number(
            [(final.get("distance"), final.get("distance_standard_error")) for final in finals],
            result.fid if result else None,
            comparable=comparable and name == "FID",
            repeated=repeated,
        ),
        bits_per_dim=_number(
            [(one.get("bits_per_dim"), one.get("standard_error")) for one in (final.get("likelihood") or {} for final in finals)],
            result.bits_per_dim if result else None,
            comparable=comparable,
            repeated=repeated,
        ),
        weights=_evaluated([record for record in records if record.weights]),
        source=result.where if result else "",
        error="" if done else first.error,
        run_uri=" ".join(record.run_uri for record in records if record.run_uri),
        seeds=f"{len(done)} of {len(records)}" if repeated else "",
    )


def _number(
    estimates: Sequence[tuple[float | None, float | None]], paper: float | None, *, comparable: bool, repeated: bool
) -> TableNumber:
    """Return a trial's number, or the mean over seeds with its standard error."""
    if not repeated:
        ((ours, error),) = estimates
        return TableNumber(ours=ours, standard_error=error, paper=paper, comparable=comparable)
    values = tuple(value for value, _ in estimates if value is not None)
    return TableNumber(
        ours=statistics.fmean(values) if values else None,
        standard_error=statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        paper=paper,
        comparable=comparable,
        seeds=values,
    )


def _evaluated(records: Sequence[AblationTrial]) -> str:
    """Return the steps and names of the evaluated weights; those of several seeds as a range, as each seed has its own best."""
    if not records:
        return ""
    first, last = min(record.step for record in records), max(record.step for record in records)
    steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
    return f"{steps}, {' or '.join(sorted({record.weights for record in records}))}"

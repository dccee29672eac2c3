"""The table of an ablation: ours, the paper's, and the difference where the two are of one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.ablations.definitions.ablation import plain_word
from evaluation.ablations.definitions.request import OBJECTIVES, AblationRequest
from evaluation.ablations.trials.record import TrialRecord
from evaluation.reports import paper_numbers as paper
from training.config.preset_table import PaperResult
from training.config.presets import cited, preset

_JOINT_RESULTS = {
    "ensemble": ("imagenet64-hybrid-cosine-1500k", "ensemble"),
    "two-stage": ("imagenet256-upsampler-hybrid-linear", "two-stage"),
}
COLUMN_WORDS = {
    "num_timesteps": "T",
    "vlb_weight": "lambda",
    "stop_gradient": "stop-gradient",
    "global_batch_size": "batch",
    "learning_rate": "learning rate",
    "image_size": "pixels",
    "low_res_size": "enlarges",
    "data": "data set",
}
"""Columns that are called otherwise than their fields."""
NOTHING = "-"
"""What a cell says that has no number."""
_PREFERRED = {"hybrid-weight": "supplement table 1"}
"""Where two tables of the paper report one experiment, the ablation's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One number of ours beside the paper's.

    Attributes:
        ours: None where it was not taken.
        standard_error: Of ours; None if unknown.
        paper: None where the paper reports none.
        comparable: Whether both are the same quantity on the same images.
    """

    ours: float | None = None
    standard_error: float | None = None
    paper: float | None = None
    comparable: bool = False

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, where that means something."""
        if self.ours is None or self.paper is None or not self.comparable:
            return None
        return self.ours - self.paper


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """A row of the table.

    Attributes:
        label: The trial, in words; of a published model, its name.
        values: What it varies, by column.
        distance: The Frechet distance.
        bits_per_dim: The likelihood.
        weights: Which weights of which step.
        where: Where the paper reports its numbers; empty where it does not.
        error: Why it failed.
        run_uri: Its run.
    """

    label: str
    values: Mapping[str, Any]
    distance: Number
    bits_per_dim: Number
    weights: str = ""
    where: str = ""
    error: str = ""
    run_uri: str = ""

    def to_dict(self) -> dict[str, Any]:
        """One flat row, as CSV and JSON carry it."""
        flat: dict[str, Any] = {"trial": self.label, **{name: plain_word(value) for name, value in self.values.items()}}
        for name, number in (("distance", self.distance), ("bits_per_dim", self.bits_per_dim)):
            flat |= {
                name: number.ours,
                f"{name}_standard_error": number.standard_error,
                f"{name}_paper": number.paper,
                f"{name}_difference": number.difference,
            }
        return {**flat, "weights": self.weights, "paper_source": self.where, "error": self.error, "run_uri": self.run_uri}


def table_rows(request: AblationRequest, records: Sequence[TrialRecord]) -> list[TableRow]:
    """A row for each record, then those of other people's models that the paper's table cites.

    Args:
        request: The ablation.
        records: In the order of the trials; what was taken of several comes last.
    """
    as_planned = {
        trial.label: not trial.run_uri or trial.experiment.to_dict() == _experiment(records, trial.label) for trial in request.trials()
    }
    same = request.scale == "paper" and not request.changes
    # What is taken of several is the paper's where each of them is.
    rows = [
        _row(request, index, record, same=same and as_planned.get(record.label, all(as_planned.values())))
        for index, record in enumerate(records)
    ]
    if request.ablation().joint == "cascade":
        rows += [
            TableRow(label=other.model, values={}, distance=Number(paper=other.fid), bits_per_dim=Number(), where=other.source)
            for other in paper.OTHERS[("imagenet", 256, True)]
        ]
    return rows


def reported(request: AblationRequest, index: int, record: TrialRecord) -> PaperResult | None:
    """What the paper reports of a trial; at the tiny scale, of the trial in its place at the paper's scale.

    Nothing of what the paper did not do: a grid of one's own, another objective, at the tiny scale another experiment.
    """
    if request.grid or request.objective != OBJECTIVES[0] or (request.varies_another and request.scale == "tiny"):
        return None
    if record.role in _JOINT_RESULTS:
        name, word = _JOINT_RESULTS[record.role]
        return next(result for result in cited(name).results if word in result.where)
    ablation = request.ablation()
    if request.scale == "tiny":
        if index >= len(ablation.paper):
            return None
        name, own = ablation.paper[index].preset, [f"{path}={plain_word(value)}" for path, value in ablation.paper[index].overrides.items()]
    else:
        name, own = record.preset, list(record.own)
    experiment = preset(name, own)
    found = [result for result in cited(name).results if preset(name, result.overrides) == experiment]
    preferred = [result for result in found if result.where == _PREFERRED.get(request.name)]
    told = [result for result in (*preferred, *found) if result.fid is not None or result.bits_per_dim is not None]
    # Several results of one preset that change nothing in it are of it and something else, but for the first.
    return told[0] if told and not told[0].where.startswith(("supplement section 4", "supplement table 2, two-stage")) else None


def shown(value: float | None, error: float | None = None) -> str:
    """A number and its error to the error's second digit, or the number alone to four digits; a dash where there is none."""
    if value is None:
        return NOTHING
    if error is None or not error > 0:
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def distance_name(records: Sequence[TrialRecord]) -> str:
    """What the distance of these records is called."""
    for record in records:
        if record.final:
            return str(record.final["distance_name"])
        for measure in ("sampling-steps", "figure-1"):
            if record.measures.get(measure):
                return str(record.measures[measure]["distance_name"])
    return "distance"


def _experiment(records: Sequence[TrialRecord], label: str) -> Mapping[str, Any]:
    return next((record.experiment for record in records if record.label == label), {})


def _row(request: AblationRequest, index: int, record: TrialRecord, *, same: bool) -> TableRow:
    result = reported(request, index, record)
    final, likelihood = record.final or {}, (record.final or {}).get("likelihood") or {}
    return TableRow(
        label=record.label,
        values=record.values,
        distance=Number(
            ours=final.get("distance"),
            standard_error=final.get("distance_standard_error"),
            paper=result.fid if result else None,
            comparable=same and final.get("distance_name") == "FID",
        ),
        bits_per_dim=Number(
            ours=likelihood.get("bits_per_dim"),
            standard_error=likelihood.get("standard_error"),
            paper=result.bits_per_dim if result else None,
            comparable=same,
        ),
        weights=f"step {record.step:,}, {record.weights}" if record.weights else "",
        where=result.where if result else "",
        error=record.error,
        run_uri=record.run_uri,
    )

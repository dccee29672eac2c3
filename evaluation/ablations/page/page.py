"""The page of an ablation: self-contained, the same in the KFP UI, in MLflow and on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.ablations.claims.claim import Finding
from evaluation.ablations.claims.findings import findings
from evaluation.ablations.definitions.ablation import plain_word
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.page.drawing import Picture
from evaluation.ablations.page.figures import pictures
from evaluation.ablations.page.sample_grids import sample_grids
from evaluation.ablations.page.table import COLUMN_WORDS, NOTHING, Number, TableRow, distance_name, shown
from evaluation.ablations.trials.record import TrialRecord

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(
    request: AblationRequest,
    records: Sequence[TrialRecord],
    rows: Sequence[TableRow],
    *,
    drawn: Sequence[Picture],
    found: Sequence[Finding],
    links: Mapping[str, str],
) -> str:
    """The page as HTML; every word is escaped.

    Args:
        request: The ablation.
        records: Of its trials, failed ones too.
        rows: The table.
        drawn: The figures.
        found: What the numbers say of the paper's claims.
        links: Words -> address.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        _TEMPLATE.read_text()
    )
    ablation = request.ablation()
    columns = [name for name in (request.trials()[0].values) if name]
    name = distance_name(records)
    table = _table(rows, columns)
    return template.render(
        name=request.name,
        title=ablation.title,
        source=ablation.source,
        scale=request.scale,
        scale_words=_scale_words(request),
        data_words=_data_words(records),
        distance_words=_distance_words(name, rows),
        failures=[record for record in records if record.error],
        findings=found,
        table=table,
        headers=_headers(columns, name, rows) if table else [],
        num_words=1 + len(columns),
        notes=_notes(request, rows),
        pictures=drawn,
        points=_points(records),
        grids=sample_grids(records),
        card=_card(records),
        command=request.command(),
        links=dict(links),
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )


def parts(request: AblationRequest, records: Sequence[TrialRecord], rows: Sequence[TableRow]) -> tuple[list[Picture], list[Finding]]:
    """The figures and findings of an ablation."""
    return pictures(request, records, rows), findings(request.name if not request.grid else "", records)


def _scale_words(request: AblationRequest) -> str:
    if request.grid:
        told = f"A grid of one's own over {request.preset}."
    elif request.varies_another:
        told = f"The paper's grid over another experiment than its own, {request.preset}."
    elif request.scale == "paper":
        told = "The paper's scale."
    else:
        told = "The tiny scale: the paper's grid on handwritten digits, every count of timesteps divided by ten."
    if request.runs:
        told += f" Runs of one's own: {', '.join(f'{role} is {uri}' for role, uri in request.runs.items())}."
    return told + (f" With changes: {', '.join(request.changes)}." if request.changes else "")


def _data_words(records: Sequence[TrialRecord]) -> str:
    told = {
        (
            data["name"],
            data["image_size"],
            data["num_images"],
        ): f"{data['num_images']:,} training images of {data['name']}, {data['image_size']}x{data['image_size']}"
        for data in (record.data for record in records)
        if data
    }
    steps = [record.experiment["optim"]["num_steps"] for record in records if record.experiment]
    length = f", trained for {min(steps):,}{f' to {max(steps):,}' if max(steps) > min(steps) else ''} updates" if steps else ""
    return f"{'; '.join(told.values())}{length}." if told else "No trial has finished."


def _distance_words(name: str, rows: Sequence[TableRow]) -> str:
    if name in ("distance", "FID"):
        return ""
    told = (
        f"{name} is a Frechet distance in the features of another network than Inception: not an FID. It compares with no published number"
    )
    return told + ("; the paper's stand beside ours to show the order that they have." if _with_paper(_distances(rows)) else ".")


def _headers(columns: Sequence[str], name: str, rows: Sequence[TableRow]) -> list[str]:
    headers = ["trial", *(COLUMN_WORDS.get(column, column) for column in columns)]
    for title, reported, numbers in ((name, "the paper's FID", _distances(rows)), ("bits/dim", "the paper's", _bits(rows))):
        headers += [title, *([reported] if _with_paper(numbers) else []), *(["difference"] if _with_differences(numbers) else [])]
    return [*headers, "weights"]


def _distances(rows: Sequence[TableRow]) -> list[Number]:
    return [row.distance for row in rows]


def _bits(rows: Sequence[TableRow]) -> list[Number]:
    return [row.bits_per_dim for row in rows]


def _with_paper(numbers: Sequence[Number]) -> bool:
    return any(number.paper is not None for number in numbers)


def _with_differences(numbers: Sequence[Number]) -> bool:
    return any(number.difference is not None for number in numbers)


def _table(rows: Sequence[TableRow], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Cells by row; nothing where no trial has a reported number."""
    if not any(row.distance.ours is not None or row.error for row in rows):
        return []
    table = []
    for number, row in enumerate(rows, start=1):
        cells = [row.label if not row.values or "=" not in row.label else str(number)]
        cells += [_cell(row.values.get(column)) for column in columns]
        for one, numbers in ((row.distance, _distances(rows)), (row.bits_per_dim, _bits(rows))):
            cells.append("failed" if row.error and one is row.distance else shown(one.ours, one.standard_error))
            cells += [_published(one, likelihood=one is row.bits_per_dim)] if _with_paper(numbers) else []
            cells += [NOTHING if one.difference is None else f"{one.difference:+.3g}"] if _with_differences(numbers) else []
        kind = "failed" if row.error else "cited" if row.distance.ours is None and not row.weights else "ours"
        table.append({"kind": kind, "cells": [*cells, row.weights]})
    return table


def _published(number: Number, *, likelihood: bool) -> str:
    """The paper's number as it prints it: bits/dim to two places, an FID as it comes."""
    if number.paper is None:
        return NOTHING
    return f"{number.paper:.2f}" if likelihood else str(float(number.paper))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else plain_word(value)


def _notes(request: AblationRequest, rows: Sequence[TableRow]) -> list[str]:
    notes = [
        "Numbers after ± are one standard error: of a distance over the draw of the samples, of bits/dim over images, noise and timesteps."
    ]
    looked = {"last": "the last checkpoint", "best": "the best checkpoint by distance"}
    notes.append(f"Of each run: {looked[request.ablation().looks_at]}.")
    if request.ablation().joint == "cascade":
        notes.append("The second stage alone enlarges real images that were made small; two-stage, the first stage's samples.")
    sources = sorted({row.where for row in rows if row.where})
    if sources:
        notes.append(f"The paper's numbers: {'; '.join(sources)}.")
        if request.scale == "tiny":
            notes.append("They are of other images, other networks and (FID) other features, so no difference is taken.")
    return notes


def _points(records: Sequence[TrialRecord]) -> dict[str, Any] | None:
    """The curves' points as a table, for who wants to read them off."""
    rows = []
    for record in records:
        for measure, number, kind, value in (
            ("sampling-steps", "num_steps", "method", "distance"),
            ("figure-1", "num_steps", "method", "distance"),
            ("likelihood-steps", "num_steps", "spacing", "bits_per_dim"),
            ("history-likelihood", "step", None, "bits_per_dim"),
            ("raw-weights", None, "weights", "distance"),
        ):
            for point in (record.measures.get(measure) or {}).get("points", ()):
                rows.append(
                    [
                        record.label,
                        point[kind] if kind else "bits/dim in training",
                        f"{point[number]:,}" if number else f"step {record.measures[measure]['step']:,}",
                        shown(point[value], point.get("standard_error")),
                    ]
                )
    return {"headers": ["trial", "curve", "steps", "value"], "rows": rows} if rows else None


def _card(records: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    """The protocol in words: of the reported numbers, then of the curves."""
    finals = [record.final for record in records if record.final]
    card = _reported_card(finals) if finals else []
    measures = next((record.measures for record in records if record.measures), {})
    for name in ("likelihood-steps", "bound"):
        if measures.get(name):
            words = (
                f"the first {measures[name]['num_images']:,} test images (their order is a seeded shuffle), the same noise for every model"
            )
            card.append(("Curves of the likelihood", words))
    for name in ("sampling-steps", "figure-1"):
        points = (measures.get(name) or {}).get("points")
        if points:
            methods = " and ".join(dict.fromkeys("DDIM (eta 0)" if point["method"] == "ddim" else point["method"] for point in points))
            card.append(("Curves of the distance", f"{points[0]['num_samples']:,} samples a point, on the same noise; sampler: {methods}"))
    drawn = measures.get("samples")
    if drawn:
        card.append(("Images", f"{drawn['num_images']:,} a model, on the same noise; sampler: {drawn['sampler']}"))
    protocol = (measures.get("history") or {}).get("protocol")
    if protocol:
        card.append(("Scores beside training", f"{protocol['num_samples']:,} samples, {protocol['sampler']}, the same noise at every step"))
    if finals:
        versions = finals[0]["protocol"]["versions"]
        card.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return card


def _reported_card(finals: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What differs from trial to trial is told of each."""

    def told(words: Callable[[Mapping[str, Any]], str], part: str = "distance") -> str:
        return "; ".join(dict.fromkeys(words(final["protocol"][part]) for final in finals if final["protocol"][part]))

    seeds = {final["protocol"]["distance"]["seed"] for final in finals}
    samples = told(lambda d: f"{d['num_samples']:,}, {d['quantization']}")
    card = [
        ("Samples", f"{samples}; " + (f"seed {seeds.pop()}, the same noise for every trial" if len(seeds) == 1 else "other noise by seed")),
        ("Sampler", told(lambda d: str(d["sampler"]))),
        ("Reference", told(lambda d: _reference_words(d["reference"]))),
        ("Features", told(lambda d: f"{d['reference']['extractor']}, weights sha256 {d['reference']['extractor_sha256'][:12]}")),
        ("Standard error", "delete-a-group jackknife over ten blocks of samples"),
        ("Likelihood", told(_likelihood_words, "likelihood")),
    ]
    return [(name, words) for name, words in card if words]


def _reference_words(reference: Mapping[str, Any]) -> str:
    return f"{reference['num_images']:,} {reference['split']} images of {reference['data_name']}, digest {reference['data_digest'][:12]}"


def _likelihood_words(likelihood: Mapping[str, Any]) -> str:
    form = f"{likelihood['form']} with {likelihood['num_steps']:,} of {likelihood['num_timesteps']:,} evaluations an image"
    return f"{likelihood['num_images']:,} {likelihood['split']} images, {form}"

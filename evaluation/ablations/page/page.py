"""The HTML page of an ablation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.ablations.claims.claim import Finding
from evaluation.ablations.claims.estimates import CURVES, distance_name, points_of
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.page import table
from evaluation.ablations.page.sample_grids import sample_grids
from evaluation.ablations.page.table import TableRow
from evaluation.ablations.trials.record import AblationTrial
from evaluation.records.numbers import format_estimate
from evaluation.records.protocol_card import ERROR_ROW, features_row, versions_row
from evaluation.reports import html
from evaluation.reports.charts import Picture
from training.config.addresses import public_links

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(
    request: AblationRequest,
    records: Sequence[AblationTrial],
    rows: Sequence[TableRow],
    *,
    figures: Sequence[Picture],
    findings: Sequence[Finding],
    links: Mapping[str, str],
) -> str:
    """Return the page as HTML. `records` are all trials, including failed ones; `links` are name -> address."""
    ablation, name = request.ablation(), distance_name(records)
    columns = list(request.trials()[0].values)
    cells = table.cells(columns, rows)
    return html.render(
        _TEMPLATE,
        name=request.name,
        title=ablation.title,
        source=ablation.source,
        scale=request.scale,
        scale_words=_describe_scale(request),
        seeds_words=f"Every trial has {request.seeds} seeds." if request.seeds > 1 else "",
        seeds=request.seeds,
        data_words=_describe_data(records),
        distance_words=_describe_distance(name, with_paper=bool(cells) and table.any_paper([row.distance for row in rows])),
        failures=[record for record in records if record.error],
        findings=findings,
        table=cells,
        headers=table.headers(columns, name, rows) if cells else [],
        num_words=1 + len(columns),
        notes=_notes(request, rows),
        pictures=figures,
        points=_points(records),
        grids=sample_grids(records),
        card=[*_plan_card(request), *_card(records)],
        command=request.command(),
        links=public_links(links),
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )


def _describe_scale(request: AblationRequest) -> str:
    if request.grid:
        text = f"A user's grid over {request.preset}."
    elif request.varies_another:
        text = f"The paper's grid over another experiment than its own, {request.preset}."
    elif request.scale == "paper":
        text = "The paper's scale."
    elif request.scale == "small":
        text = "The small scale: the paper's grid on handwritten digits, trained for longer, by a plan that was registered before the runs."
    else:
        text = "The tiny scale: the paper's grid on handwritten digits, every count of timesteps divided by ten."
    if request.runs:
        text += f" Runs named by the user: {', '.join(f'{role} is {uri}' for role, uri in request.runs.items())}."
    return text + (f" With changes: {', '.join(request.changes)}." if request.changes else "")


def _describe_data(records: Sequence[AblationTrial]) -> str:
    data_sets = dict.fromkeys(
        f"{data['num_images']:,} training images of {data['name']}, {data['image_size']}x{data['image_size']}"
        for data in (record.data for record in records)
        if data
    )
    if not data_sets:
        return "No trial has finished."
    steps = [record.experiment["optim"]["num_steps"] for record in records if record.experiment]
    length = f", trained for {min(steps):,}{f' to {max(steps):,}' if max(steps) > min(steps) else ''} updates" if steps else ""
    return f"{'; '.join(data_sets)}{length}."


def _describe_distance(name: str, *, with_paper: bool) -> str:
    if name in ("distance", "FID"):
        return ""
    text = f"{name} is a Frechet distance in the features of another network than Inception. "
    text += "It is not an FID and cannot be compared with published numbers."
    return text + (" The paper's FIDs are shown for their order." if with_paper else "")


def _notes(request: AblationRequest, rows: Sequence[TableRow]) -> list[str]:
    checkpoint = {"last": "the last checkpoint", "best": "the best checkpoint by distance"}[request.ablation().checkpoint]
    errors = "one standard error: of a distance over the draw of the samples, of bits/dim over images, noise and timesteps"
    if request.seeds > 1:
        errors = "half the width of the 95% interval of a mean over seeds (Student's t, n - 1 degrees of freedom)"
    notes = [
        f"Numbers after ± are {errors}.",
        f"The evaluated checkpoint of each run is {checkpoint}.",
    ]
    if request.ablation().joint == "cascade":
        notes.append("The second stage alone enlarges real images that were made small; two-stage enlarges the samples of the first stage.")
    sources = sorted({row.source for row in rows if row.source})
    if sources:
        notes.append(f"The paper's numbers: {'; '.join(sources)}.")
        if request.scale != "paper":
            notes.append("They are of other images, other networks and (FID) other features, so no difference is taken.")
    return notes


def _points(records: Sequence[AblationTrial]) -> dict[str, Any] | None:
    """Return the points of the curves as a table."""
    rows = [
        [
            record.label,
            point[fields.kind] if fields.kind else "bits/dim in training",
            f"{point[fields.x]:,}" if fields.x else f"step {record.measures[measure]['step']:,}",
            format_estimate(point[fields.y], point.get("standard_error")),
        ]
        for record in records
        for measure, fields in CURVES.items()
        for point in points_of(record, measure)
    ]
    return {"headers": ["trial", "curve", "steps", "value"], "rows": rows} if rows else None


def _plan_card(request: AblationRequest) -> list[tuple[str, str]]:
    """Return what was fixed before the first run of an ablation with several seeds."""
    registered = [("Registered before the runs", words) for words in request.registered()]
    if request.seeds == 1:
        return registered
    trials = request.trials()
    seeds = list(dict.fromkeys(trial.seed for trial in trials))
    measures = dict.fromkeys(name for trial in trials for name in trial.measures)
    fixed = f"the measures ({', '.join(measures)}), the checkpoint ({request.ablation().checkpoint})"
    fixed += "" if request.grid else ", and of every claim the number and the direction"
    return [
        *registered,
        ("Seeds", f"{', '.join(map(str, seeds))}; the trials of a seed have the same noise, and those of a setting differ by seed alone"),
        ("Fixed before the runs", fixed),
        ("Stopping rule", f"every trial is trained with all {len(seeds)} seeds, whatever the first ones show, and with no other"),
    ]


def _card(records: Sequence[AblationTrial]) -> list[tuple[str, str]]:
    """Return the protocol of the reported numbers, then that of the curves, as rows of name and text."""
    finals = [record.final for record in records if record.final]
    card = _reported_card(finals) if finals else []
    measured = next((record for record in records if record.measures), None)
    measures = measured.measures if measured else {}
    for name in ("likelihood-steps", "bound"):
        if measures.get(name):
            images = f"the first {measures[name]['num_images']:,} test images (their order is a seeded shuffle)"
            models = "model" if measured is None or measured.seed is None else "model of a seed"
            card.append(("Curves of the likelihood", f"{images}, the same noise for every {models}"))
    for name in ("sampling-steps", "figure-1"):
        if points := points_of(measured, name):
            methods = " and ".join(dict.fromkeys("DDIM (eta 0)" if point["method"] == "ddim" else point["method"] for point in points))
            card.append(("Curves of the distance", f"{points[0]['num_samples']:,} samples a point, on the same noise; sampler: {methods}"))
    if drawn := measures.get("samples"):
        card.append(("Images", f"{drawn['num_images']:,} a model, on the same noise; sampler: {drawn['sampler']}"))
    if protocol := (measures.get("history") or {}).get("protocol"):
        card.append(("Scores beside training", f"{protocol['num_samples']:,} samples, {protocol['sampler']}, the same noise at every step"))
    if finals:
        card.append(versions_row(finals[0]["protocol"]))
    return card


def _reported_card(finals: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    def describe(text: Callable[[Mapping[str, Any]], str]) -> str:
        """Join what differs between the trials' protocols, in words."""
        return "; ".join(dict.fromkeys(text(final["protocol"]["distance"]) for final in finals))

    seeds = {final["protocol"]["distance"]["seed"] for final in finals}
    noise = f"seed {seeds.pop()}, the same noise for every trial" if len(seeds) == 1 else "other noise by seed"
    card = [
        ("Samples", f"{describe(_describe_samples)}; {noise}"),
        ("Sampler", describe(lambda d: str(d["sampler"]))),
        ("Reference", describe(lambda d: _describe_reference(d["reference"]))),
        ("Features", describe(lambda d: features_row(d["reference"])[1])),
        ERROR_ROW,
        ("Likelihood", "; ".join(dict.fromkeys(_describe_likelihood(final) for final in finals if final["protocol"]["likelihood"]))),
    ]
    return [(name, text) for name, text in card if text]


def _describe_samples(distance: Mapping[str, Any]) -> str:
    return f"{distance['num_samples']:,}, {distance['quantization']}"


def _describe_reference(reference: Mapping[str, Any]) -> str:
    return f"{reference['num_images']:,} {reference['split']} images of {reference['data_name']}, digest {reference['data_digest'][:12]}"


def _describe_likelihood(final: Mapping[str, Any]) -> str:
    likelihood = final["protocol"]["likelihood"]
    evaluations = (final["likelihood"] or {}).get("num_evaluations_per_image", likelihood["num_steps"])
    form = f"{likelihood['form']} with {evaluations:,} of {likelihood['num_timesteps']:,} evaluations an image"
    return f"{likelihood['num_images']:,} {likelihood['split']} images, {form}"

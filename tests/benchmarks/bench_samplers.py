"""Distances by sampler and number of network evaluations, as ratios to the model's own 250 ancestral steps: a table and a figure.

The model is the demo's of digits, trained here, or any checkpoint with the statistics of its data (--checkpoint, --weights, --reference).
A seed draws one set of images by every sampler, from the same noise. Each finished set is a line of `draws.jsonl`: the same command goes
on where it was stopped, further models and seeds add to it, and --table prints all of it.

A ratio is the mean over the seeds. Its 95% interval is of the draw of images: leaving out the same tenth of both sets gives the ratio's
jackknife error (nine degrees of freedom a seed).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from digits_model import trained_model
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from evaluation.distances.frechet import BlockedMoments, frechet_distance, leave_one_out_distances
from evaluation.distances.reference_statistics import ReferenceStatistics, compute_reference, load_reference
from evaluation.features.extractors import load_extractor
from evaluation.records.intervals import jackknife_error, student_interval
from evaluation.reports.charts import COLOURS, STYLE, as_svg
from evaluation.sampling.generate import generate
from evaluation.sampling.trained_model import TrainedModel, load_model
from training.config.experiment import SamplingConfig

BASELINE = "250 ancestral steps"
SAMPLERS = {
    "ancestral, learned variance": SamplingConfig(),
    "ancestral, optimal variance": SamplingConfig(variance="optimal"),
    "ancestral, Analytic-DPM": SamplingConfig(variance="analytic"),
    "DDIM, optimal variance": SamplingConfig(method="ddim", variance="optimal"),
    "DDIM": SamplingConfig(method="ddim"),
    "DDIM, eta 0.5": SamplingConfig(method="ddim", eta=0.5),
    "DPM-Solver++ 2M": SamplingConfig(method="dpm_solver_pp"),
    "DPM-Solver++ 3M": SamplingConfig(method="dpm_solver_pp", order=3),
    "DPM-Solver++ 2M, eta 0.5": SamplingConfig(method="dpm_solver_pp", eta=0.5),
    "DPM-Solver++ 3M, eta 0.5": SamplingConfig(method="dpm_solver_pp", order=3, eta=0.5),
    "SDE-DPM-Solver++ 2M": SamplingConfig(method="sde_dpm_solver_pp"),
    "SDE-DPM-Solver++ 3M": SamplingConfig(method="sde_dpm_solver_pp", order=3),
    "UniPC-2": SamplingConfig(method="unipc"),
    "UniPC-3": SamplingConfig(method="unipc", order=3),
    "tAB2-DEIS": SamplingConfig(method="deis", order=3),
}
SPACINGS = {"even": "{}", "learned": "learned:{}"}
GOALS = {5: 1.5, 10: 1.1}
MARKERS = "os^DvP*Xphd<>H8p1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """A set of images and its distance.

    Attributes:
        data: Name of the model's data set.
        steps: Kind of the timesteps, a key of `SPACINGS`.
        without: The distance without each tenth of the images.
        seconds: Processor time of sampling and features.
    """

    data: str
    model: str
    distance_name: str
    num_images: int
    seed: int
    sampler: str
    steps: str
    evaluations: int
    distance: float
    without: list[float]
    seconds: float

    @property
    def key(self) -> tuple[Any, ...]:
        """Identify the set."""
        return self.model, self.distance_name, self.num_images, self.seed, self.sampler, self.steps, self.evaluations


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """The ratio of a sampler's distance to the baseline's."""

    ratio: float
    low: float
    high: float


def main() -> None:
    """Measure what is missing, then print the table of all that was measured."""
    arguments = _arguments()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    stored = arguments.scratch / "draws.jsonl"
    if not arguments.table:
        model, reference = _model_and_reference(arguments)
        measure(model, reference, stored, arguments)
    draws = read(stored)
    print(table(draws))
    if arguments.figure:
        arguments.figure.write_text(figure(draws))


def measure(model: TrainedModel, reference: ReferenceStatistics, stored: Path, arguments: argparse.Namespace) -> None:
    """Draw the sets that are not stored yet, seed by seed, and store each."""
    assert reference.provenance is not None
    extractor = load_extractor(reference.provenance.extractor)  # type: ignore[arg-type]
    num_images = arguments.num_images or model.experiment.evaluation.num_samples
    wanted = [
        (name, kind, count, replace(SAMPLERS[name], spacing=SPACINGS[kind].format(count)))
        for name in arguments.samplers
        for kind in arguments.steps
        for count in arguments.evaluations
    ]
    known = {draw.key for draw in read(stored)}
    for seed in arguments.seeds:
        for name, kind, count, sampling in [(BASELINE, "even", 250, SamplingConfig(spacing="250")), *wanted]:
            key = (model.description, reference.provenance.distance_name, num_images, seed, name, kind, count)
            if key in known:
                continue
            blocks, started = BlockedMoments(extractor.dim, num_images), time.process_time()
            for indices, images, _ in generate(model, num_images=num_images, seed=seed, sampling=sampling):
                blocks.update(indices, extractor(images))
            draw = Draw(
                data=model.experiment.data.name,
                model=model.description,
                distance_name=reference.provenance.distance_name,
                num_images=num_images,
                seed=seed,
                sampler=name,
                steps=kind,
                evaluations=count,
                distance=frechet_distance(reference.features, blocks.total()),
                without=leave_one_out_distances(reference.features, blocks),
                seconds=round(time.process_time() - started, 1),
            )
            with stored.open("a") as file:
                file.write(json.dumps(asdict(draw)) + "\n")
            print(f"{draw.data}, seed {seed}, {name}, {count} {kind} steps: {draw.distance:.3f}", file=sys.stderr, flush=True)


def read(stored: Path) -> list[Draw]:
    """Return all sets that were measured."""
    return [Draw(**json.loads(line)) for line in stored.read_text().splitlines()] if stored.exists() else []


def cell(draws: Sequence[Draw], baseline: Sequence[Draw]) -> Cell | None:
    """Return the mean ratio over the seeds that both have, with its interval; None without a common seed."""
    others = {draw.seed: draw for draw in baseline}
    pairs = [(draw, others[draw.seed]) for draw in draws if draw.seed in others]
    if not pairs:
        return None
    ratios = [draw.distance / other.distance for draw, other in pairs]
    errors = [jackknife_error([a / b for a, b in zip(draw.without, other.without, strict=True)]) for draw, other in pairs]
    error = math.sqrt(sum(value**2 for value in errors)) / len(pairs)
    ratio = statistics.fmean(ratios)
    low, high = student_interval(ratio, error, 9 * len(pairs))
    return Cell(ratio=ratio, low=low, high=high)


def groups(draws: Sequence[Draw]) -> dict[tuple[str, str, str, int], list[Draw]]:
    """Return the sets of each model, which have one baseline."""
    found: dict[tuple[str, str, str, int], list[Draw]] = {}
    for draw in draws:
        found.setdefault((draw.data, draw.model, draw.distance_name, draw.num_images), []).append(draw)
    return found


def cells(draws: Sequence[Draw]) -> dict[tuple[str, str], dict[int, Cell]]:
    """Return (sampler, kind of steps) -> evaluations -> ratio, of one model's sets."""
    baseline = [draw for draw in draws if draw.sampler == BASELINE]
    found: dict[tuple[str, str], dict[int, Cell]] = {}
    for name in SAMPLERS:
        for kind in SPACINGS:
            for count in sorted({draw.evaluations for draw in draws}):
                value = cell([draw for draw in draws if (draw.sampler, draw.steps, draw.evaluations) == (name, kind, count)], baseline)
                if value is not None:
                    found.setdefault((name, kind), {})[count] = value
    return found


def table(draws: Sequence[Draw]) -> str:
    """Return one table for each model, in Markdown; the ratios that meet their goal are bold."""
    lines = []
    for (data, _, distance_name, num_images), part in groups(draws).items():
        baseline, found = [draw.distance for draw in part if draw.sampler == BASELINE], cells(part)
        counts = sorted({count for row in found.values() for count in row})
        if not baseline or not counts:
            continue
        values = ", ".join(f"{value:.3f}" for value in baseline)
        lines += [f"{data}, {num_images:,} images a set: {distance_name} {values} by {BASELINE} (a seed each).", ""]
        lines += [
            "| sampler | steps | " + " | ".join(f"{count} evaluations" for count in counts) + " |",
            "|---|---|" + "---|" * len(counts),
        ]
        for (name, kind), row in found.items():
            words = " | ".join(_words(row[count], GOALS.get(count)) if count in row else "" for count in counts)
            lines.append(f"| {name} | {kind} | {words} |")
        lines.append("")
    return "\n".join(lines)


def _words(value: Cell, goal: float | None) -> str:
    text = f"{value.ratio:.2f} ({value.low:.2f} to {value.high:.2f})"
    return f"**{text}**" if goal is not None and value.ratio <= goal else text


def figure(draws: Sequence[Draw]) -> str:
    """Return the ratios over the number of evaluations as SVG: a panel for each model, a curve for each sampler, its better steps."""
    parts = [(key, found) for key, part in groups(draws).items() if (found := cells(part))]
    with rc_context(STYLE):
        picture = Figure(figsize=(5.2 * len(parts), 4.4), layout="constrained")
        for column, ((data, _, distance_name, _), found) in enumerate(parts):
            axes = picture.add_subplot(1, len(parts), column + 1)
            counts = sorted({count for row in found.values() for count in row})
            for number, name in enumerate(SAMPLERS):
                rows = [row for (sampler, _), row in found.items() if sampler == name]
                best = {count: min((row[count] for row in rows if count in row), key=lambda value: value.ratio) for count in counts if rows}
                if not best:
                    continue
                spread = [[value.ratio - value.low for value in best.values()], [value.high - value.ratio for value in best.values()]]
                axes.errorbar(
                    [count * 1.02 ** (number - len(SAMPLERS) / 2) for count in best],
                    [value.ratio for value in best.values()],
                    yerr=spread,
                    color=COLOURS[number % len(COLOURS)],
                    linestyle="-" if number < len(COLOURS) else "--",
                    marker=MARKERS[number],
                    markersize=5,
                    linewidth=1.4,
                    elinewidth=0.8,
                    label=name,
                )
            for count, goal in GOALS.items():
                axes.plot([count / 1.15, count * 1.15], [goal, goal], color="black", linewidth=1.6, label="goal" if count == 5 else None)
            axes.axhline(1.0, color="#64748b", linewidth=1.0, linestyle=":")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.xaxis.set_minor_locator(NullLocator())
            ticks = [tick for tick in (0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0) if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_title(f"{data}, {distance_name}", fontsize=11)
            axes.set_xlabel("network evaluations an image")
            if column == 0:
                axes.set_ylabel("distance, in units of 250 ancestral steps'")
        picture.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=9)
        return as_svg(picture, "Distance over network evaluations by sampler, with 95% intervals")


def _model_and_reference(arguments: argparse.Namespace) -> tuple[TrainedModel, ReferenceStatistics]:
    if arguments.checkpoint:
        return load_model(arguments.checkpoint, arguments.weights or None), load_reference(arguments.reference)
    model, data_uri = trained_model(arguments.scratch, num_steps=1600, seed=arguments.training_seed)
    extractor = load_extractor(model.experiment.evaluation.extractor)
    return model, compute_reference(f"{data_uri}/train", extractor, str(arguments.scratch / "references"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(".iddpm/bench-samplers"), help="Directory of the results, and of the model.")
    parser.add_argument("--checkpoint", default="", help="A finished checkpoint; empty trains the demo's model.")
    parser.add_argument("--weights", default="", help="Its weights, such as ema_0.995; empty takes the experiment's first average.")
    parser.add_argument("--reference", default="", help="Statistics of its data: a file of `iddpm reference` or of a run.")
    parser.add_argument("--training-seed", type=int, default=0, help="Seed of the demo's model that is trained here.")
    parser.add_argument("--num-images", type=int, default=0, help="Images of each set; 0 takes the experiment's full protocol.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS), metavar="NAME")
    parser.add_argument("--steps", nargs="+", default=list(SPACINGS), choices=list(SPACINGS))
    parser.add_argument("--table", action="store_true", help="Measure nothing; print what was measured.")
    parser.add_argument("--figure", type=Path, help="Write the figure there too, as SVG.")
    arguments = parser.parse_args()
    if bool(arguments.checkpoint) != bool(arguments.reference):
        parser.error("--checkpoint and --reference belong together")
    return arguments


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

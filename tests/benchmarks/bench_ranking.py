"""Ranks of a trained, a half-trained and a broken model by a distance, and the differences in standard deviations.

The half-trained model is an earlier checkpoint of the same run. The broken ones have noise in the trained weights: normal, with a stated
part of each tensor's own standard deviation. A seed draws one set of images from every model, from the same noise. Each finished set is a
line of `ranking.jsonl`: the same command goes on where it was stopped.

The standard deviation is that of the difference to the trained model's set of the same seed, over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from evaluation.distances.frechet import Moments, frechet_distance
from evaluation.distances.reference_statistics import load_reference
from evaluation.features.extractors import load_extractor
from evaluation.sampling.generate import generate
from evaluation.sampling.trained_model import TrainedModel, load_model

NOISE = (0.05, 0.1, 0.2)


def models(checkpoint: str, earlier: list[str]) -> Iterator[tuple[str, TrainedModel]]:
    """Yield the models, each with its name."""
    trained = load_model(checkpoint)
    yield f"trained, step {trained.step:,}", trained
    for uri in earlier:
        model = load_model(uri)
        yield f"step {model.step:,} of the same run", model
    for part in NOISE:
        yield f"broken: {part:.0%} noise in the trained weights", with_noise(load_model(checkpoint), part)


def with_noise(model: TrainedModel, part: float) -> TrainedModel:
    """Add noise to each tensor of weights, of `part` times the tensor's standard deviation; in place."""
    assert isinstance(model.network, torch.nn.Module)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.network.parameters():
        if parameter.numel() > 1:
            parameter.data += part * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def measure(arguments: argparse.Namespace, stored: Path) -> None:
    """Draw the sets that are not stored yet, and store the distance of each."""
    reference = load_reference(arguments.reference)
    assert reference.provenance is not None
    extractor = load_extractor(reference.provenance.extractor)  # type: ignore[arg-type]
    known = {(name, seed, count) for name, seed, count, _ in read(stored)}
    for name, model in models(arguments.checkpoint, arguments.earlier):
        sampling = replace(model.experiment.evaluation.scoring_sampling, spacing=str(arguments.evaluations))
        for seed in arguments.seeds:
            if (name, seed, arguments.num_images) in known:
                continue
            moments = Moments(extractor.dim)
            for _, images, _ in generate(model, num_images=arguments.num_images, seed=seed, sampling=sampling):
                moments.update(extractor(images))
            with stored.open("a") as file:
                file.write(json.dumps((name, seed, arguments.num_images, frechet_distance(reference.features, moments))) + "\n")


def read(stored: Path) -> list[tuple[str, int, int, float]]:
    """Return model, seed, number of images and distance of all sets that were measured."""
    return [tuple(json.loads(line)) for line in stored.read_text().splitlines()] if stored.exists() else []


def table(sets: list[tuple[str, int, int, float]]) -> str:
    """Return a row for each model in Markdown, in the order of measurement; differences are to the first, the trained one."""
    values: dict[str, dict[int, float]] = {}
    for name, seed, _, distance in sets:
        values.setdefault(name, {})[seed] = distance
    first = next(iter(values.values()))
    lines = ["| model | distance | difference on the same noise | in sd of a difference |", "|---|---|---|---|"]
    for name, by_seed in values.items():
        differences = [distance - first[seed] for seed, distance in by_seed.items()]
        mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
        words = f"{mean:+.1f} | {mean / deviation:+.1f}" if by_seed is not first else " | "
        lines.append(f"| {name} | {statistics.fmean(by_seed.values()):.1f} | {words} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, then print the table of all that was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="The trained model.")
    parser.add_argument("--earlier", nargs="+", default=[], help="Earlier checkpoints of the same run.")
    parser.add_argument("--reference", required=True, help="Statistics of its data, with the features to judge: a file of a run.")
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--evaluations", type=int, default=20, help="Steps of the experiment's scoring sampler.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--scratch", type=Path, default=Path(".iddpm/bench-ranking"), help="Directory of the results.")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    stored = arguments.scratch / "ranking.jsonl"
    measure(arguments, stored)
    print(table(read(stored)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

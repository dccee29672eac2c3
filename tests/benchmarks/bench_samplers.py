"""Distances by sampler and number of network evaluations, as ratios to the model's own 250 ancestral steps: a table in Markdown.

The model of digits is the demo's, trained here, or any other run's (--run, --data). Each seed draws one set of images by every sampler and
compares it with that seed's own ancestral set. A cell has the mean over the seeds, and the least and the greatest ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from digits_model import trained_model

from evaluation.distances.frechet import BlockedMoments, frechet_distance
from evaluation.distances.reference_statistics import compute_reference
from evaluation.features.extractors import load_extractor
from evaluation.sampling.generate import generate
from evaluation.sampling.trained_model import load_model
from training.checkpoints import checkpoint
from training.config.experiment import SamplingConfig

EVALUATIONS = (5, 10, 20)
SAMPLERS = {
    "ancestral, learned variance": SamplingConfig(),
    "DDIM": SamplingConfig(method="ddim"),
    "DDIM, eta 0.5": SamplingConfig(method="ddim", eta=0.5),
    "DPM-Solver++ 2M": SamplingConfig(method="dpm_solver_pp"),
    "DPM-Solver++ 3M": SamplingConfig(method="dpm_solver_pp", order=3),
    "SDE-DPM-Solver++ 2M": SamplingConfig(method="sde_dpm_solver_pp"),
    "UniPC-2": SamplingConfig(method="unipc"),
    "UniPC-3": SamplingConfig(method="unipc", order=3),
    "tAB2-DEIS": SamplingConfig(method="deis", order=3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=Path(".iddpm/bench-samplers"), help="Directory for the model and references.")
    parser.add_argument("--run", default="", help="A finished run's directory; empty trains the demo's model.")
    parser.add_argument("--data", default="", help="The data set of that run.")
    parser.add_argument("--num-images", type=int, default=1000, help="Images of each set.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--baseline", default="250", help="Spacing of the ancestral sets that the ratios are to.")
    arguments = parser.parse_args()
    if arguments.run:
        uri = checkpoint.latest(arguments.run)
        assert uri, f"{arguments.run} has no checkpoint"
        model, data_uri = load_model(uri), arguments.data
    else:
        model, data_uri = trained_model(arguments.scratch, num_steps=1600)
    extractor = load_extractor("digits-classifier")
    reference = compute_reference(f"{data_uri}/train", extractor, str(arguments.scratch / "references")).features

    def distance(sampling: SamplingConfig, seed: int) -> float:
        blocks = BlockedMoments(extractor.dim, arguments.num_images)
        for indices, images, _ in generate(model, num_images=arguments.num_images, seed=seed, sampling=sampling):
            blocks.update(indices, extractor(images))
        return frechet_distance(reference, blocks.total())

    seeds = range(arguments.seeds)
    many = [distance(SamplingConfig(spacing=arguments.baseline), seed) for seed in seeds]
    print(f"{model.description}: {', '.join(f'{value:.3f}' for value in many)} at {arguments.baseline} ancestral steps", file=sys.stderr)
    print("| sampler | steps | " + " | ".join(f"{count} evaluations" for count in EVALUATIONS) + " |")
    print("|---|---|" + "---|" * len(EVALUATIONS))
    for name, sampling in SAMPLERS.items():
        for kind in ("even", "learned"):
            cells = []
            for count in EVALUATIONS:
                spacing = f"learned:{count}" if kind == "learned" else str(count)
                each = [distance(replace(sampling, spacing=spacing), seed) / base for seed, base in zip(seeds, many, strict=True)]
                cells.append(f"{statistics.fmean(each):.2f} ({min(each):.2f} to {max(each):.2f})")
            print(f"| {name} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

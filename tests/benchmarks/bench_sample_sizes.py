"""Few samples against many: the claim that the MIND of 5,000 says what the FID of 50,000 does (Berthet et al. 2026), on models of digits.

    python tests/benchmarks/bench_sample_sizes.py RUN --folder FOLDER

RUN is the directory of a trained run. Samples of its chosen weights stand in for the real images, of which there are too few. Against
them come samples of six models: the same weights from other noise, whose true distance is 0, an earlier checkpoint, the sampler with 5
and 4 evaluations in place of 10, and the weights with noise of 4 and 8%. The six start from one noise, as models do that are compared.
Each distance is computed from all samples, and from ten disjoint tenths of them. The Frechet distance is to all stand-ins, as usual; the
MIND takes equal numbers of both by definition, so that it is to a tenth of them.

The features are kept in FOLDER: the same command goes on where it was stopped. It prints the table of RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from perturbed import add_noise
from torch import Tensor

from evaluation.distances.frechet import BlockedMoments, FeatureStatistics, Moments, frechet_distance, leave_one_out_distances
from evaluation.distances.sliced_wasserstein import sliced_wasserstein
from evaluation.features.extractors import load_extractor
from evaluation.records.intervals import jackknife_bias
from evaluation.sampling.generate import generate
from evaluation.sampling.trained_model import TrainedModel, load_model
from evaluation.selection.resolve import resolve_model
from training.checkpoints import checkpoint
from training.config.experiment import SamplingConfig

NUM_PARTS = 10
Numbers = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The origin of a set of samples: a model, the seed of its noise, and the number of network evaluations an image."""

    model: TrainedModel
    seed: int = 1
    evaluations: int = 10


def sources(run: str) -> dict[str, Source]:
    """Return the stand-in of the real images, "real", and the models by name."""
    chosen = resolve_model(run)
    own = chosen.spec().load("cpu")
    named = {"real": Source(model=own, seed=0), "the same weights": Source(model=own)}
    earliest = load_model(checkpoint.checkpoint_uri(run, min(checkpoint.steps(run))), own.weights)
    named[f"step {earliest.step:,}"] = Source(model=earliest)
    for evaluations in (5, 4):
        named[f"{evaluations} evaluations"] = Source(model=own, evaluations=evaluations)
    for size in (0.04, 0.08):
        named[f"{size:.0%} noise on its weights"] = Source(model=add_noise(chosen.spec().load("cpu"), size, seed=1))
    return named


def features(source: Source, count: int) -> Tensor:
    """Draw samples, and return their features [count, dim]."""
    extractor = load_extractor("digits-classifier")
    sampling = SamplingConfig(method="dpm_solver_pp", spacing=str(source.evaluations))
    drawn = generate(source.model, num_images=count, seed=source.seed, sampling=sampling, batch_size=500)
    return torch.cat([extractor(images) for _, images, _ in drawn]).float()


def frechet(sample: Tensor, real: FeatureStatistics) -> tuple[float, float]:
    """Return the distance, and the distance without the bias that the jackknife finds."""
    blocks = BlockedMoments(sample.shape[1], len(sample))
    blocks.update(torch.arange(len(sample)), sample)
    value = frechet_distance(real, blocks.total())
    return value, value - jackknife_bias(value, leave_one_out_distances(real, blocks))


def mind(sample: Tensor, real: Tensor) -> tuple[float, float]:
    """Return the sliced Wasserstein distance, and without the bias that the jackknife finds."""
    found = sliced_wasserstein(sample, real)
    return found.value, found.value - (found.bias or 0.0)


def measure(sample: Tensor, real: Tensor, distance: Callable[[Tensor, Tensor], tuple[float, float]]) -> tuple[Numbers, Numbers]:
    """Return a distance of all samples, [2], and of each part, [parts, 2]: as it is, and without its bias."""
    parts = [distance(x, y) for x, y in zip(sample.chunk(NUM_PARTS), real.chunk(NUM_PARTS), strict=True)]
    return np.array(distance(sample, real)), np.array(parts)


def share_in_order(parts: Numbers, whole: Numbers) -> float:
    """Return how often two models come in the order of `whole` [models], over all pairs and all parts [models, parts]."""
    pairs = list(itertools.combinations(range(len(whole)), 2))
    return float(np.mean([np.sign(parts[a] - parts[b]) == np.sign(whole[a] - whole[b]) for a, b in pairs]))


def table(drawn: dict[str, Tensor]) -> str:
    """Return the distances of all models, and how often parts put two models in the order of all samples."""
    real = drawn["real"]
    moments = Moments(real.shape[1])
    moments.update(real)
    statistics = moments.statistics()
    distances = {"Frechet": lambda sample, _: frechet(sample, statistics), "sliced Wasserstein": mind}
    found = {
        name: {model: measure(sample, real, distance) for model, sample in drawn.items() if model != "real"}
        for name, distance in distances.items()
    }
    count = len(real)
    headers = ("distance", "model", f"{count:,} samples", "without bias", f"{count // NUM_PARTS:,}: mean ± spread", "without bias")
    lines = [f"| {' | '.join(headers)} |", "|---|---|---|---|---|---|"]
    for name, of_models in found.items():
        for model, (whole, parts) in of_models.items():
            cells = [f"{mean:.3g} ± {spread:.2g}" for mean, spread in zip(parts.mean(0), parts.std(0, ddof=1), strict=True)]
            lines.append(f"| {name} | {model} | {whole[0]:.3g} | {whole[1]:.3g} | {cells[0]} | {cells[1]} |")
    orders = {name: np.array([whole[1] for whole, _ in of_models.values()]) for name, of_models in found.items()}
    lines.append(f"\n| {count // NUM_PARTS:,} samples | {count:,} samples | two models in the same order |\n|---|---|---|")
    for (name, of_models), (other, order) in itertools.product(found.items(), orders.items()):
        parts = np.stack([parts[:, 0] for _, parts in of_models.values()])
        lines.append(f"| {name} | {other} | {share_in_order(parts, order):.1%} |")
    return "\n".join(lines)


def main() -> int:
    """Draw what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="directory of a trained run of digits")
    parser.add_argument("--folder", type=Path, required=True, help="where the features are kept")
    parser.add_argument("--num-samples", type=int, default=50_000)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Tensor] = {}
    for number, (name, source) in enumerate(sources(given.run).items()):
        path = given.folder / f"{number}-{given.num_samples}.npy"
        if not path.exists():
            started = time.process_time()
            np.save(path, features(source, given.num_samples).numpy())
            print(f"{name}: {time.process_time() - started:.0f} s of processor time", file=sys.stderr, flush=True)
        drawn[name] = torch.from_numpy(np.load(path))
    print(table(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())

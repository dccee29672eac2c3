"""The error of a night's distance against the truth: is the jackknife's variance without its excess that over independent samples?

    python tests/benchmarks/bench_night_error.py

Each row draws the samples of many nights from a known distribution of features, so that the true variance of the distance is seen. The
reference has the exact moments: the distance of as many samples as one likes is 0, but for the shifted row. It prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from evaluation.distances.frechet import BlockedMoments, FeatureStatistics, distances_of_halves, frechet_distance, leave_one_out_distances
from evaluation.features.extractors import load_extractor
from evaluation.records.intervals import jackknife_error, jackknife_excess
from training.data.sources.published import Digits

NUM_FEATURES = 64
_MANY = 200_000
Draw = Callable[[int], Tensor]
Make = Callable[[torch.Generator], Draw]


def normal(generator: torch.Generator, power: float = 1.0) -> Draw:
    """Return draws of normal features, the k-th with the variance k^-power."""
    scales = torch.arange(1, NUM_FEATURES + 1, dtype=torch.float64).pow(-power / 2)
    return lambda count: scales * torch.randn(count, NUM_FEATURES, generator=generator, dtype=torch.float64)


def skewed(generator: torch.Generator) -> Draw:
    """Return draws of features as networks have them: not negative, often 0, and large together."""
    draw = normal(generator)
    return lambda count: draw(count).relu() / torch.rand(count, 1, generator=generator, dtype=torch.float64).clamp(min=0.1).sqrt()


def digits(generator: torch.Generator) -> Draw:
    """Return draws of the real digits' features, with labels in turn."""
    images, labels, _ = Digits().arrays()
    features = load_extractor("digits-classifier")(torch.from_numpy(images).permute(0, 3, 1, 2)).double()
    classes = [features[torch.from_numpy(labels == label)] for label in range(10)]

    def draw(count: int) -> Tensor:
        found = torch.empty(count, features.shape[1], dtype=torch.float64)
        for label, rows in enumerate(classes):
            size = len(found[label::10])
            found[label::10] = rows[torch.randint(len(rows), (size,), generator=generator)]
        return found

    return draw


ROWS: list[tuple[str, Make, int, float]] = [
    ("normal, variances 1/k", normal, 100, 0.0),
    ("normal, variances 1/k", normal, 300, 0.0),
    ("normal, variances 1/k", normal, 1000, 0.0),
    ("the same, every mean 0.1 sd apart", normal, 300, 0.1),
    ("normal, equal variances", lambda generator: normal(generator, 0.0), 100, 0.0),
    ("normal, equal variances", lambda generator: normal(generator, 0.0), 300, 0.0),
    ("skewed, large together", skewed, 300, 0.0),
    ("real digits, in the classifier's features", digits, 100, 0.0),
    ("real digits, in the classifier's features", digits, 300, 0.0),
]
"""Name, features, samples a night, and the shift of each mean."""


def measure(draw: Draw, num_samples: int, num_nights: int, shift: float = 0.0) -> tuple[float, float, float, float]:
    """Return the mean distance, its true standard deviation, and the ratios of both mean variances to the true one.

    Args:
        draw: Draws features.
        num_samples: Samples a night.
        num_nights: Number of nights.
        shift: By how many standard deviations the mean of each feature differs from the reference's.
    """
    many = draw(_MANY)
    covariance = torch.cov(many.T)
    reference = FeatureStatistics(mean=many.mean(dim=0) + shift * covariance.diagonal().sqrt(), covariance=covariance)
    distances, squares, excess = [], [], []
    for _ in range(num_nights):
        blocks = BlockedMoments(reference.dim, num_samples)
        blocks.update(torch.arange(num_samples), draw(num_samples))
        distances.append(frechet_distance(reference, blocks.total()))
        squares.append(jackknife_error(leave_one_out_distances(reference, blocks)) ** 2)
        excess.append(jackknife_excess(distances_of_halves(reference, blocks)))
    found = torch.tensor([distances, squares, excess], dtype=torch.float64)
    variance = float(found[0].var())
    jackknife, too_much = found[1:].mean(dim=1).tolist()
    return float(found[0].mean()), variance**0.5, jackknife / variance, (jackknife - too_much) / variance


def main() -> None:
    """Print the table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1000)
    num_nights = parser.parse_args().nights
    print("| features | samples | distance | true sd | jackknife's variance / true | without the excess / true |")
    print("|---|---|---|---|---|---|")
    for name, make, num_samples, shift in ROWS:
        draw = make(torch.Generator().manual_seed(0))
        distance, deviation, jackknife, corrected = measure(draw, num_samples, num_nights, shift)
        print(f"| {name} | {num_samples:,} | {distance:.3g} | {deviation:.3g} | {jackknife:.2f} | {corrected:.2f} |", flush=True)


if __name__ == "__main__":
    main()

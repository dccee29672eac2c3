"""Coverage of the truth by the 95% interval of a distance, by repeated draws from known distributions of features.

    make bench-intervals [ARGS="--draws 600 --wide-draws 600"]

Real images have features of mean 0 and variance k^-power in direction k. A model's are scaled and shifted by standard deviations. The truth
of a distance is its mean over the draws: an interval is around the number as it is, with the bias of few samples. The kernel
distance takes 20 random subsets in place of 100, which are most of its time. With more features than samples the Frechet distance
is computed by products of the samples: the same number, in a tenth of the time. It prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.distances import metrics
from evaluation.distances.frechet import BlockedMoments, FeatureStatistics, distances_of_halves, frechet_distance, leave_one_out_distances
from evaluation.distances.gaussian_mmd import gaussian_mmd
from evaluation.distances.metric_value import NUM_BLOCKS
from evaluation.distances.sliced_wasserstein import random_directions, sliced_wasserstein
from evaluation.records.intervals import PARTS, Interval, distance_error, logarithmic_interval, part_values, student_interval

_FIRST_SEED = 7_000
"""Not the seed of the random directions (0): the first draws would lie along them."""
Measure = Callable[[Tensor, Tensor], tuple[float, Interval | None]]


class Case(NamedTuple):
    """A model's features beside the real ones.

    Attributes:
        scale: Standard deviations of the model's features, in those of the real ones.
        shift: The mean of each of the model's features, in standard deviations of the real ones.
        power: The k-th real feature has the variance k^-power.
    """

    name: str
    dim: int
    scale: float
    shift: float
    num_samples: int = 200
    power: float = 0.0

    def deviations(self) -> Tensor:
        """Return the standard deviations of the real features."""
        return torch.arange(1, self.dim + 1).float().pow(-self.power / 2)


CASES = [
    Case("perfect", 4, 1.0, 0.0),
    Case("bad", 4, 1.15, 0.2),
    Case("shifted", 4, 1.0, 0.5),
    Case("good", 24, 1.05, 0.05),
    Case("bad", 24, 1.15, 0.2),
    Case("good", 64, 1.05, 0.05),
    Case("shifted", 64, 1.0, 0.5),
    Case("perfect", 64, 1.0, 0.0, 1000),
    Case("bad, variances 1/k", 64, 1.15, 0.2, 1000, 1.0),
]
WIDE = {
    "the Frechet distance": [
        Case("good, variances 1/k", 1280, 1.05, 0.05, 500, 1.0),
        Case("bad, variances 1/k", 1280, 1.15, 0.2, 500, 1.0),
    ],
    "the others": [Case("good, variances 1/k", 2048, 1.05, 0.05, 500, 1.0), Case("bad, variances 1/k", 2048, 1.15, 0.2, 500, 1.0)],
}
"""The numbers of features of EfficientNet and Inception, with fewer samples than features."""


def frechet_measures(case: Case) -> dict[str, Measure]:
    """Return the Frechet distance to the exact moments with both intervals: that of an evaluation, and the sFID's."""
    variances = case.deviations().double().square()
    reference = FeatureStatistics(mean=torch.zeros(case.dim, dtype=torch.float64), covariance=torch.diag(variances))
    last: list[tuple[Tensor, float, float]] = []

    def measure(sample: Tensor) -> tuple[float, float]:
        if not last or last[0][0] is not sample:
            if case.dim > len(sample):
                last[:] = [(sample, *_by_products(sample.double(), case.deviations().double()))]
            else:
                blocks = BlockedMoments(case.dim, len(sample), NUM_BLOCKS)
                blocks.update(torch.arange(len(sample)), sample)
                error = distance_error(leave_one_out_distances(reference, blocks), distances_of_halves(reference, blocks))
                last[:] = [(sample, frechet_distance(reference, blocks.total()), error)]
        return last[0][1:]

    def of_evaluation(sample: Tensor, real: Tensor) -> tuple[float, Interval]:
        value, error = measure(sample)
        return value, student_interval(value, error, NUM_BLOCKS - 1)

    def of_logarithm(sample: Tensor, real: Tensor) -> tuple[float, Interval]:
        value, error = measure(sample)
        return value, logarithmic_interval(value, error, NUM_BLOCKS - 1)

    return {"Frechet distance": of_evaluation, "the same, of the logarithm": of_logarithm}


def _by_products(sample: Tensor, deviations: Tensor) -> tuple[float, float]:
    """Return the Frechet distance to a normal distribution of mean 0 with these standard deviations, and its error.

    With centred samples X, so that S = X'X / (n - 1), the trace of (S R)^(1/2) is that of (X R X' / (n - 1))^(1/2), a smaller matrix.
    """

    def distance(part: Tensor) -> float:
        centred = (part - part.mean(0)) / (len(part) - 1) ** 0.5
        scaled = centred * deviations
        trace = torch.linalg.eigvalsh(scaled @ scaled.T).clamp(min=0).sqrt().sum()
        return float(part.mean(0).square().sum() + centred.square().sum() + deviations.square().sum() - 2 * trace)

    block_of = torch.arange(len(sample)) * NUM_BLOCKS // len(sample)
    parts = part_values([distance(sample[torch.tensor(part)[block_of]]) for part in PARTS])
    return distance(sample), distance_error(parts.without_blocks, parts.of_halves)


def other_measures(case: Case) -> dict[str, Measure]:
    """Return those of the MIND, the KID and the CMMD in these features, by the evaluation's own code."""
    directions = random_directions(case.dim, 1000 if case.dim > 100 else 5 * case.dim)
    fixed = case.deviations() * torch.randn(2000, case.dim, generator=torch.Generator().manual_seed(1))
    width = 10 / case.deviations().square().sum().sqrt()  # typical pairs are then about one width of the kernel apart

    def sliced(sample: Tensor, real: Tensor) -> tuple[float, Interval | None]:
        found = sliced_wasserstein(sample, real, directions)
        return found.value, found.interval

    def kernel(sample: Tensor, real: Tensor) -> tuple[float, Interval | None]:
        found = metrics.kernel_distance(sample, fixed)
        return found.value, found.interval

    def mmd(sample: Tensor, real: Tensor) -> tuple[float, Interval | None]:
        found = gaussian_mmd(width * sample, width * fixed)
        return found.value, found.interval

    return {"sliced Wasserstein": sliced, "kernel distance": kernel, "Gaussian MMD": mmd}


def coverage(case: Case, measures: dict[str, Measure], num_draws: int, seed: int) -> dict[str, float]:
    """Return the share of draws whose interval covers the mean of all draws, by distance."""
    generator = torch.Generator().manual_seed(_FIRST_SEED + seed)
    deviations = case.deviations()
    found: dict[str, list[tuple[float, Interval | None]]] = {name: [] for name in measures}
    for _ in range(num_draws):
        sample, real = (torch.randn(case.num_samples, case.dim, generator=generator) for _ in range(2))
        sample, real = deviations * (case.scale * sample + case.shift), deviations * real
        for name, measure in measures.items():
            found[name].append(measure(sample, real))
    shares = {}
    for name, items in found.items():
        truth = sum(value for value, _ in items) / len(items)
        shares[name] = sum(interval is not None and interval[0] <= truth <= interval[1] for _, interval in items) / len(items)
    return shares


def main() -> None:
    """Print the table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=600, help="draws a row")
    parser.add_argument("--wide-draws", type=int, default=600, help="draws of the rows with many features; 0 leaves them out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    metrics._NUM_SUBSETS = 20
    names = ["Frechet distance", "the same, of the logarithm", "sliced Wasserstein", "kernel distance", "Gaussian MMD"]
    rows = [(case, arguments.draws, {**frechet_measures(case), **other_measures(case)}) for case in CASES]
    if arguments.wide_draws:
        for cases, make in zip(WIDE.values(), (frechet_measures, other_measures), strict=True):
            rows += [(case, arguments.wide_draws, make(case)) for case in cases]
    print(f"| model | features | samples | draws | {' | '.join(names)} |")
    print(f"|{'---|' * (4 + len(names))}")
    started = time.monotonic()
    for case, num_draws, measures in rows:
        shares = coverage(case, measures, num_draws, arguments.seed)
        cells = " | ".join(f"{100 * shares[name]:.1f}%" if name in shares else "" for name in names)
        print(f"| {case.name} | {case.dim:,} | {case.num_samples:,} | {num_draws} | {cells} |", flush=True)
    print(f"\n{(time.monotonic() - started) / 60:.0f} min")


if __name__ == "__main__":
    main()

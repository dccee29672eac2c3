"""The nightly detector on simulated models, with its goals; `make bench-nightly`.

Each row is 10,000 models with a baseline of 20 healthy nights, whose night-to-night standard deviation is 1. Healthy ones go on for a
year; the others are healthy for another 10 nights and then change for good. The detector knows a standard error of each score that is
itself an estimate, as the jackknife over ten blocks gives it. The noise of a night is

- normal;
- that of few samples: the squared mean of 16 features whose true mean is 0. All of such a distance is the bias of few samples, so that the
  jackknife's variance is twice too large;
- heavy-tailed: t with 4 degrees of freedom, scaled to variance 1;
- autocorrelated: AR(1) with 0.3, also between the scores of one night.

It prints the table of RESULTS.md and one JSON line. The exit status is the number of goals that are missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluation.monitoring.detector import NUM_REDRAWN, Rule, watch
from evaluation.records.intervals import SPLITS, jackknife_error, jackknife_excess

Numbers = NDArray[np.float64]
NUM_MODELS = 10_000
NUM_HEALTHY = 10
NUM_CHANGED = 90
YEAR = 365
JACKKNIFE_BLOCKS = 10
AUTOCORRELATION = 0.3
NUM_CAN_JOIN = 200
"""Nights of which some join the baseline; their errors are drawn as the jackknife gives them."""
NUM_FEATURES = 16
_CHUNK = 20
CHANGES: dict[str, Callable[[Numbers], Numbers]] = {
    "1 sd worse": lambda night: 0 * night + 1,
    "2 sd worse": lambda night: 0 * night + 2,
    "3 sd worse": lambda night: 0 * night + 3,
    "5 sd worse": lambda night: 0 * night + 5,
    "drift of 0.1 sd a night": lambda night: 0.1 * night,
}
GOALS = {
    "healthy, alarmed in a year": (0.05, "at most 5%"),
    "2 sd worse, median nights": (7, "at most 7"),
    "drift of 0.1 sd a night, median nights": (20, "at most 20"),
    "5 sd worse, missed in the same night": (0.01, "at most 1%"),
}


def normal(generator: np.random.Generator, shape: tuple[int, int]) -> Numbers:
    """Draw independent normal noise."""
    return generator.standard_normal(shape)


def few_samples(generator: np.random.Generator, shape: tuple[int, int]) -> Numbers:
    """Draw squared means of features whose true mean is 0, scaled to mean 0 and variance 1."""
    return (generator.chisquare(NUM_FEATURES, shape) - NUM_FEATURES) / np.sqrt(2 * NUM_FEATURES)


def heavy_tailed(generator: np.random.Generator, shape: tuple[int, int]) -> Numbers:
    """Draw from Student's t with 4 degrees of freedom, whose variance is 2."""
    return generator.standard_t(4, shape) / np.sqrt(2)


def autocorrelated(generator: np.random.Generator, shape: tuple[int, int]) -> Numbers:
    """Draw an AR(1) process of variance 1."""
    innovations = np.sqrt(1 - AUTOCORRELATION**2) * generator.standard_normal(shape)
    noise = np.empty(shape)
    noise[:, 0] = generator.standard_normal(shape[0])
    for night in range(1, shape[1]):
        noise[:, night] = AUTOCORRELATION * noise[:, night - 1] + innovations[:, night]
    return noise


NOISES = {"normal": normal, "few samples": few_samples, "heavy-tailed": heavy_tailed, "autocorrelated": autocorrelated}


def known_errors(generator: np.random.Generator, shape: tuple[int, int]) -> tuple[Numbers, Numbers]:
    """Draw a jackknife's standard errors of scores that are means over samples: unbiased, and with no known excess."""
    degrees_of_freedom = JACKKNIFE_BLOCKS - 1
    return np.sqrt(generator.chisquare(degrees_of_freedom, shape) / degrees_of_freedom), np.full(shape, np.nan)


def few_samples_with_errors(generator: np.random.Generator, shape: tuple[int, int]) -> tuple[Numbers, Numbers, Numbers]:
    """Draw scores as `few_samples` does, from ten blocks of samples, and return them, their jackknife's errors and the excess of these."""
    blocks = generator.standard_normal((*shape, JACKKNIFE_BLOCKS, NUM_FEATURES))
    total, scale = blocks.sum(axis=-2, keepdims=True), JACKKNIFE_BLOCKS / np.sqrt(2 * NUM_FEATURES)

    def distance(sums: Numbers, num_blocks: int) -> Numbers:
        return scale * np.square(sums / num_blocks).sum(axis=-1)

    first = (distance(total, JACKKNIFE_BLOCKS)[..., 0] - NUM_FEATURES / np.sqrt(2 * NUM_FEATURES)).reshape(shape)
    without = distance(total - blocks, JACKKNIFE_BLOCKS - 1).reshape(-1, JACKKNIFE_BLOCKS)
    in_first_half = np.array([[half == "A" for half in split] for split in SPLITS], dtype=float)
    halves = [distance(which @ blocks, JACKKNIFE_BLOCKS // 2) for which in (in_first_half, 1 - in_first_half)]
    pairs = np.stack(halves, axis=-1).reshape(-1, len(SPLITS), 2)
    errors = np.array([jackknife_error(each) for each in without.tolist()]).reshape(shape)
    return first, errors, np.array([jackknife_excess(each) for each in pairs.tolist()]).reshape(shape)


def simulate(noise: str, rule: Rule, *, num_models: int = NUM_MODELS, seed: int = 0) -> dict[str, float]:
    """Return the measures of one kind of noise by name."""
    generator = np.random.default_rng(seed)
    shape = (num_models, rule.baseline_nights + YEAR)
    first = NOISES[noise](generator, shape)
    redrawn, previous = np.zeros(shape), first
    for _ in range(NUM_REDRAWN):
        fresh = NOISES[noise](generator, shape)
        if noise == "autocorrelated":
            fresh = AUTOCORRELATION * previous + np.sqrt(1 - AUTOCORRELATION**2) * generator.standard_normal(shape)
        redrawn, previous = redrawn + fresh / NUM_REDRAWN, fresh
    errors, excess = known_errors(generator, shape)
    if noise == "few samples":  # the errors of a baseline's nights are used, and depend on their scores
        for start in range(0, min(NUM_CAN_JOIN, shape[1]), _CHUNK):
            nights = slice(start, min(start + _CHUNK, shape[1]))
            drawn = few_samples_with_errors(generator, (num_models, nights.stop - start))
            for values, each in zip((first, errors, excess), drawn, strict=True):
                values[:, nights] = each
    trace = watch(first, redrawn, errors, rule, excess)
    alarms = (trace.jump != 0) | (trace.slow != 0)
    found = {
        "healthy, alarmed in a year": float(alarms.any(-1).mean()),
        "healthy, alarmed by a jump": float((trace.jump != 0).any(-1).mean()),
        "nights drawn again": float(trace.suspicious.mean()),
    }
    start = rule.baseline_nights + NUM_HEALTHY
    nights = slice(0, start + NUM_CHANGED)
    for name, change in CHANGES.items():
        shift = np.zeros(start + NUM_CHANGED)
        shift[start:] = change(np.arange(1.0, NUM_CHANGED + 1))
        trace = watch(first[:, nights] + shift, redrawn[:, nights] + shift, errors[:, nights], rule, excess[:, nights])
        alarms = ((trace.jump > 0) | (trace.slow > 0))[:, start:]
        night = np.where(alarms.any(-1), alarms.argmax(-1) + 1, np.inf)
        found |= {
            f"{name}, found in 90 nights": float(alarms.any(-1).mean()),
            f"{name}, median nights": float(np.median(night)),
            f"{name}, missed in the same night": float((night > 1).mean()),
        }
    return found


def table(measured: dict[str, dict[str, float]]) -> str:
    """Return the table of RESULTS.md."""
    lines = ["| noise | " + " | ".join(["healthy, alarmed in a year", *CHANGES]) + " |", "|---" * (2 + len(CHANGES)) + "|"]
    for noise, found in measured.items():
        cells = [f"{found['healthy, alarmed in a year']:.1%}"]
        for name in CHANGES:
            same = 1 - found[f"{name}, missed in the same night"]
            median = found[f"{name}, median nights"]
            words = f"median {median:.0f}" if np.isfinite(median) else f"median over {NUM_CHANGED}"
            cells.append(f"{found[f'{name}, found in 90 nights']:.1%}, {words}, at once {same:.1%}")
        lines.append(f"| {noise} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the simulation; the exit status is the number of goals that are missed, see above."""
    parser = argparse.ArgumentParser(description=__doc__)
    for field in dataclasses.fields(Rule):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--num-models", type=int, default=NUM_MODELS)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    options = {name: given.pop(name) for name in ("num_models", "seed")}
    rule = Rule(**given)
    measured = {noise: simulate(noise, rule, **options) for noise in NOISES}
    print(table(measured))
    print(
        json.dumps(
            {noise: {name: each if np.isfinite(each) else None for name, each in found.items()} for noise, found in measured.items()}
        )
    )
    missed = 0
    for noise, found in measured.items():
        for name, (limit, words) in GOALS.items():
            if found[name] > limit:
                missed += 1
                print(f"missed, {noise} noise: {name}: {found[name]:.4g}; the goal is {words}", file=sys.stderr)
    return missed


if __name__ == "__main__":
    sys.exit(main())

"""The nightly detector on simulated models, with its goals; `make bench-nightly`.

Each row is 10,000 models with a baseline of 20 healthy nights, whose night-to-night standard deviation is 1. Healthy ones go on for a
year; the others are healthy for another 10 nights and then change for good. The detector knows a standard error of each score that is
itself an estimate, as the jackknife over ten blocks gives it. The noise of a night is normal, heavy-tailed (t with 4 degrees of freedom,
scaled to variance 1) or autocorrelated (AR(1) with 0.3, also between the scores of one night).

It prints the table of RESULTS.md and one JSON line. The exit status is the number of goals that normal noise misses; the other kinds of
noise are reported, since fresh noise every night makes the scores of one model independent.
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

Numbers = NDArray[np.float64]
NUM_MODELS = 10_000
NUM_HEALTHY = 10
NUM_CHANGED = 90
YEAR = 365
JACKKNIFE_BLOCKS = 10
AUTOCORRELATION = 0.3
CHANGES: dict[str, Callable[[Numbers], Numbers]] = {
    "1 sd worse": lambda night: 0 * night + 1,
    "2 sd worse": lambda night: 0 * night + 2,
    "3 sd worse": lambda night: 0 * night + 3,
    "5 sd worse": lambda night: 0 * night + 5,
    "drift of 0.1 sd a night": lambda night: 0.1 * night,
}
GOALS = {
    "healthy, alarmed in a year": (0.05, "at most 5 %"),
    "2 sd worse, median nights": (7, "at most 7"),
    "drift of 0.1 sd a night, median nights": (20, "at most 20"),
    "5 sd worse, missed in the same night": (0.01, "at most 1 %"),
}


def normal(generator: np.random.Generator, shape: tuple[int, int]) -> Numbers:
    """Draw independent normal noise."""
    return generator.standard_normal(shape)


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


NOISES = {"normal": normal, "heavy-tailed": heavy_tailed, "autocorrelated": autocorrelated}


def simulate(noise: str, rule: Rule, *, num_models: int = NUM_MODELS, seed: int = 0, error_scale: float = 1.0) -> dict[str, float]:
    """Return the measures of one kind of noise by name; `error_scale` is the size of the known errors in standard deviations of a night."""
    generator = np.random.default_rng(seed)
    shape = (num_models, rule.baseline_nights + YEAR)
    first = NOISES[noise](generator, shape)
    redrawn, previous = np.zeros(shape), first
    for _ in range(NUM_REDRAWN):
        fresh = NOISES[noise](generator, shape)
        if noise == "autocorrelated":
            fresh = AUTOCORRELATION * previous + np.sqrt(1 - AUTOCORRELATION**2) * generator.standard_normal(shape)
        redrawn, previous = redrawn + fresh / NUM_REDRAWN, fresh
    errors = error_scale * np.sqrt(generator.chisquare(JACKKNIFE_BLOCKS - 1, shape) / (JACKKNIFE_BLOCKS - 1))
    trace = watch(first, redrawn, errors, rule)
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
        trace = watch(first[:, nights] + shift, redrawn[:, nights] + shift, errors[:, nights], rule)
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
            cells.append(f"{found[f'{name}, found in 90 nights']:.1%}, median {found[f'{name}, median nights']:.0f}, at once {same:.1%}")
        lines.append(f"| {noise} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the simulation; the exit status is the number of goals that normal noise misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    for field in dataclasses.fields(Rule):
        kind = int if field.name == "baseline_nights" else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--num-models", type=int, default=NUM_MODELS)
    parser.add_argument("--error-scale", type=float, default=1.0, help="known errors, in standard deviations of a night")
    given = vars(parser.parse_args())
    options = {name: given.pop(name) for name in ("num_models", "error_scale")}
    measured = {noise: simulate(noise, Rule(**given), **options) for noise in NOISES}
    print(table(measured))
    print(json.dumps(measured))
    missed = 0
    for noise, found in measured.items():
        for name, (limit, words) in GOALS.items():
            if found[name] > limit:
                missed += noise == "normal"
                print(f"missed, {noise} noise: {name}: {found[name]:.4g}; the goal is {words}", file=sys.stderr)
    return missed


if __name__ == "__main__":
    sys.exit(main())

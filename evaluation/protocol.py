"""The protocol card: everything that a number depends on, beside the number.

Distances of the same model differ by whole units between protocols (counts, resize, sampler, weights), so a number
without its card can't be compared with anything.
"""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from training.config import SamplingConfig
from training.diffusion.spacing import parse_spacing

_PACKAGES = ("iddpm-pipelines", "torch", "numpy", "torch-fidelity")


def versions() -> dict[str, str]:
    """Versions of what computed the number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def num_sampling_steps(sampling: SamplingConfig, num_timesteps: int) -> int:
    """The paper's K: network evaluations an image."""
    return len(parse_spacing(sampling.spacing, num_timesteps))


def describe_sampling(sampling: SamplingConfig, num_timesteps: int) -> str:
    """The sampler in words: "ancestral, 250 of 4,000 steps"."""
    name = {"ancestral": "ancestral", "ddim": f"DDIM, eta {sampling.eta:g}", "dpm_solver_pp": "DPM-Solver++ (2M)"}[sampling.method]
    clip = "" if sampling.clip_denoised else ", x_0 not clipped"
    return f"{name}, {num_sampling_steps(sampling, num_timesteps):,} of {num_timesteps:,} steps{clip}"


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that what is chosen on one draw is not reported on the same draw.

    Args:
        seed: The experiment's.
        purpose: "score" (the same noise at every checkpoint and decay), "choose", "report", "nightly-2026-11-24".
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:6])


def as_plain(value: Any) -> Any:
    """The value as JSON carries it: tuples as lists, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {str(name): as_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value

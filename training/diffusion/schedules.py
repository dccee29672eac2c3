"""The noise schedules: beta_t and alpha_bar_t = prod_s (1 - beta_s).

In float64 throughout: in float32 the cosine schedule's first beta is off by 0.9%.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.config.experiment import Schedule
from training.shapes import Float64

COSINE_OFFSET = 0.008
MAX_BETA = 0.999


def beta_schedule(name: Schedule, num_timesteps: int) -> Float64[Tensor, " timesteps"]:
    """Return the schedule of that name over T timesteps; an unknown name, or too small a T, is a ValueError."""
    if name == "linear":
        return linear_betas(num_timesteps)
    if name == "cosine":
        return cosine_betas(num_timesteps)
    raise ValueError(f"there is no schedule {name!r}; use 'linear' or 'cosine'")


def alpha_bars(name: Schedule, num_timesteps: int) -> Float64[Tensor, " timesteps"]:
    """Return alpha_bar_t at all T timesteps of the schedule of that name; raises as `beta_schedule`."""
    return (1.0 - beta_schedule(name, num_timesteps)).cumprod(0)


def linear_betas(num_timesteps: int) -> Float64[Tensor, " timesteps"]:
    """Return beta from 10^-4 to 0.02, times 1000/T, so that alpha_bar has the same shape for every T.

    Ho et al. (2020) with T = 1000; supplement section 1 for T = 4000 (0.0001/4 to 0.02/4).

    Raises:
        ValueError: T is 20 or less, for which the last beta would reach 1.
    """
    if num_timesteps <= 20:
        raise ValueError(f"the linear schedule needs more than 20 timesteps (beta would reach 1), got {num_timesteps}")
    scale = 1000.0 / num_timesteps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64)


def alpha_bar_cosine(u: float) -> float:
    """Return f(u) = cos^2((u + s) / (1 + s) * pi/2), s = 0.008, for u = t/T in [0, 1]: equation 17, not yet divided by f(0)."""
    return math.cos((u + COSINE_OFFSET) / (1.0 + COSINE_OFFSET) * math.pi / 2.0) ** 2


def cosine_betas(num_timesteps: int) -> Float64[Tensor, " timesteps"]:
    """Return beta_t = min(1 - f(t/T) / f((t-1)/T), 0.999), t from 1 to T: equation 17 and the clipping below it.

    Only the last one is clipped for the paper's T; without it alpha_bar_T would be 0.
    """
    f = [alpha_bar_cosine(t / num_timesteps) for t in range(num_timesteps + 1)]
    betas = [min(1.0 - f[t] / f[t - 1], MAX_BETA) for t in range(1, num_timesteps + 1)]
    return torch.tensor(betas, dtype=torch.float64)

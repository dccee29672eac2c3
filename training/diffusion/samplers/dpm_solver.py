"""DPM-Solver++ (2M): a second-order multistep solver of the probability-flow ODE, for good images from about 20 steps.

With alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) and half the log signal-to-noise ratio lambda = log(alpha / sigma), the
ODE from step s to the less noisy step t is solved exactly, but for the integral, by

    x_t = sigma_t / sigma_s x_s + sigma_t integral_{lambda_s}^{lambda_t} e^lambda x_0(lambda) d lambda,

where x_0(lambda) is the network's prediction along the path. Holding it constant gives DDIM; a straight line through
the last two predictions gives this solver.

Source: Lu et al. 2022, "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from training.diffusion.process import GaussianProcess, Model
from training.shapes import Float


def dpm_solver_pp_loop(
    process: GaussianProcess,
    model: Model,
    x: Float[Tensor, "batch channels *size"],
    *,
    clip_denoised: bool = True,
    model_kwargs: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "batch channels *size"]:
    """Walks the chain from its noisiest step to x_0, with one network evaluation a step.

    The first step has no earlier prediction and is of first order. The last one goes to alpha_bar = 1, where lambda is
    infinite and the solution is the predicted x_0 itself. A variance that the model learned is not used.

    Args:
        process: The chain.
        model: The network.
        x: Noise, N(0, 1).
        clip_denoised: Clamp the predicted x_0 to [-1, 1] at every step.
        model_kwargs: Passed to the network.
        on_step: Called after each step with the number of steps done and the images so far.
    """
    alpha_bars = process.alpha_bars.tolist()
    before: tuple[Tensor, float] | None = None
    for num_done, k in enumerate(reversed(range(process.num_timesteps)), start=1):
        t = torch.full((len(x),), k, dtype=torch.int64, device=x.device)
        with torch.no_grad():
            x_0 = process.p_mean_variance(model, x, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs).x_0
        x = x_0 if k == 0 else dpm_solver_pp_step(x, x_0, before, alpha_bars[k], alpha_bars[k - 1])
        before = x_0, alpha_bars[k]
        if on_step is not None:
            on_step(num_done, x)
    return x


def dpm_solver_pp_step(
    x: Float[Tensor, "batch channels *size"],
    x_0: Float[Tensor, "batch channels *size"],
    before: tuple[Tensor, float] | None,
    alpha_bar: float,
    alpha_bar_next: float,
) -> Float[Tensor, "batch channels *size"]:
    """One step: x' = sigma' / sigma x - alpha' (e^{-h} - 1) D, with D = x_0 + (x_0 - x_0_before) h / (2 h_before).

    Here h is the step's length in lambda and h_before that of the step before.

    Deviation: h / h_before counts as at most 1. Even strides in t end with a step into t = 0 that is several times longer
    in lambda than the one before it, and a straight line is not true that far: at 20 steps it makes the published solver
    worse than DDIM on data whose exact solution is known. Where steps do not grow nothing changes, and the order is the same.

    Args:
        x: Images at `alpha_bar`.
        x_0: The prediction there.
        before: The prediction of the step before, and its alpha_bar; None for a first-order step.
        alpha_bar: Of x, in (0, 1).
        alpha_bar_next: Of the result, in (alpha_bar, 1).
    """
    h = half_log_snr(alpha_bar_next) - half_log_snr(alpha_bar)
    target = x_0
    if before is not None:
        x_0_before, alpha_bar_before = before
        h_before = half_log_snr(alpha_bar) - half_log_snr(alpha_bar_before)
        target = x_0 + 0.5 * min(h / h_before, 1.0) * (x_0 - x_0_before)
    return math.sqrt((1 - alpha_bar_next) / (1 - alpha_bar)) * x - math.sqrt(alpha_bar_next) * math.expm1(-h) * target


def half_log_snr(alpha_bar: float) -> float:
    """Half the log signal-to-noise ratio, log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), for alpha_bar in (0, 1)."""
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))

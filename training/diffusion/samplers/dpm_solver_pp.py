"""DPM-Solver++ (2M): a second-order multistep solver of the probability-flow ODE, for good images from about 20 steps.

With alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) and half the log signal-to-noise ratio lambda = log(alpha / sigma), the
ODE from step s to the less noisy step t has the exact solution

    x_t = sigma_t / sigma_s x_s + sigma_t integral_{lambda_s}^{lambda_t} e^lambda x_0(lambda) d lambda,

where x_0(lambda) is the network's prediction along the path. A constant x_0 gives DDIM; a straight line through
the last two predictions gives this solver.

Source: Lu et al. 2022, "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", algorithm 2.
"""

from __future__ import annotations

import math

from torch import Tensor

from training.config.experiment import SamplingConfig
from training.diffusion.process import GaussianProcess, ModelPrediction
from training.diffusion.samplers.sampler import Sampler
from training.shapes import Float


class DPMSolverPP(Sampler):
    """The solver's step, of one network evaluation; a variance that the model learned is not used.

    The first step has no earlier prediction and is of first order. The last one goes to alpha_bar = 1, where lambda is
    infinite and the solution is the predicted x_0 itself.
    """

    description = "DPM-Solver++ (2M)"

    def move(
        self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, previous: ModelPrediction | None
    ) -> Tensor:
        """Return `dpm_solver_pp_sample`, or the predicted x_0 in the last step."""
        if k == 0:
            return prediction.x_0
        alpha_bars = process.alpha_bars
        before = (previous.x_0, float(alpha_bars[k + 1])) if previous is not None else None
        return dpm_solver_pp_sample(x_t, prediction.x_0, before, float(alpha_bars[k]), float(alpha_bars[k - 1]))


def dpm_solver_pp_sample(
    x: Float[Tensor, "batch channels *size"],
    x_0: Float[Tensor, "batch channels *size"],
    before: tuple[Tensor, float] | None,
    alpha_bar: float,
    alpha_bar_next: float,
) -> Float[Tensor, "batch channels *size"]:
    """Return x' = sigma' / sigma x - alpha' (e^{-h} - 1) D, with D = x_0 + (x_0 - x_0_before) h / (2 h_before).

    Here h is the step's length in lambda and h_before that of the step before.

    Deviation: h / h_before counts as at most 1. Even strides in t end with a step into t = 0 that is several times longer
    in lambda than the one before it, and a straight line is inaccurate over that distance: at 20 steps it makes the published solver
    worse than DDIM on data whose exact solution is known. Where the steps do not grow, nothing changes. The order stays the same.

    Args:
        x_0: The prediction there.
        before: The prediction of the step before, and its alpha_bar; None for a first-order step.
        alpha_bar: That of x, in (0, 1).
        alpha_bar_next: That of the result, in (alpha_bar, 1).
    """
    h = half_log_snr(alpha_bar_next) - half_log_snr(alpha_bar)
    target = x_0
    if before is not None:
        x_0_before, alpha_bar_before = before
        h_before = half_log_snr(alpha_bar) - half_log_snr(alpha_bar_before)
        target = x_0 + 0.5 * min(h / h_before, 1.0) * (x_0 - x_0_before)
    return math.sqrt((1 - alpha_bar_next) / (1 - alpha_bar)) * x - math.sqrt(alpha_bar_next) * math.expm1(-h) * target


def half_log_snr(alpha_bar: float) -> float:
    """Return half the log signal-to-noise ratio, log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), for alpha_bar in (0, 1)."""
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))


def make_sampler(config: SamplingConfig) -> DPMSolverPP:
    """Return the sampler of the config."""
    return DPMSolverPP()

"""DPM-Solver++ of orders 1 to 3: multistep solvers, for good images from about 10 steps.

The equation is in `training.diffusion.samplers.multistep`. A constant x_0 gives order 1, a straight line through the last two predictions
order 2 (2M), and a parabola through the last three order 3 (3M). Without noise (eta = 0) order 1 is DDIM. Noise repairs the errors of
earlier steps, as ancestral sampling's does, but makes each step's own error larger: which eta is best depends on the model.

Source: Lu et al. 2022, "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", algorithm 2; its section 4.3
for eta = 1.
"""

from __future__ import annotations

import math

from torch import Tensor

from training.config.experiment import MultistepOrder, SamplingConfig
from training.diffusion.process import GaussianProcess, ModelPrediction
from training.diffusion.samplers.multistep import exponential_step, half_log_snr, polynomial_weights
from training.diffusion.samplers.sampler import Sampler, Visits
from training.shapes import Float

LONGEST_EXTRAPOLATION = 2.0


class DPMSolverPP(Sampler):
    """The solver's step, of one network evaluation; a variance that the model learned is not used.

    The first steps have fewer earlier predictions and are of lower order. The last one goes to alpha_bar = 1, where lambda is
    infinite and the solution is the predicted x_0 itself.
    """

    def __init__(self, order: MultistepOrder = 2, eta: float = 0.0) -> None:
        """Set the order, and the noise of a step: 0 is the probability-flow ODE, 1 the reverse SDE (SDE-DPM-Solver++)."""
        self.eta = eta
        self.num_visits = order - 1
        self.is_stochastic = eta > 0
        self.description = f"DPM-Solver++ ({order}M)" + (f", eta {eta:g}" if eta > 0 else "")

    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        """Return the solution of `dpm_solver_pp_sample` or `third_order_sample` and its noise, or the predicted x_0 in the last step."""
        if k == 0:
            return prediction.x_0
        alpha_bars = process.alpha_bars[k - 1 : k + 3].tolist()
        earlier = [(visit.prediction.x_0, alpha_bar) for visit, alpha_bar in zip(visits, alpha_bars[2:], strict=False)]
        x = self._without_noise(x_t, prediction.x_0, earlier, alpha_bars[1], alpha_bars[0])
        if self.eta == 0:
            return x
        h = half_log_snr(alpha_bars[0]) - half_log_snr(alpha_bars[1])
        return x + math.sqrt(1 - alpha_bars[0]) * math.sqrt(-math.expm1(-2 * self.eta**2 * h)) * noise

    def _without_noise(
        self, x: Tensor, x_0: Tensor, earlier: list[tuple[Tensor, float]], alpha_bar: float, alpha_bar_next: float
    ) -> Tensor:
        if len(earlier) == 2:
            before, at, then = (half_log_snr(a) for a in (earlier[0][1], alpha_bar, alpha_bar_next))
            if then - at <= LONGEST_EXTRAPOLATION * (at - before):
                return third_order_sample(x, x_0, earlier, alpha_bar, alpha_bar_next, self.eta)
        return dpm_solver_pp_sample(x, x_0, earlier[0] if earlier else None, alpha_bar, alpha_bar_next, self.eta)


def dpm_solver_pp_sample(
    x: Float[Tensor, "batch channels *size"],
    x_0: Float[Tensor, "batch channels *size"],
    before: tuple[Tensor, float] | None,
    alpha_bar: float,
    alpha_bar_next: float,
    eta: float = 0.0,
) -> Float[Tensor, "batch channels *size"]:
    """Return x' = sigma' / sigma e^{-eta^2 h} x - alpha' (e^{-c h} - 1) D, with D = x_0 + (x_0 - x_0_before) h / (2 h_before).

    Here h is the step's length in lambda, h_before that of the step before, and c = 1 + eta^2. The noise of the step is left out.

    Deviation: h / h_before counts as at most 1. Even strides in t end with a step into t = 0 that is several times longer
    in lambda than the one before it, and a straight line is inaccurate over that distance: at 20 steps it makes the published solver
    worse than DDIM on data whose exact solution is known. Where the steps do not grow, nothing changes. The order stays the same.

    Args:
        x_0: The prediction there.
        before: The prediction of the step before, and its alpha_bar; None for a first-order step.
        alpha_bar: That of x, in (0, 1).
        alpha_bar_next: That of the result, in (alpha_bar, 1).
        eta: Noise of the step, in [0, 1].
    """
    target = x_0
    if before is not None:
        target = extrapolated(x_0, before, alpha_bar, alpha_bar_next)
    return exponential_step(x, target, alpha_bar, alpha_bar_next, eta)


def extrapolated(x_0: Tensor, before: tuple[Tensor, float], alpha_bar: float, alpha_bar_next: float) -> Tensor:
    """Return D of `dpm_solver_pp_sample`: x_0 in the middle of the step, by the line through the last two predictions."""
    x_0_before, alpha_bar_before = before
    h = half_log_snr(alpha_bar_next) - half_log_snr(alpha_bar)
    h_before = half_log_snr(alpha_bar) - half_log_snr(alpha_bar_before)
    return x_0 + 0.5 * min(h / h_before, 1.0) * (x_0 - x_0_before)


def third_order_sample(
    x: Float[Tensor, "batch channels *size"],
    x_0: Float[Tensor, "batch channels *size"],
    earlier: list[tuple[Tensor, float]],
    alpha_bar: float,
    alpha_bar_next: float,
    eta: float = 0.0,
) -> Float[Tensor, "batch channels *size"]:
    """Return the exact solution for the parabola through the last three predictions of x_0, without its noise.

    Deviation: the authors' code halves the term of second order, which leaves a method of second order (the test measures both).
    A step more than twice as long as the one before is of second order, for the reason in `dpm_solver_pp_sample`.

    Args:
        earlier: The last two predictions before x_0, the latest first, and the alpha_bar of each; the rest is as there.
    """
    start = half_log_snr(alpha_bar)
    h = half_log_snr(alpha_bar_next) - start
    nodes = [(half_log_snr(alpha_bar_before) - start) / h for _, alpha_bar_before in earlier]
    weights = polynomial_weights((1 + eta**2) * h, nodes)  # with c tau for tau, the SDE's integral is the ODE's over c h
    result = exponential_step(x, x_0, alpha_bar, alpha_bar_next, eta)
    for weight, (x_0_before, _) in zip(weights, earlier, strict=True):
        result = result + math.sqrt(alpha_bar_next) * weight * (x_0_before - x_0)
    return result


def make_sampler(config: SamplingConfig) -> DPMSolverPP:
    """Return the sampler of the config."""
    return DPMSolverPP(config.order, config.eta)

"""DEIS with Adams-Bashforth steps in t (tAB-DEIS) of orders 1 to 3: a multistep solver of the probability-flow ODE for eps.

With alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) and rho = sigma / alpha, x / alpha changes by eps d rho. The step from rho to
rho' draws a polynomial in t through the last predictions of eps, and integrates it:

    x' / alpha' = x / alpha + integral_rho^rho' sum_j L_j(t) eps_j d rho, where L_j is 1 at t_j and 0 at the other timesteps.

Source: Zhang & Chen 2023, "Fast sampling of diffusion models with exponential integrator", equations 14 and 15.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.config.experiment import MultistepOrder, SamplingConfig
from training.diffusion.process import GaussianProcess, ModelPrediction
from training.diffusion.samplers.sampler import Sampler, Visits


class DEIS(Sampler):
    """The solver's step, of one network evaluation; a variance that the model learned is not used.

    The first steps have fewer earlier predictions and are of lower order; order 1 is DDIM. The last step returns the predicted x_0.
    """

    def __init__(self, order: MultistepOrder = 2) -> None:
        """Set the order."""
        self.num_visits = order - 1
        self.description = f"tAB{order - 1}-DEIS"

    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        """Return x', or the predicted x_0 in the last step."""
        if k == 0:
            return prediction.x_0
        nodes = process.timesteps[k : k + 1 + len(visits)]
        timesteps = torch.arange(nodes[-1], process.timesteps[k - 1] - 1, -1)  # all of the schedule's, also those between the kept ones
        rho = (1.0 / process.schedule_alpha_bars[timesteps] - 1.0).sqrt()
        u, first = self.variable(timesteps, rho), nodes[-1] - nodes[0]
        weights = adams_bashforth_weights(u[first:], rho[first:], [float(u[nodes[-1] - t]) for t in nodes])
        alpha_bar = float(process.alpha_bars[k - 1])
        # The weights add up to rho' - rho, so that the first two terms are DDIM's step; nothing cancels where rho is large.
        x = math.sqrt(alpha_bar) * prediction.x_0 + math.sqrt(1 - alpha_bar) * prediction.eps
        for weight, visit in zip(weights[1:], visits, strict=True):
            x = x + math.sqrt(alpha_bar) * weight * (visit.prediction.eps - prediction.eps)
        return x

    def variable(self, timesteps: Tensor, rho: Tensor) -> Tensor:
        """Return the variable of the polynomials at each timestep: t. A subclass may take another, such as log rho."""
        return timesteps.double()


def adams_bashforth_weights(u: Tensor, rho: Tensor, nodes: Sequence[float]) -> list[float]:
    """Return integral L_j(u) d rho for each node u_j, where L_j is the Lagrange polynomial, by the trapezoidal rule.

    Args:
        u: Places along the step, float64; the polynomial's variable.
        rho: sigma / alpha at each of them, float64.
        nodes: u of each prediction.
    """
    weights = []
    for j, node in enumerate(nodes):
        lagrange = torch.ones_like(u)
        for other in (other for i, other in enumerate(nodes) if i != j):
            lagrange = lagrange * (u - other) / (node - other)
        weights.append(float(torch.trapezoid(lagrange, rho)))
    return weights


def make_sampler(config: SamplingConfig) -> DEIS:
    """Return the sampler of the config."""
    return DEIS(config.order)

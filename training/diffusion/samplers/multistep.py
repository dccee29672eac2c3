"""Coefficients of the multistep solvers, which draw a polynomial through the latest predictions of x_0.

With alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) and half the log signal-to-noise ratio lambda = log(alpha / sigma), the
probability-flow ODE from step s to the less noisy step t has the exact solution

    x_t = sigma_t / sigma_s x_s + sigma_t integral_{lambda_s}^{lambda_t} e^lambda x_0(lambda) d lambda,

where x_0(lambda) is the network's prediction along the path. A reverse SDE with eta times the noise of the usual one has the same
distribution of x_t at each step. With h = lambda_t - lambda_s and c = 1 + eta^2 its solution is

    x_t = sigma_t / sigma_s e^{-eta^2 h} x_s + alpha_t integral_0^h c e^{c (tau - h)} x_0(lambda_s + tau) d tau
          + sigma_t sqrt(1 - e^{-2 eta^2 h}) z,

where z is N(0, 1). Source: Xue et al. 2023, "SA-Solver", whose tau is eta here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def half_log_snr(alpha_bar: float) -> float:
    """Return half the log signal-to-noise ratio, log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), for alpha_bar in (0, 1)."""
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))


def polynomial_weights(h: float, nodes: Sequence[float]) -> list[float]:
    """Return w with integral_0^h e^{tau - h} (p(tau) - p(0)) d tau = sum_i w_i (p(nodes_i h) - p(0)).

    Exact for polynomials of a degree up to the number of nodes.

    Args:
        h: Length of the step in lambda, above 0.
        nodes: Places of the other predictions in units of h, 0 being the start: below 0 for earlier ones, 1 for the end.
    """
    moments = [_moment(h, m) for m in range(1, len(nodes) + 1)]
    powers = torch.tensor([[node**m for node in nodes] for m in range(1, len(nodes) + 1)], dtype=torch.float64)
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()  # type: ignore[no-any-return]


def _moment(h: float, m: int) -> float:
    """Return M_m = integral_0^h e^{tau - h} (tau / h)^m d tau = 1 - m / h M_{m-1}, for which M_0 = 1 - e^{-h}."""
    if h < 0.5:  # the recursion would cancel; the same as a power series
        return h * sum((-h) ** j * math.factorial(m) / math.factorial(m + 1 + j) for j in range(14))
    value = -math.expm1(-h)
    for degree in range(1, m + 1):
        value = 1.0 - degree / h * value
    return value


def exponential_step(x: Tensor, x_0: Tensor, alpha_bar: float, alpha_bar_next: float, eta: float = 0.0) -> Tensor:
    """Return the first-order solution without its noise, sigma' / sigma e^{-eta^2 h} x - alpha' (e^{-c h} - 1) x_0.

    With eta = 0 that is DDIM's step.
    """
    h = half_log_snr(alpha_bar_next) - half_log_snr(alpha_bar)
    kept = math.sqrt((1 - alpha_bar_next) / (1 - alpha_bar)) * math.exp(-(eta**2) * h)
    return kept * x - math.sqrt(alpha_bar_next) * math.expm1(-(1 + eta**2) * h) * x_0

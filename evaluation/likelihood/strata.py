"""Which timesteps stand for all of them in an unbiased estimate of the variational bound."""

from __future__ import annotations

import torch

# Share of the last timesteps against the first ones in `strata`.
_LAST_TIMESTEPS_WEIGHT = 0.2


def strata(num_timesteps: int, num_steps: int) -> tuple[int, ...]:
    """Boundaries 0 = b_0 < ... < b_K = T of the strata from which the stratified estimate draws one timestep each.

    sum over t of L_t = sum over strata of (width * mean of L_t within), and one t drawn uniformly from a stratum gives an
    unbiased estimate of its summand. A stratum of one timestep is exact. Variance is least when a stratum's share of
    the timesteps falls with the size and the change of L_t there, and L_t falls about as 1/t: near x_0 the signal-to-noise
    ratio goes as 1/t^2, and the error of the predicted x_0, which its difference multiplies, as t^2. So the strata have
    equal mass under 1 / (t + 1), which makes the low timesteps exact, plus a smaller 1 / (T - t) for the last ones, where a
    model that does not know pure noise well can be far off (figure 3). Timestep 0, the decoder, is always exact.

    Args:
        num_timesteps: T.
        num_steps: K.

    Raises:
        ValueError: K is not in 2..T.
    """
    if not 2 <= num_steps <= num_timesteps:
        raise ValueError(f"strata of {num_timesteps} timesteps number 2 to {num_timesteps}, not {num_steps}")
    t = torch.arange(num_timesteps, dtype=torch.float64)
    mass = 1 / (t + 1) + _LAST_TIMESTEPS_WEIGHT / (num_timesteps - t)
    cumulative = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    bounds = [0, 1]
    for remaining in range(num_steps - 1, 0, -1):
        here = bounds[-1]
        target = cumulative[here] + (cumulative[-1] - cumulative[here]) / remaining
        following = int((cumulative - target).abs().argmin())
        bounds.append(min(max(following, here + 1), num_timesteps - (remaining - 1)))
    return tuple(bounds)

"""Averages of the weights rebuilt after training, from snapshots of power-function averages.

Write theta(tau) for the weights after update tau, theta(0) for the initial ones. Every stored average is a sum of
theta(tau) p(tau), and so is the requested one; its profile is approximated by a linear combination of the stored
ones, and the same combination of the stored weights is the result (Karras et al. 2024, section 3.2 and appendix C,
which minimises the distance of the profiles themselves).

Here the distance is taken between the cumulative profiles C(tau) = p(0) + ... + p(tau), and coefficients sum to 1.
For sum_tau theta(tau) dp(tau) = - sum_tau dC(tau) (theta(tau + 1) - theta(tau)): where updates are uncorrelated, the
sum of dC(tau)^2 is the expected squared error of the weights, up to the size of an update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config.errors import UserError
from training.models.ema import power_exponent
from training.shapes import Float64

_CHUNK = 1 << 16


class ReconstructionError(UserError):
    """The requested average cannot be rebuilt from the stored snapshots; callers catch it to leave that average out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A stored power-function average: the number of updates done, and the relative standard deviation."""

    step: int
    std: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """A linear combination of snapshots.

    Attributes:
        coefficients: One per snapshot; then one for the initial weights.
        error: Expected |rebuilt - exact| / |current - exact|, between weights, where updates are uncorrelated.
    """

    coefficients: tuple[float, ...]
    error: float


_MAX_WHOLE = 32
"""Up to this number of snapshots all take part in an average. Ablations on digits store at most 30, and keep the numbers that they had."""


def sufficient(snapshots: Sequence[Snapshot], *, step: int, decay: float, max_error: float) -> list[Snapshot]:
    """Return the snapshots of the 2, 4, 8, ... steps nearest to `step`, the fewest with a tenth of `max_error`; all where few are stored.

    Far ones hardly take part in the average, and reading them costs as much as the near ones.
    """
    steps = sorted({snapshot.step for snapshot in snapshots}, key=lambda stored: (abs(stored - step), stored))
    count = 2 if len(snapshots) > _MAX_WHOLE else len(steps)
    while count < len(steps):
        near = [snapshot for snapshot in snapshots if snapshot.step in steps[:count]]
        if combine(near, step=step, decay=decay).error <= max_error / 10:
            return near
        count *= 2
    return list(snapshots)


def combine(snapshots: Sequence[Snapshot], *, step: int, decay: float) -> Combination:
    """Return the combination of snapshots and the initial weights that is nearest to an exponential average at `step`.

    Raises:
        ReconstructionError: There is no snapshot.
    """
    if not snapshots:
        raise ReconstructionError("there are no snapshots; set optim.ema_snapshot_stds (such as 0.01,0.05,0.1,0.2) before training")
    count = len(snapshots) + 1
    gram = torch.zeros(count + 1, count + 1, dtype=torch.float64)
    last = max(step, *(snapshot.step for snapshot in snapshots))
    for start in range(0, last, _CHUNK):
        tau = torch.arange(start, min(start + _CHUNK, last), dtype=torch.float64)
        rows = [_power_profile(tau, snapshot.step, snapshot.std) for snapshot in snapshots]
        stacked = torch.stack([*rows, torch.ones_like(tau), _exponential_profile(tau, step, decay)])
        gram += stacked @ stacked.T
    # Least squares under the constraint that coefficients sum to 1 (with a Lagrange multiplier).
    scale = gram[-1, -1]
    system = torch.ones(count + 1, count + 1, dtype=torch.float64)
    system[-1, -1] = 0.0
    system[:count, :count] = gram[:count, :count] / scale
    target = torch.cat([gram[:count, -1] / scale, torch.ones(1, dtype=torch.float64)])
    x = torch.linalg.lstsq(system, target.unsqueeze(1), rcond=1e-14, driver="gelsd").solution[:count, 0]
    residual = torch.cat([x, -torch.ones(1, dtype=torch.float64)])
    behind = float(gram[-1, -1]) - (last - step)  # the current weights' cumulative profile is 0 before `step`, 1 from it on
    error = max(0.0, float(residual @ gram @ residual)) / max(behind, 1e-300)
    return Combination(coefficients=tuple(x.tolist()), error=error**0.5)


def reconstruct(
    snapshots: Sequence[Snapshot],
    load: Callable[[Snapshot], Mapping[str, Tensor]],
    *,
    step: int,
    decay: float,
    initial: Mapping[str, Tensor],
    max_error: float = 0.005,
) -> tuple[dict[str, Tensor], float]:
    """Return the weights of an exponential average that training did not keep, and their expected error.

    Args:
        load: Returns a snapshot's weights; called for one at a time.
        initial: The weights before the first update, which follow from the experiment's seed.
        max_error: Largest expected |rebuilt - exact| / |current - exact| that is accepted.

    Raises:
        ReconstructionError: The snapshots do not determine the average to `max_error`.
    """
    combination = combine(snapshots, step=step, decay=decay)
    if combination.error > max_error:
        nearest = min((snapshot.step for snapshot in snapshots), key=lambda each: abs(each - step))
        other_step = f"a step that has a snapshot (the nearest is {nearest:,}), " if nearest != step else ""
        raise ReconstructionError(
            f"the average of decay {decay:g} at step {step:,} can't be rebuilt: from these {len(snapshots)} snapshots it would be off by "
            f"{combination.error:.2%}, and {max_error:.2%} is allowed; a longer average, {other_step}or more frequent or narrower "
            "snapshots would do"
        )
    total: dict[str, Tensor] = {}
    for index, coefficient in enumerate(combination.coefficients):
        state = load(snapshots[index]) if index < len(snapshots) else initial
        for name, tensor in state.items():
            part = tensor.to(torch.float64) * coefficient
            total[name] = total[name].add_(part) if name in total else part
    return {name: tensor.to(torch.float32) for name, tensor in total.items()}, combination.error


def _power_profile(tau: Float64[Tensor, " steps"], step: int, std: float) -> Float64[Tensor, " steps"]:
    """Return C(tau) = min(tau / t, 1)^(gamma + 1): exactly that of `PowerEMA`'s recursion."""
    return (tau / step).clamp(max=1.0) ** (power_exponent(std) + 1.0)


def _exponential_profile(tau: Float64[Tensor, " steps"], step: int, decay: float) -> Float64[Tensor, " steps"]:
    """Return C(tau) = decay^(t - tau) up to t, with the initial weights' share decay^t at tau = 0; then 1."""
    return torch.where(tau < step, decay ** (step - tau).clamp(min=0.0), 1.0)

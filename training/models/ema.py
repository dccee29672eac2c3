"""Averages of the weights over training, any number of them at once.

`EMA` keeps exponential averages whose decays are fixed beforehand (supplement section 1: 0.9999). `PowerEMA` keeps
power-function averages, from snapshots of which other averages are rebuilt after training
(`training.models.posthoc_ema`): the sweep of supplement figure 7 from a single run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

SNAPSHOT_PREFIX = "power_ema_"


def average_name(decay: float) -> str:
    """Return the name of an exponential average in a checkpoint: "ema_0.9999"."""
    return f"ema_{decay}"


def snapshot_name(std: float) -> str:
    """Return the name of a power-function average in a checkpoint: "power_ema_0.05"."""
    return f"{SNAPSHOT_PREFIX}{std}"


def power_exponent(std: float) -> float:
    """Return the exponent gamma >= 0 of the power-function average with relative standard deviation `std`.

    The average at step t weights the weights of step tau by tau^gamma, and has standard deviation
    sigma t = t sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) (Karras et al. 2024, "Analyzing and improving the
    training dynamics of diffusion models", equation 126).

    Args:
        std: sigma, the width of the average relative to the length of training; between 0 and 1 / sqrt(12) = 0.289.

    Raises:
        ValueError: It is not.
    """
    if not 0.0 < std < 12**-0.5:
        raise ValueError(f"the relative standard deviation must be between 0 and 0.289, got {std}")
    low, high = 0.0, 4.0 / std
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        width = math.sqrt(middle + 1) / ((middle + 2) * math.sqrt(middle + 3))
        low, high = (middle, high) if width > std else (low, middle)
    return 0.5 * (low + high)


class _Averages:
    """Averages of a model's weights, one set for each decay or relative standard deviation."""

    def __init__(self, model: nn.Module, kinds: Iterable[float]) -> None:
        self._model, self._weights = model, _weights(model)
        self._averages = {kind: {name: tensor.detach().clone() for name, tensor in self._weights.items()} for kind in kinds}

    def _current(self, model: nn.Module) -> list[Tensor]:
        # Gathering hundreds of tensors by name takes milliseconds, so it is done once: they're updated in place.
        if model is not self._model:
            self._model, self._weights = model, _weights(model)
        return list(self._weights.values())

    @torch.no_grad()
    def _move(self, model: nn.Module, kind: float, weight: float) -> None:
        """Move one average in place: average += weight (current - average)."""
        torch._foreach_lerp_(list(self._averages[kind].values()), self._current(model), weight)

    def state_dict(self, kind: float) -> dict[str, Tensor]:
        """Return one average, under the model's names; the live tensors, not copies."""
        return dict(self._averages[kind])

    def load_state_dict(self, kind: float, state: Mapping[str, Tensor]) -> None:
        """Continue one average from a stored one; raise ValueError if names or shapes are not the model's."""
        average = self._averages[kind]
        wrong = sorted(average.keys() ^ state.keys()) or [name for name in average if average[name].shape != state[name].shape]
        if wrong:
            raise ValueError(f"the stored average {kind:g} is of another model: {wrong[0]!r} differs, as do {len(wrong) - 1} more")
        for name, tensor in average.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def distances(self, model: nn.Module) -> dict[float, float]:
        """Return |weights - average| / |weights| of each average."""
        weights = self._current(model)
        norm = _norm(weights)
        return {kind: _norm(torch._foreach_sub(weights, list(avg.values()))) / norm for kind, avg in self._averages.items()}


class EMA(_Averages):
    """Exponential moving averages: theta_ema <- d theta_ema + (1 - d) theta after each update.

    Starts as a copy of the initial weights, without warm-up or bias correction, as in the released code. After n updates
    the initial weights still count d^n: 37% after 10,000 updates of 0.9999.

    Args:
        kinds: The decays d, each between 0 and 1.
    """

    def update(self, model: nn.Module) -> None:
        """Move every average towards the current weights; once per optimiser update."""
        for decay in self._averages:
            self._move(model, decay, 1.0 - decay)


class PowerEMA(_Averages):
    """Power-function averages: at step t the weights of step tau count in proportion to tau^gamma.

    theta_power <- b theta_power + (1 - b) theta with b = (1 - 1/t)^(gamma + 1) (Karras et al. 2024, equation 127).
    The first update replaces the initial weights altogether, so that no trace of them is left.

    Args:
        stds: Relative standard deviations, each between 0 and 0.289.
    """

    def __init__(self, model: nn.Module, stds: Iterable[float]) -> None:
        super().__init__(model, stds)
        self._exponents = {std: power_exponent(std) for std in self._averages}

    def update(self, model: nn.Module, step: int) -> None:
        """Move every average towards the current weights.

        Args:
            step: Number of this update, from 1.
        """
        for std, exponent in self._exponents.items():
            self._move(model, std, 1.0 - (1.0 - 1.0 / step) ** (exponent + 1.0))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict themselves, which stay the same objects when the model moves to another device."""
    return dict(model.state_dict(keep_vars=True))


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors)))))

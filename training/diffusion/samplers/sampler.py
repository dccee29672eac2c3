"""The interface of all samplers: one step of the chain towards less noise."""

from __future__ import annotations

import importlib
from typing import Protocol, runtime_checkable

from torch import Tensor

from training.config.experiment import SamplingConfig
from training.diffusion.denoiser import Denoiser
from training.diffusion.process import ModelPrediction
from training.shapes import Float


@runtime_checkable
class Sampler(Protocol):
    """A rule that takes x_t to x_{t-1}."""

    @property
    def description(self) -> str:
        """Name and settings for reports, such as "DDIM, eta 0"."""
        ...

    @property
    def is_stochastic(self) -> bool:
        """True for a sampler whose steps use their noise."""
        ...

    def step(
        self,
        denoiser: Denoiser,
        x_t: Float[Tensor, "batch channels *size"],
        k: int,
        noise: Float[Tensor, "batch channels *size"],
        previous: ModelPrediction | None = None,
    ) -> tuple[Float[Tensor, "batch channels *size"], ModelPrediction]:
        """Take one step of the chain.

        Args:
            denoiser: The network on its chain.
            x_t: Images at step k.
            k: Position in the chain, K - 1 the noisiest, 0 the last one before x_0.
            noise: z, N(0, 1); without effect in the last step.
            previous: The prediction that the step before (k + 1) returned; None in the first step.

        Returns:
            Images at step k - 1 (x_0 after k = 0), and the prediction that they were made from.
        """
        ...


def make_sampler(config: SamplingConfig) -> Sampler:
    """Return the sampler that `config.method` names; the method's module in this folder makes it."""
    sampler: Sampler = importlib.import_module(f"{__package__}.{config.method}").make_sampler(config)
    return sampler

"""DDIM (Song et al. 2020, "Denoising diffusion implicit models"): deterministic at eta = 0, good from about 50 steps."""

from __future__ import annotations

import math

from torch import Tensor

from training.config.experiment import SamplingConfig
from training.diffusion.process import GaussianProcess, ModelPrediction
from training.diffusion.samplers.sampler import Sampler, Visits
from training.shapes import Float


class DDIM(Sampler):
    """The DDIM step; a learned variance is not used."""

    def __init__(self, eta: float = 0.0) -> None:
        """Set the noise of a step, in units of the ancestral sampler's with the fixed small variance, in [0, 1]."""
        self.eta = eta
        self.description = f"DDIM, eta {eta:g}"
        self.is_stochastic = eta > 0

    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        """Return `ddim_sample`."""
        return ddim_sample(process, prediction, k, noise, eta=self.eta)


def ddim_sample(
    process: GaussianProcess, p: ModelPrediction, k: int, noise: Float[Tensor, "batch channels *size"], *, eta: float = 0.0
) -> Float[Tensor, "batch channels *size"]:
    """Return x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) eps + sigma z.

    Here sigma^2 = eta^2 beta_tilde_t = eta^2 (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_{t-1}),
    which is 0 in the last step, and eps is derived from the (clipped) x_0. Source: Song et al. 2020, equations 12 and 16.

    Args:
        k: Position in the chain, 0 the least noisy.
        noise: z, N(0, 1); without effect where eta is 0.
        eta: 0 is deterministic, 1 is ancestral sampling with the fixed small variance.
    """
    alpha_bar_prev = float(process.alpha_bars_prev[k])
    variance = eta**2 * float(process.posterior_variance[k])
    mean = math.sqrt(alpha_bar_prev) * p.x_0 + math.sqrt(max(1 - alpha_bar_prev - variance, 0.0)) * p.eps
    return mean + math.sqrt(variance) * noise


def make_sampler(config: SamplingConfig) -> DDIM:
    """Return the sampler of the config."""
    return DDIM(config.eta)

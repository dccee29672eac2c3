"""DDIM (Song et al. 2020, "Denoising diffusion implicit models"): deterministic at eta = 0, good from about 50 steps."""

from __future__ import annotations

import math

from torch import Tensor

from training.config.experiment import ReverseVariance, SamplingConfig
from training.diffusion.process import GaussianProcess, ModelPrediction
from training.diffusion.samplers.sampler import Sampler, Visits
from training.shapes import Float


class DDIM(Sampler):
    """The DDIM step; a learned variance is not used."""

    def __init__(self, eta: float = 0.0, variance: ReverseVariance = "model") -> None:
        """Set eta, in [0, 1] (see `ddim_sample`), and the name of the variance, which the process computes."""
        self.eta = eta
        self.description = f"DDIM, eta {eta:g}" + ("" if variance == "model" else f", {variance} variance")
        self.is_stochastic = eta > 0 or variance != "model"

    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        """Return `ddim_sample`."""
        return ddim_sample(process, prediction, k, noise, eta=self.eta)


def ddim_sample(
    process: GaussianProcess, p: ModelPrediction, k: int, noise: Float[Tensor, "batch channels *size"], *, eta: float = 0.0
) -> Float[Tensor, "batch channels *size"]:
    """Return x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) eps + sigma z.

    Here sigma^2 = eta^2 beta_tilde_t = eta^2 (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_{t-1}),
    which is 0 in the last step, and eps is derived from the (clipped) x_0. Source: Song et al. 2020, equations 12 and 16.

    Where the process knows the errors of x_0, z's variance is greater by what x_0 does not determine, c^2 E|x_0 - x_0_theta|^2 / d, where
    c = sqrt(alpha_bar_{t-1}) - sqrt(1 - alpha_bar_{t-1} - sigma^2) sqrt(alpha_bar_t / (1 - alpha_bar_t)) is the weight of x_0 at a given
    x_t. Source: Bao et al. 2022, "Analytic-DPM", theorem 1 with their lambda = sigma.

    Args:
        k: Position in the chain, 0 the least noisy.
        noise: z, N(0, 1); without effect where eta is 0 and the process does not know the errors of x_0.
        eta: 0 is deterministic, 1 is ancestral sampling with the fixed small variance.
    """
    alpha_bar_prev = float(process.alpha_bars_prev[k])
    variance = eta**2 * float(process.posterior_variance[k])
    weight_of_eps = math.sqrt(max(1 - alpha_bar_prev - variance, 0.0))
    mean = math.sqrt(alpha_bar_prev) * p.x_0 + weight_of_eps * p.eps
    if process.x_0_errors is not None and k > 0:
        weight_of_x_0 = math.sqrt(alpha_bar_prev) - weight_of_eps / float(process.sqrt_recipm1_alpha_bars[k])
        variance += weight_of_x_0**2 * float(process.x_0_errors[k])
    return mean + math.sqrt(variance) * noise


def make_sampler(config: SamplingConfig) -> DDIM:
    """Return the sampler of the config."""
    return DDIM(config.eta, config.variance)

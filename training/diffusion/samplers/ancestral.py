"""Ancestral sampling, the paper's own (Ho et al. 2020, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from training.config.experiment import ReverseVariance, SamplingConfig
from training.diffusion.process import GaussianProcess, ModelPrediction
from training.diffusion.samplers.sampler import Sampler, Visits
from training.shapes import Float


class Ancestral(Sampler):
    """Draws x_{t-1} from p(x_{t-1} | x_t); the variance is the model's where it learned one."""

    is_stochastic = True

    def __init__(self, variance: ReverseVariance = "model") -> None:
        """Set the name of the variance, which the process computes."""
        self.description = "ancestral" if variance == "model" else f"ancestral, {variance} variance"

    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        """Draw x_{t-1}, or return the mean in the last step."""
        return p_sample(prediction, noise) if k > 0 else prediction.mean


def p_sample(p: ModelPrediction, noise: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:
    """Return x_{t-1} = mu_theta(x_t, t) + sigma_theta(x_t, t) z."""
    return p.mean + torch.exp(0.5 * p.log_variance) * noise


def make_sampler(config: SamplingConfig) -> Ancestral:
    """Return the sampler of the config."""
    return Ancestral(config.variance)

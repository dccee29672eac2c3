"""The best possible networks for data whose distribution is known: no training, exact answers.

E[x_0 | x_t] gives eps and Var[x_0 | x_t] the optimal variance of the reverse step, hence v. With them the variational
bound of discrete data equals its entropy, up to what the chain's steps cost, and the samplers' exact limits are known.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.diffusion.losses import vlb_term_bits_per_dim
from training.diffusion.process import Denoiser, GaussianProcess, ModelPrediction
from training.diffusion.samplers.sampler import Sampler, Visits

# Below this a variance of a reverse step is as good as none: an eighth of a grey level's width is 1e-3.
_SMALLEST_VARIANCE = 1e-12
# A network's outputs are bounded. A coarse chain's range [log beta_tilde, log beta] at t = 0 is so narrow that the decoder
# cannot become as sharp as it should be with such a v: that is what an even stride costs where low timesteps are missing.
_LARGEST_V = 100.0
_POSITIONS_AT_ONCE = 50


class Oracle:
    """A network that knows the data. Subclasses say what is known of x_0 given x_t."""

    def __init__(self, process: GaussianProcess) -> None:
        self.process = process

    def posterior(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_0 given x_t, float64."""
        raise AssertionError("an oracle says what it knows")

    def position(self, timesteps: Tensor) -> Tensor:
        """Return the positions in the chain of the timesteps that the network is given."""
        config = self.process.config
        original = (timesteps.double() * (config.num_timesteps / 1000 if config.rescale_timesteps else 1.0)).round().long()
        return torch.searchsorted(torch.tensor(self.process.timesteps), original)

    def __call__(self, x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        process, t, x = self.process, self.position(timesteps), x_t.double()
        alpha_bar = process.at("alpha_bars", t, x)
        mean, variance = self.posterior(x, alpha_bar)
        eps = (x - alpha_bar.sqrt() * mean) / (1 - alpha_bar).sqrt()
        if process.config.variance != "learned_range":
            return eps.float()
        best = process.at("posterior_variance", t, x) + process.at("posterior_mean_coef_x_0", t, x) ** 2 * variance
        low, high = process.at("posterior_log_variance_clipped", t, x), process.at("log_betas", t, x)
        v = 2 * (best.clamp(min=_SMALLEST_VARIANCE).log() - low) / (high - low) - 1
        v = v.clamp(-_LARGEST_V, _LARGEST_V)
        return torch.cat([eps, v.expand_as(eps)], 1).float()


class DiscreteOracle(Oracle):
    """Pixels independent, each one of a few 8-bit levels."""

    def __init__(self, process: GaussianProcess, levels: list[int], probabilities: list[float]) -> None:
        super().__init__(process)
        self.values = torch.tensor(levels, dtype=torch.float64) / 127.5 - 1
        self.log_probabilities = torch.tensor(probabilities, dtype=torch.float64).log()

    def posterior(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        distance = x_t.unsqueeze(-1) - alpha_bar.sqrt().unsqueeze(-1) * self.values
        weights = (self.log_probabilities - distance.square() / (2 * (1 - alpha_bar)).unsqueeze(-1)).softmax(-1)
        mean = weights @ self.values
        return mean, (weights * (self.values - mean.unsqueeze(-1)).square()).sum(-1)


class GaussianOracle(Oracle):
    """Pixels independent, each N(mean, std^2)."""

    def __init__(self, process: GaussianProcess, std: float, mean: float = 0.0) -> None:
        super().__init__(process)
        self.mean, self.std = mean, std

    def marginal_std(self, alpha_bar: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        return (alpha_bar * self.std**2 + 1 - alpha_bar).sqrt()

    def posterior(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        total = self.marginal_std(alpha_bar) ** 2
        mean = (self.std**2 * alpha_bar.sqrt() * x_t + (1 - alpha_bar) * self.mean) / total
        return mean, self.std**2 * (1 - alpha_bar) / total

    def flow(self, x: Tensor, start: float, stop: float) -> Tensor:
        """Exact solution of the probability-flow ODE: a pixel keeps its place in the marginal, (x - E x_t) / std x_t.

        Args:
            x: Pixels at alpha_bar = start.
            start: alpha_bar to leave from.
            stop: alpha_bar to arrive at.
        """
        stds = [self.marginal_std(torch.tensor(value, dtype=torch.float64)) for value in (start, stop)]
        return math.sqrt(stop) * self.mean + (x - math.sqrt(start) * self.mean) * stds[1] / stds[0]


class PointOracle(Oracle):
    """Each pixel known: eps is then the noise in x_t, whatever the step."""

    def __init__(self, process: GaussianProcess, x_0: Tensor) -> None:
        super().__init__(process)
        self.x_0 = x_0.double()

    def posterior(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        return self.x_0.expand_as(x_t), torch.zeros_like(x_t)


def discrete_images(levels: list[int], probabilities: list[float], num_images: int) -> tuple[Tensor, float]:
    """uint8 images (num_images, 3, 8, 8) that hold the levels in their exact proportions, and their entropy in bits/dim."""
    size = num_images * 3 * 8 * 8
    counts = [round(p * size) for p in probabilities]
    counts[-1] += size - sum(counts)
    pixels = torch.repeat_interleave(torch.tensor(levels, dtype=torch.uint8), torch.tensor(counts))
    shuffled = pixels[torch.randperm(size, generator=torch.Generator().manual_seed(0))]
    bits = -sum(count * math.log2(p) for count, p in zip(counts, probabilities, strict=True)) / size
    return shuffled.view(num_images, 3, 8, 8), bits


def expected_bits(process: GaussianProcess, levels: list[int], probabilities: list[float]) -> tuple[float, float]:
    """Bits/dim of `DiscreteOracle` without a draw: each term of the bound integrated over its noise and summed over the levels.

    A pixel's term depends on that pixel's noise alone, so the integral has one dimension. The images are of one pixel.

    Returns:
        The expectation, and the standard deviation of one pixel's bits where each term has noise of its own.
    """
    model = DiscreteOracle(process, levels, probabilities)
    noise = torch.linspace(-6.5, 6.5, 201, dtype=torch.float64)  # the trapezoidal rule has 7 digits here: as many as 1,001 points
    density = (-noise.square() / 2).exp()
    weights = (torch.tensor(probabilities, dtype=torch.float64).unsqueeze(-1) * density / density.sum()).flatten()
    values = (torch.tensor(levels, dtype=torch.float64) / 127.5 - 1).repeat_interleave(len(noise))
    x_0, eps = values.float().view(-1, 1, 1, 1), noise.repeat(len(levels)).view(-1, 1, 1, 1).float()
    mean, variance = float(weights @ process.prior_bits_per_dim(x_0).double()), 0.0
    for positions in torch.arange(process.num_timesteps).split(_POSITIONS_AT_ONCE):
        t = positions.repeat_interleave(len(x_0))
        x_0s, epss = x_0.repeat(len(positions), 1, 1, 1), eps.repeat(len(positions), 1, 1, 1)
        x_t = process.q_sample(x_0s, t, epss)
        p = Denoiser(process, model, clip_denoised=False).p_mean_variance(x_t, t)
        terms = vlb_term_bits_per_dim(process, p, x_0s, x_t, t).double().view(len(positions), -1)
        term_means = terms @ weights
        mean += float(term_means.sum())
        variance += float(((terms - term_means.unsqueeze(-1)).square() @ weights).sum())
    return mean, math.sqrt(variance)


class Recorder(Sampler):
    """A sampler that records the images after each step of another sampler."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.description, self.is_stochastic, self.num_visits = sampler.description, sampler.is_stochastic, sampler.num_visits
        self.states: list[Tensor] = []

    def correct(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, visits: Visits) -> Tensor:
        return self.sampler.correct(process, x_t, k, prediction, visits)

    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        self.states.append(self.sampler.move(process, x_t, k, prediction, noise, visits))
        return self.states[-1]

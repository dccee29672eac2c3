"""The interface of all samplers: one step of the chain towards less noise."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config.experiment import DiffusionConfig, SamplingConfig
from training.config.spacing import parse_spacing
from training.diffusion.noise import Stream, keyed_normal
from training.diffusion.process import Denoiser, GaussianProcess, ModelPrediction, make_process
from training.shapes import Float, Float64, Int64


@dataclass(frozen=True, slots=True)
class Visit:
    """A point of the path, and the network's prediction there. A method with a corrector has corrected the point since."""

    x: Tensor
    prediction: ModelPrediction


Visits = tuple[Visit, ...]
"""The points before the current one, the latest first: at k + 1, k + 2, ..."""


class Sampler(ABC):
    """A rule that takes x_t to x_{t-1}.

    Attributes:
        description: Name and settings for reports, such as "DDIM, eta 0".
        is_stochastic: True where the steps use their noise.
        num_visits: Number of earlier points that a step uses; 0 for a method of one step.
    """

    description: str
    is_stochastic = False
    num_visits = 0

    def step(
        self,
        denoiser: Denoiser,
        x_t: Float[Tensor, "batch channels *size"],
        k: int,
        noise: Float[Tensor, "batch channels *size"],
        visits: Visits = (),
    ) -> tuple[Float[Tensor, "batch channels *size"], Visits]:
        """Take one step of the chain, with one evaluation of the network.

        Args:
            k: Position in the chain, K - 1 the noisiest, 0 the last one before x_0.
            noise: z, N(0, 1); without effect in the last step.
            visits: What the step before (k + 1) returned; empty in the first step.

        Returns:
            Images at step k - 1 (x_0 after k = 0), and the points for the next step.
        """
        prediction = denoiser.p_mean_variance(x_t, torch.full((len(x_t),), k, device=x_t.device))
        x_t = self.correct(denoiser.process, x_t, k, prediction, visits)
        x = self.move(denoiser.process, x_t, k, prediction, noise, visits)
        return x, (Visit(x_t, prediction), *visits)[: self.num_visits]

    def correct(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, visits: Visits) -> Tensor:
        """Return x_t, in a method with a corrector a better one, now that the network has been evaluated there."""
        return x_t

    @abstractmethod
    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        """Return the images at step k - 1 from the prediction at x_t; see `step`."""


def make_sampler(config: SamplingConfig) -> Sampler:
    """Return the sampler that `config.method` names; the method's module in this folder makes it."""
    sampler: Sampler = importlib.import_module(f"{__package__}.{config.method}").make_sampler(config)
    return sampler


def make_sampling_process(
    diffusion: DiffusionConfig, sampling: SamplingConfig, x_0_errors: Float64[Tensor, " timesteps"] | None = None
) -> GaussianProcess:
    """Return the chain over the timesteps that `sampling.spacing` keeps of the model's T.

    Args:
        x_0_errors: See `GaussianProcess`; for a `sampling.variance` that needs them, and for no other.

    Raises:
        ValueError: The spacing is not understood, or T timesteps cannot give it, or there are no errors of x_0 for a variance that needs
            them, too many or too few, or errors for one that does not.
    """
    if (sampling.variance == "model") != (x_0_errors is None):
        has = "has no errors of x_0, which it needs" if x_0_errors is None else "takes no errors of x_0"
        raise ValueError(f"sampling.variance={sampling.variance!r} {has}")
    return make_process(diffusion, parse_spacing(sampling.spacing, diffusion.num_timesteps), x_0_errors)


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    *,
    indices: Int64[Tensor, " batch"],
    shape: tuple[int, int, int],
    seed: int,
) -> Float[Tensor, "batch channels height width"]:
    """Draw one image for each index, on the device of the indices.

    Args:
        denoiser: The network on its chain; its conditioning has one row per index, on the same device.
        indices: Which images to draw; image i of a seed is the same in any batch.
        shape: Channels, height, width.
        seed: Keys the noise. Models that are sampled with the same seed see the same noise.

    Returns:
        Images, about [-1, 1]; see `training.diffusion.pixels.quantize`.
    """
    timesteps = denoiser.process.timesteps

    def noise(k: int) -> Tensor:
        return keyed_normal(seed, Stream.SAMPLE_STEP, indices, shape, counter=timesteps[k])

    start = keyed_normal(seed, Stream.SAMPLE_START, indices, shape)
    return sample_loop(denoiser, sampler, start, noise=noise)


def sample_loop(
    denoiser: Denoiser,
    sampler: Sampler,
    x: Float[Tensor, "batch channels *size"],
    *,
    noise: Callable[[int], Tensor] | None = None,
) -> Float[Tensor, "batch channels *size"]:
    """Take every step of the chain, from the noisiest to x_0.

    Args:
        x: Noise, N(0, 1).
        noise: Returns z of step k, for a stochastic sampler; None means no noise.
    """
    visits: Visits = ()
    with torch.no_grad():
        for k in reversed(range(denoiser.process.num_timesteps)):
            z = noise(k) if noise is not None and sampler.is_stochastic and k > 0 else torch.zeros_like(x)
            x, visits = sampler.step(denoiser, x, k, z, visits)
    return x

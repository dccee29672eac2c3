"""Draw images by repeating a sampler's step over a (spaced) chain.

A sample is a function of (seed, image index): its first noise is keyed by both, its later noise by the original
timestep too. It therefore does not depend on its batch or on the number of processes, and two
models, or two objectives (figures 4, 20 and 21), can be compared on the same noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.config.experiment import DiffusionConfig, SamplingConfig
from training.config.spacing import parse_spacing
from training.diffusion.denoiser import Denoiser
from training.diffusion.noise import Stream, keyed_normal
from training.diffusion.process import GaussianProcess, ModelPrediction, make_process
from training.diffusion.samplers.sampler import Sampler
from training.shapes import Float, Int64


def make_sampling_process(diffusion: DiffusionConfig, sampling: SamplingConfig) -> GaussianProcess:
    """Return the chain over the timesteps that `sampling.spacing` keeps of the model's T.

    Raises:
        ValueError: The spacing is not understood, or T timesteps cannot give it.
    """
    return make_process(diffusion, parse_spacing(sampling.spacing, diffusion.num_timesteps))


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
        sampler: From `make_sampler`.
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
        denoiser: The network on the chain.
        sampler: The step to repeat.
        x: Noise, N(0, 1).
        noise: Returns z of step k, for a stochastic sampler; None means no noise.
    """
    prediction: ModelPrediction | None = None
    with torch.no_grad():
        for k in reversed(range(denoiser.process.num_timesteps)):
            z = noise(k) if noise is not None and sampler.is_stochastic and k > 0 else torch.zeros_like(x)
            x, prediction = sampler.step(denoiser, x, k, z, prediction)
    return x

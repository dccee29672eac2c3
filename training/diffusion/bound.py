"""Single terms of the variational bound, on noise that is keyed by image and timestep.

The key makes the noise common: two models, two chains or two estimators that evaluate an image at an original
timestep see the same x_t, so that their terms can be compared one by one (figure 3) and added in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.diffusion.denoiser import Denoiser
from training.diffusion.losses import vlb_term_bits_per_dim
from training.diffusion.noise import Stream, keyed_normal
from training.shapes import Float, Int64


def bound_terms(
    denoiser: Denoiser,
    x_0: Float[Tensor, "batch channels height width"],
    t: Int64[Tensor, " batch"],
    *,
    indices: Int64[Tensor, " batch"],
    seed: int,
) -> Float[Tensor, " batch"]:
    """Draw L_t of each image, in bits/dim: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), or at t = 0 -log p(x_0 | x_1).

    Args:
        denoiser: The network on its chain. The terms are those of the chain's own steps, not those of the original chain.
        x_0: Images on the grid of 256 levels, in [-1, 1].
        t: Position of each image in the chain.
        indices: Index of each image; keys the noise, with the original timestep.
        seed: Keys the noise.
    """
    process = denoiser.process
    original = torch.tensor(process.timesteps, device=t.device)[t]
    eps = keyed_normal(seed, Stream.LIKELIHOOD, indices, tuple(x_0.shape[1:]), counter=original)
    x_t = process.q_sample(x_0, t, eps)
    return vlb_term_bits_per_dim(process, denoiser.p_mean_variance(x_t, t), x_0, x_t, t)

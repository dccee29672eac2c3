"""Single terms of the variational bound, on noise that is keyed by image and timestep.

The key makes the noise common: two models, two chains or two estimators that evaluate an image at an original
timestep see the same x_t, so that their terms can be compared one by one (figure 3) and added in any order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from training.diffusion.losses import vlb_term_bits_per_dim
from training.diffusion.noise import Stream, keyed_normal
from training.diffusion.process import GaussianProcess, Model
from training.shapes import Float, Float64, Int64


def bound_terms(
    process: GaussianProcess,
    model: Model,
    x_0: Float[Tensor, "batch channels height width"],
    t: Int64[Tensor, " batch"],
    *,
    indices: Int64[Tensor, " batch"],
    seed: int,
    clip_denoised: bool = True,
    model_kwargs: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, " batch"]:
    """One draw of L_t for each image, in bits/dim: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), or at t = 0 -log p(x_0 | x_1).

    Args:
        process: The chain; its terms are those of its own steps, not of the chain it was taken from.
        model: The network.
        x_0: Images on the grid of 256 levels, in [-1, 1].
        t: Position of each image in the chain.
        indices: Index of each image; keys the noise, with the original timestep.
        seed: Keys the noise.
        clip_denoised: Clamp the predicted x_0 to [-1, 1], as the paper's released code does.
        model_kwargs: Passed to the network.
    """
    original = torch.tensor(process.timesteps, device=t.device)[t]
    eps = keyed_normal(seed, Stream.LIKELIHOOD, indices, tuple(x_0.shape[1:]), counter=original)
    x_t = process.q_sample(x_0, t, eps)
    p = process.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
    return vlb_term_bits_per_dim(process, p, x_0, x_t, t)


def vlb_ratio(
    process: GaussianProcess,
    first: Model,
    second: Model,
    x_0: Float[Tensor, "batch channels height width"],
    *,
    indices: Int64[Tensor, " batch"],
    seed: int,
    clip_denoised: bool = True,
    model_kwargs: Mapping[str, Tensor] | None = None,
) -> Float64[Tensor, " num_timesteps"]:
    """Mean L_t of the first model over mean L_t of the second, for each t of the chain, on common noise (figure 3).

    Below 1 the first model is the better one at that timestep. Arguments as `bound_terms`.
    """
    ratios = []
    with torch.no_grad():
        for k in range(process.num_timesteps):
            t = torch.full_like(indices, k)
            first_term, second_term = (
                bound_terms(process, model, x_0, t, indices=indices, seed=seed, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
                .double()
                .mean()
                for model in (first, second)
            )
            ratios.append(first_term / second_term)
    return torch.stack(ratios)

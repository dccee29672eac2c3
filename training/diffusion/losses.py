"""The objectives: L_simple, L_vlb and L_hybrid, and the terms of the variational bound in bits/dim.

A term of the bound is a mean over an image's dimensions, in bits. L_vlb is the sum of T such terms, so that one of
them, at a t drawn uniformly, times T estimates it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.diffusion.noise import Stream, keyed_normal
from training.diffusion.process import Denoiser, GaussianProcess, Model, ModelPrediction
from training.shapes import Float, Int64

# Half the distance between neighbouring 8-bit levels, which are 2/255 apart in [-1, 1].
HALF_BIN = 1.0 / 255.0
# An x_0 beyond these is level 0 or 255, whose bin is open on the outside.
LOWEST, HIGHEST = -0.999, 0.999
MIN_PROBABILITY = 1e-12


@dataclass(frozen=True)
class LossTerms:
    """The loss of each image in a batch, float32.

    Attributes:
        l_simple: Mean squared error of the network's prediction.
        l_vlb: T times the bound's term at the image's t, in bits/dim; None under L_simple, which does not use it.
    """

    loss: Float[Tensor, " batch"]
    l_simple: Float[Tensor, " batch"]
    l_vlb: Float[Tensor, " batch"] | None


def training_losses(
    process: GaussianProcess,
    network: Model,
    x_0: Float[Tensor, "batch channels *size"],
    t: Int64[Tensor, " batch"],
    eps: Float[Tensor, "batch channels *size"],
    conditioning: Mapping[str, Tensor] | None = None,
) -> LossTerms:
    """Return each image's contribution to the objective, at one t: equations 14, 4 and 16.

    Only the network may run under autocast: the rest is float32, whatever the surrounding context.

    Args:
        process: The chain; its number of timesteps is the T that multiplies a term of the bound. Its config says the
            objective, the vlb_weight (the paper's lambda) and the stop-gradient.
        network: The network. Its predicted x_0 is not clipped here.
        conditioning: Further inputs of the network: labels `y`, low-resolution images `low_res`, keys of dropout.
    """
    config = process.config
    x_t = process.q_sample(x_0, t, eps)
    output = network(x_t, process.model_timesteps(t), **(conditioning or {})).to(x_t.dtype)
    prediction, v = process.split_output(output, x_0.shape[1])
    target = eps if config.prediction == "eps" else x_0
    l_simple = mean_over_dims((target - prediction).square())
    if config.objective == "simple":
        return LossTerms(loss=l_simple, l_simple=l_simple, l_vlb=None)
    if config.objective == "hybrid" and config.stop_gradient and v is not None:
        output = torch.cat([prediction.detach(), v], dim=1)
    p = process.read_output(output, x_t, t, clip_denoised=False)
    l_vlb = process.num_timesteps * vlb_term_bits_per_dim(process, p, x_0, x_t, t)
    loss = l_vlb if config.objective == "vlb" else l_simple + config.vlb_weight * l_vlb
    return LossTerms(loss=loss, l_simple=l_simple, l_vlb=l_vlb)


def vlb_term_bits_per_dim(
    process: GaussianProcess,
    p: ModelPrediction,
    x_0: Float[Tensor, "batch channels *size"],
    x_t: Float[Tensor, "batch channels *size"],
    t: Int64[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Return the bound's terms as means over dimensions, in bits: equations 6 and 5.

    They are L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and L_0 = -log p(x_0 | x_1) for the first t. Both are computed for
    every image and are finite, because the gradient of `torch.where` needs it.

    Args:
        x_0: Images on the 8-bit grid in [-1, 1].
        t: Kept timestep of each; 0 is the paper's t = 1.
    """
    q = process.q_posterior(x_0, x_t, t)
    kl = mean_over_dims(normal_kl(q.mean, q.log_variance, p.mean, p.log_variance))
    nll = -mean_over_dims(discretized_gaussian_log_likelihood(x_0, p.mean, 0.5 * p.log_variance))
    return torch.where(t == 0, nll, kl) / math.log(2.0)


def normal_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """Return KL(q || p) of two Gaussians, elementwise, in nats; the arguments broadcast.

    (log s_p^2 - log s_q^2 - 1 + s_q^2 / s_p^2 + (m_q - m_p)^2 / s_p^2) / 2.
    """
    return 0.5 * (
        log_variance_p
        - log_variance_q
        - 1.0
        + (log_variance_q - log_variance_p).exp()
        + (mean_q - mean_p).square() * (-log_variance_p).exp()
    )


def discretized_gaussian_log_likelihood(
    x_0: Float[Tensor, "*image"], mean: Float[Tensor, "*image"], log_scale: Float[Tensor, "*image"]
) -> Float[Tensor, "*image"]:
    """Return the log of a Gaussian's mass on the 8-bit level of x_0, elementwise, in nats, at least log 1e-12.

    Ho et al. (2020) equation 13: the bin is x_0 -+ 1/255, open downwards for level 0 and upwards for level 255. As in the released code the
    mass is a difference of two probabilities. In float32 that is a multiple of 2^-25 = 3e-8, or 0, which counts as 1e-12.

    Args:
        x_0: Images on the 8-bit grid in [-1, 1].
        log_scale: Log of its standard deviation.
    """
    inverse_scale = (-log_scale).exp()
    upper = approximate_normal_cdf((x_0 - mean + HALF_BIN) * inverse_scale)
    lower = approximate_normal_cdf((x_0 - mean - HALF_BIN) * inverse_scale)
    mass = torch.where(x_0 < LOWEST, upper, torch.where(x_0 > HIGHEST, 1.0 - lower, upper - lower))
    return mass.clamp(min=MIN_PROBABILITY).log()


def approximate_normal_cdf(x: Float[Tensor, "*image"]) -> Float[Tensor, "*image"]:
    """Return (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, within 1.8e-4 of the normal distribution function.

    The released code's approximation, with which the published likelihoods were computed.
    """
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def mean_over_dims(x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """Return the mean over all dimensions of each image."""
    return x.flatten(1).mean(1)


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
        indices: Index of each image; keys the noise, with the original timestep.
    """
    process = denoiser.process
    original = torch.tensor(process.timesteps, device=t.device)[t]
    eps = keyed_normal(seed, Stream.LIKELIHOOD, indices, tuple(x_0.shape[1:]), counter=original)
    x_t = process.q_sample(x_0, t, eps)
    return vlb_term_bits_per_dim(process, denoiser.p_mean_variance(x_t, t), x_0, x_t, t)

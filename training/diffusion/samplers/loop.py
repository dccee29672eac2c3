"""Drawing images: ancestral sampling and DDIM, one step at a time and as loops over a (spaced) chain.

A sample is a function of (seed, image index): its first noise is keyed by both, its later noise by the original
timestep too. It therefore does not depend on the batch it sits in or on how many processes share the work, and two
models, or two objectives (figures 4, 20 and 21), can be compared on the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from training.config.experiment import DiffusionConfig, SamplingConfig
from training.config.spacing import parse_spacing
from training.diffusion.noise import Stream, keyed_normal
from training.diffusion.process import GaussianProcess, Model, make_process
from training.diffusion.samplers.dpm_solver import dpm_solver_pp_loop
from training.shapes import Float, Int64, UInt8

OnStep = Callable[[int, Tensor], None]


def make_sampling_process(diffusion: DiffusionConfig, sampling: SamplingConfig) -> GaussianProcess:
    """The chain that `sampling.spacing` keeps of the model's T timesteps.

    Raises:
        ValueError: The spacing is not understood, or T timesteps cannot give it.
    """
    return make_process(diffusion, parse_spacing(sampling.spacing, diffusion.num_timesteps))


def sample(
    process: GaussianProcess,
    model: Model,
    *,
    indices: Int64[Tensor, " batch"],
    shape: tuple[int, int, int],
    seed: int,
    config: SamplingConfig,
    model_kwargs: Mapping[str, Tensor] | None = None,
    device: torch.device | str | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Draws one image for each index.

    Args:
        process: The chain to walk, from `make_sampling_process`.
        model: The network; it is given original timesteps, whatever the chain keeps.
        indices: Which images to draw; image i of a seed is the same in any batch.
        shape: Channels, height, width.
        seed: Of the noise. Models compared under one seed are compared on the same noise.
        config: Sampler, eta and clipping. Its spacing was used to make `process`.
        model_kwargs: Labels `y` and low-resolution images `low_res`, one per index.
        device: Where to sample; None is the device of `indices`.
        on_step: Called after each step with the number of steps done and the images so far.

    Returns:
        Images, about [-1, 1]; see `quantize`.
    """
    indices = indices.to(device) if device is not None else indices
    kwargs = {name: value.to(indices.device) for name, value in (model_kwargs or {}).items()}
    with torch.no_grad():
        x = keyed_normal(seed, Stream.SAMPLE_START, indices, shape)
        if config.method == "dpm_solver_pp":
            return dpm_solver_pp_loop(process, model, x, clip_denoised=config.clip_denoised, model_kwargs=kwargs, on_step=on_step)
        stochastic = config.method == "ancestral" or config.eta > 0
        for num_done, k in enumerate(reversed(range(process.num_timesteps)), start=1):
            t = torch.full_like(indices, k)
            noise = torch.zeros_like(x)
            if stochastic and k > 0:
                noise = keyed_normal(seed, Stream.SAMPLE_STEP, indices, shape, counter=process.timesteps[k])
            if config.method == "ancestral":
                x = p_sample(process, model, x, t, noise, clip_denoised=config.clip_denoised, model_kwargs=kwargs)
            else:
                x = ddim_sample(process, model, x, t, noise, eta=config.eta, clip_denoised=config.clip_denoised, model_kwargs=kwargs)
            if on_step is not None:
                on_step(num_done, x)
    return x


def p_sample(
    process: GaussianProcess,
    model: Model,
    x_t: Float[Tensor, "batch channels *size"],
    t: Int64[Tensor, " batch"],
    noise: Float[Tensor, "batch channels *size"],
    *,
    clip_denoised: bool = True,
    model_kwargs: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "batch channels *size"]:
    """One ancestral step: x_{t-1} = mu_theta(x_t, t) + sigma_theta(x_t, t) z, without the noise at t = 0.

    Source: Ho et al. 2020, algorithm 2; the variance is the model's where it learned one.

    Args:
        process: The chain.
        model: The network.
        x_t: Images at step t.
        t: Position in the chain, 0 the least noisy.
        noise: z, N(0, 1).
        clip_denoised: Clamp the predicted x_0 to [-1, 1] first.
        model_kwargs: Passed to the network.
    """
    prediction = process.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
    return prediction.mean + _unless_last(t, x_t) * torch.exp(0.5 * prediction.log_variance) * noise


def ddim_sample(
    process: GaussianProcess,
    model: Model,
    x_t: Float[Tensor, "batch channels *size"],
    t: Int64[Tensor, " batch"],
    noise: Float[Tensor, "batch channels *size"],
    *,
    eta: float = 0.0,
    clip_denoised: bool = True,
    model_kwargs: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "batch channels *size"]:
    """One DDIM step, whose noise is eta times the ancestral sampler's (with the fixed small variance).

    x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) eps + sigma z, without the noise at t = 0,
    where sigma^2 = eta^2 beta_tilde_t = eta^2 (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_{t-1}).

    eps is derived from the (clipped) x_0; a learned variance is not used. Source: Song et al. 2020, equations 12, 16.

    Args:
        process: The chain.
        model: The network.
        x_t: Images at step t.
        t: Position in the chain, 0 the least noisy.
        noise: z, N(0, 1); of no effect where eta is 0.
        eta: 0 is deterministic, 1 is ancestral sampling.
        clip_denoised: Clamp the predicted x_0 to [-1, 1] first.
        model_kwargs: Passed to the network.
    """
    prediction = process.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
    variance = eta**2 * process.posterior_variance.to(t.device)[t]
    alpha_bar_prev = process.alpha_bars_prev.to(t.device)[t]
    mean = (
        _per_image(alpha_bar_prev.sqrt(), x_t) * prediction.x_0
        + _per_image((1 - alpha_bar_prev - variance).clamp(min=0).sqrt(), x_t) * prediction.eps
    )
    return mean + _unless_last(t, x_t) * _per_image(variance.sqrt(), x_t) * noise


def ddim_reverse_sample(
    process: GaussianProcess,
    model: Model,
    x_t: Float[Tensor, "batch channels *size"],
    t: Int64[Tensor, " batch"],
    *,
    clip_denoised: bool = True,
    model_kwargs: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "batch channels *size"]:
    """One step of DDIM's ODE towards noise: x_{t+1} = sqrt(alpha_bar_{t+1}) x_0 + sqrt(1 - alpha_bar_{t+1}) eps.

    Past the last step alpha_bar is 0, so that the step from there gives eps. Source: Song et al. 2020, section 4.3.
    Arguments as `ddim_sample`.
    """
    prediction = process.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
    alpha_bar_next = torch.cat([process.alpha_bars[1:], process.alpha_bars.new_zeros(1)]).to(t.device)[t]
    return _per_image(alpha_bar_next.sqrt(), x_t) * prediction.x_0 + _per_image((1 - alpha_bar_next).sqrt(), x_t) * prediction.eps


def ddim_encode(
    process: GaussianProcess,
    model: Model,
    x: Float[Tensor, "batch channels *size"],
    *,
    clip_denoised: bool = True,
    model_kwargs: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "batch channels *size"]:
    """The noise from which DDIM with eta = 0 makes these images, up to the discretisation's error.

    Args:
        process: The chain.
        model: The network.
        x: Images, taken as the chain's least noisy step.
        clip_denoised: Clamp the predicted x_0 to [-1, 1] at every step.
        model_kwargs: Passed to the network.
    """
    with torch.no_grad():
        for k in range(process.num_timesteps - 1):
            t = torch.full((len(x),), k, dtype=torch.int64, device=x.device)
            x = ddim_reverse_sample(process, model, x, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
    return x


def quantize(
    x: Float[Tensor, "batch channels height width"], rounding: Literal["truncate", "round"] = "truncate"
) -> UInt8[Tensor, "batch channels height width"]:
    """[-1, 1] to the 256 levels of a stored image.

    Args:
        x: Images in [-1, 1]; values outside are clamped.
        rounding: "truncate" is what the paper's released code does before it computes an FID: 63 of the 256 exact
            levels come back one lower. "round" brings every level back.
    """
    levels = (x + 1) * 127.5
    if rounding == "round":
        levels = levels.round()
    return levels.clamp(0, 255).to(torch.uint8)


def _unless_last(t: Tensor, x: Tensor) -> Tensor:
    """1 where t > 0, else 0, with as many dimensions as x."""
    return _per_image(t != 0, x)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """One value an image, rounded to x's precision only now, with as many dimensions as x."""
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

"""The forward process q, its posterior, and the reverse process p that a network's output gives.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, over T timesteps or over the K of them that are kept. Ho et
al. (2020) section 2, and sections 2.1 and 3.1 of the paper. Here t counts from 0: the paper's t is t + 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from training.config.experiment import DiffusionConfig
from training.diffusion.schedules import alpha_bars
from training.shapes import Float, Float64, Int64

# A network: (x_t, timesteps as `GaussianProcess.model_timesteps` gives them, **conditioning) -> its output channels.
Model = Callable[..., Tensor]


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian over images; `log_variance` broadcasts against `mean`."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class ModelPrediction:
    """The distribution p(x_{t-1} | x_t), with the x_0 that its mean was made from and the eps that goes with that x_0."""

    mean: Tensor
    log_variance: Tensor
    x_0: Tensor
    eps: Tensor


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """A chain of noising steps, one for each kept timestep; make one with `make_process`.

    The tables are float64, index 0 for the paper's t = 1. Maths on images is in their own precision, float32 or more.

    Attributes:
        config: Defines the meaning of a network's output, and the original T.
        timesteps: The kept timesteps of the original chain, increasing. A t of this class counts the kept ones.
        alpha_bars: alpha_bar at the kept timesteps.
        x_0_errors: Mean squared error of the network's x_0 at the kept timesteps, from which the variance is then computed (see
            `optimal_variance`); None takes the variance of the config.
    """

    config: DiffusionConfig
    timesteps: tuple[int, ...]
    alpha_bars: Float64[Tensor, " timesteps"]
    x_0_errors: Float64[Tensor, " timesteps"] | None = None
    _on_device: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_timesteps(self) -> int:
        """The number of kept timesteps K; T for the whole chain."""
        return len(self.timesteps)

    @cached_property
    def schedule_alpha_bars(self) -> Float64[Tensor, " all_timesteps"]:
        """alpha_bar at all T timesteps of the schedule."""
        return alpha_bars(self.config.schedule, self.config.num_timesteps)

    @cached_property
    def alpha_bars_prev(self) -> Float64[Tensor, " timesteps"]:
        """alpha_bar of the kept timestep before; 1 before the first."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bars[:-1]])

    @cached_property
    def betas(self) -> Float64[Tensor, " timesteps"]:
        """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1} over the kept timesteps (equation 19). Not clipped again."""
        return 1.0 - self.alpha_bars / self.alpha_bars_prev

    @cached_property
    def log_betas(self) -> Float64[Tensor, " timesteps"]:
        """Upper end of the learned range: log beta_t."""
        return self.betas.log()

    @cached_property
    def sqrt_alpha_bars(self) -> Float64[Tensor, " timesteps"]:
        """The factor of x_0 in x_t: sqrt(alpha_bar_t) (equation 8)."""
        return self.alpha_bars.sqrt()

    @cached_property
    def sqrt_one_minus_alpha_bars(self) -> Float64[Tensor, " timesteps"]:
        """The factor of the noise in x_t: sqrt(1 - alpha_bar_t) (equation 8)."""
        return (1.0 - self.alpha_bars).sqrt()

    @cached_property
    def sqrt_recip_alpha_bars(self) -> Float64[Tensor, " timesteps"]:
        """sqrt(1 / alpha_bar_t)."""
        return (1.0 / self.alpha_bars).sqrt()

    @cached_property
    def sqrt_recipm1_alpha_bars(self) -> Float64[Tensor, " timesteps"]:
        """sqrt(1 / alpha_bar_t - 1); 81,165 at the end of the cosine chain, more than float16 can represent."""
        return (1.0 / self.alpha_bars - 1.0).sqrt()

    @cached_property
    def posterior_variance(self) -> Float64[Tensor, " timesteps"]:
        """beta_tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t (equation 10); 0 for the first timestep."""
        return self.betas * (1.0 - self.alpha_bars_prev) / (1.0 - self.alpha_bars)

    @cached_property
    def posterior_log_variance_clipped(self) -> Float64[Tensor, " timesteps"]:
        """Lower end of the learned range: log beta_tilde_t; the first value, which would be log 0, is replaced by the second.

        A chain of one timestep has no second value; its value is log beta, the upper end of the range.
        """
        if self.num_timesteps == 1:
            return self.log_betas
        return torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()

    @cached_property
    def fixed_large_log_variance(self) -> Float64[Tensor, " timesteps"]:
        """Ho et al.'s log beta_t; the first value is log beta_tilde_2, which gives the better likelihood there."""
        return torch.cat([self.posterior_log_variance_clipped[:1], self.log_betas[1:]])

    @cached_property
    def posterior_mean_coef_x_0(self) -> Float64[Tensor, " timesteps"]:
        """sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t): the weight of x_0 in equation 11."""
        return self.betas * self.alpha_bars_prev.sqrt() / (1.0 - self.alpha_bars)

    @cached_property
    def posterior_mean_coef_x_t(self) -> Float64[Tensor, " timesteps"]:
        """sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t): the weight of x_t in equation 11."""
        return (1.0 - self.alpha_bars_prev) * (1.0 - self.betas).sqrt() / (1.0 - self.alpha_bars)

    @cached_property
    def optimal_variance(self) -> Float64[Tensor, " timesteps"]:
        """beta_tilde_t + c_t^2 E|x_0 - x_0_theta(x_t)|^2 / d, where c_t is the weight of x_0 in equation 11.

        The one variance for all pixels with which the mean's likelihood is greatest. Source: Bao et al. 2022, "Analytic-DPM: an analytic
        estimate of the optimal reverse variance in diffusion probabilistic models", theorem 1, and Bao et al. 2022, "Estimating the
        optimal covariance with imperfect mean in diffusion probabilistic models", for an x_0_theta that is not E[x_0 | x_t].

        Raises:
            ValueError: The errors of x_0 are not known.
        """
        if self.x_0_errors is None:
            raise ValueError("the optimal variance needs the errors of x_0")
        return self.posterior_variance + self.posterior_mean_coef_x_0.square() * self.x_0_errors

    @cached_property
    def optimal_log_variance(self) -> Float64[Tensor, " timesteps"]:
        """Logarithm of `optimal_variance`."""
        return self.optimal_variance.log()

    def at(self, name: str, t: Int64[Tensor, " batch"], like: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return a table's value at each image's t."""
        key = (name, t.device)
        if key not in self._on_device:
            self._on_device[key] = getattr(self, name).to(t.device)
        values = self._on_device[key][t].to(torch.promote_types(like.dtype, torch.float32))
        return values.view(-1, *[1] * (like.ndim - 1))

    def model_timesteps(self, t: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the network's input for t: the original timestep, as a float, in units of T/1000 where the config rescales."""
        key = ("timesteps", t.device)
        if key not in self._on_device:
            self._on_device[key] = torch.tensor(self.timesteps, device=t.device)
        original = self._on_device[key][t].float()
        return original * (1000.0 / self.config.num_timesteps) if self.config.rescale_timesteps else original

    def q_sample(
        self, x_0: Float[Tensor, "batch channels *size"], t: Int64[Tensor, " batch"], eps: Float[Tensor, "batch channels *size"]
    ) -> Float[Tensor, "batch channels *size"]:
        """Return x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (equation 9)."""
        return self.at("sqrt_alpha_bars", t, x_0) * x_0 + self.at("sqrt_one_minus_alpha_bars", t, x_0) * eps

    def q_posterior(
        self, x_0: Float[Tensor, "batch channels *size"], x_t: Float[Tensor, "batch channels *size"], t: Int64[Tensor, " batch"]
    ) -> Gaussian:
        """Return q(x_{t-1} | x_t, x_0), equations 10 to 12. Its log-variance is finite at t = 0, where its variance is 0."""
        return Gaussian(
            mean=self.at("posterior_mean_coef_x_0", t, x_0) * x_0 + self.at("posterior_mean_coef_x_t", t, x_t) * x_t,
            log_variance=self.at("posterior_log_variance_clipped", t, x_0),
        )

    def predict_x_0_from_eps(
        self, x_t: Float[Tensor, "batch channels *size"], t: Int64[Tensor, " batch"], eps: Float[Tensor, "batch channels *size"]
    ) -> Float[Tensor, "batch channels *size"]:
        """Return x_0 = x_t / sqrt(alpha_bar_t) - sqrt(1 / alpha_bar_t - 1) eps: equation 9 solved for x_0."""
        return self.at("sqrt_recip_alpha_bars", t, x_t) * x_t - self.at("sqrt_recipm1_alpha_bars", t, x_t) * eps

    def predict_eps_from_x_0(
        self, x_t: Float[Tensor, "batch channels *size"], t: Int64[Tensor, " batch"], x_0: Float[Tensor, "batch channels *size"]
    ) -> Float[Tensor, "batch channels *size"]:
        """Return eps = (x_t / sqrt(alpha_bar_t) - x_0) / sqrt(1 / alpha_bar_t - 1): equation 9 solved for eps."""
        return (self.at("sqrt_recip_alpha_bars", t, x_t) * x_t - x_0) / self.at("sqrt_recipm1_alpha_bars", t, x_t)

    def read_output(
        self,
        output: Float[Tensor, "batch outputs *size"],
        x_t: Float[Tensor, "batch channels *size"],
        t: Int64[Tensor, " batch"],
        *,
        clip_denoised: bool,
        dynamic_threshold: float = 0.0,
    ) -> ModelPrediction:
        """Return p(x_{t-1} | x_t) from the network's output: the posterior at the predicted x_0.

        Args:
            output: Channels that predict eps or x_0, then as many for the variance where it is learned.
            dynamic_threshold: See `clip`.

        Raises:
            ValueError: The number of output channels does not fit the config's variance.
        """
        output = output.to(torch.promote_types(x_t.dtype, torch.float32))
        prediction, v = self.split_output(output, x_t.shape[1])
        if self.config.prediction == "eps":
            x_0, eps = self.predict_x_0_from_eps(x_t, t, prediction), prediction
        else:
            x_0, eps = prediction, self.predict_eps_from_x_0(x_t, t, prediction)
        if clip_denoised:
            x_0 = clip(x_0, dynamic_threshold)
            eps = self.predict_eps_from_x_0(x_t, t, x_0)
        log_variance = self._model_log_variance(v, x_t, t)
        return ModelPrediction(mean=self.q_posterior(x_0, x_t, t).mean, log_variance=log_variance, x_0=x_0, eps=eps)

    def split_output(self, output: Float[Tensor, "batch outputs *size"], num_channels: int) -> tuple[Tensor, Tensor | None]:
        """Split a network's output into prediction and v (None if no variance is learned); another size is a ValueError."""
        learned = self.config.variance == "learned_range"
        expected = num_channels * (2 if learned else 1)
        if output.shape[1] != expected:
            raise ValueError(
                f"the network gives {output.shape[1]} channels; diffusion.variance={self.config.variance!r} "
                f"on images of {num_channels} channels needs {expected}"
            )
        return (output[:, :num_channels], output[:, num_channels:]) if learned else (output, None)

    def _model_log_variance(self, v: Tensor | None, x_t: Tensor, t: Tensor) -> Tensor:
        """Return log Sigma_theta: the optimal one where the errors of x_0 are known, else the config's.

        A learned one is f log beta_t + (1 - f) log beta_tilde_t with f = (v + 1) / 2 (equation 15): v from -1 to 1 spans the range.
        """
        if self.x_0_errors is not None:
            return self.at("optimal_log_variance", t, x_t).expand_as(x_t)
        if v is None:
            fixed = "fixed_large_log_variance" if self.config.variance == "fixed_large" else "posterior_log_variance_clipped"
            return self.at(fixed, t, x_t).expand_as(x_t)
        fraction = (v + 1.0) / 2.0
        return fraction * self.at("log_betas", t, x_t) + (1.0 - fraction) * self.at("posterior_log_variance_clipped", t, x_t)

    def prior_bits_per_dim(self, x_0: Float[Tensor, "batch channels *size"]) -> Float[Tensor, " batch"]:
        """Return L_T = KL(q(x_T | x_0) || N(0, I)) (equation 7), mean over dimensions, in bits.

        With a = alpha_bar_T it is (a x_0^2 - a - log(1 - a)) / 2 per dimension, in nats. This form, in
        float64, avoids cancellation, because a is near 1e-10.
        """
        a = self.alpha_bars[-1].item()
        mean_square = x_0.double().square().flatten(1).mean(1)
        nats = 0.5 * (a * mean_square - a - math.log1p(-a))
        return (nats / math.log(2.0)).to(x_0.dtype)


def clip(x_0: Float[Tensor, "batch channels *size"], dynamic_threshold: float = 0.0) -> Float[Tensor, "batch channels *size"]:
    """Clamp x_0 to [-1, 1]; with a dynamic threshold, clamp each image to [-s, s] and divide it by s.

    Here s is the quantile of the image's |x_0|, or 1 where that is less. Source: Saharia et al. 2022, "Photorealistic text-to-image
    diffusion models with deep language understanding", section 2.3.

    Args:
        dynamic_threshold: The quantile, in (0, 1]; 0 means none, the clamp to [-1, 1].
    """
    if dynamic_threshold == 0.0:
        return x_0.clamp(-1.0, 1.0)
    s = x_0.abs().flatten(1).quantile(dynamic_threshold, dim=1).clamp(min=1.0).view(-1, *[1] * (x_0.ndim - 1))
    return x_0.clamp(-s, s) / s


def make_process(
    config: DiffusionConfig, timesteps: Sequence[int] | None = None, x_0_errors: Float64[Tensor, " timesteps"] | None = None
) -> GaussianProcess:
    """Return the chain over the given timesteps, with betas that keep alpha_bar at each of them (equation 19).

    Args:
        timesteps: Kept timesteps, 0-based and increasing, from `training.config.spacing`; None keeps all T.
        x_0_errors: See `GaussianProcess`.

    Raises:
        ValueError: There are no timesteps, they do not increase, one is not of this chain, or their number is not that of the errors.
    """
    kept = tuple(range(config.num_timesteps)) if timesteps is None else tuple(timesteps)
    if not kept or kept[0] < 0 or kept[-1] >= config.num_timesteps or any(a >= b for a, b in itertools.pairwise(kept)):
        raise ValueError(
            f"kept timesteps must increase within 0..{config.num_timesteps - 1}, got {list(kept[:8])}{'...' if kept[8:] else ''}"
        )
    if x_0_errors is not None and len(x_0_errors) != len(kept):
        raise ValueError(f"there are {len(x_0_errors)} errors of x_0 for {len(kept)} kept timesteps")
    return GaussianProcess(config, kept, alpha_bars(config.schedule, config.num_timesteps)[list(kept)], x_0_errors)


@dataclass(frozen=True, slots=True)
class Guidance:
    """A second, worse prediction g, from which the network's own p is moved away: g + scale (p - g). A learned variance stays.

    Source: Ho & Salimans 2022, "Classifier-free diffusion guidance" (g has no label); Karras et al. 2024, "Guiding a diffusion model with
    a bad version of itself" (g is of a network with less training).
    """

    scale: float
    network: Model
    conditioning: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A network, the chain that it denoises, and what it is conditioned on.

    Attributes:
        network: The network; its input is the original timestep, in a spaced chain too.
        conditioning: Further inputs of the network, one row per image: labels `y`, low-resolution images `low_res`.
        clip_denoised: Clamp the predicted x_0 to [-1, 1], as the released code does outside of training.
        dynamic_threshold: See `clip`.
        guidance: None predicts with one evaluation of the network.
    """

    process: GaussianProcess
    network: Model
    conditioning: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    clip_denoised: bool = field(default=True, kw_only=True)
    dynamic_threshold: float = field(default=0.0, kw_only=True)
    guidance: Guidance | None = field(default=None, kw_only=True)

    def p_mean_variance(self, x_t: Float[Tensor, "batch channels *size"], t: Int64[Tensor, " batch"]) -> ModelPrediction:
        """Return p(x_{t-1} | x_t) at kept timesteps t, 0 to K - 1: one evaluation of the network, and with guidance one of the second."""
        timesteps, count = self.process.model_timesteps(t), x_t.shape[1]
        output = self.network(x_t, timesteps, **self.conditioning)
        if self.guidance is not None:
            own, other = output[:, :count], self.guidance.network(x_t, timesteps, **self.guidance.conditioning)[:, :count]
            output = torch.cat([other + self.guidance.scale * (own - other), output[:, count:]], 1)
        return self.process.read_output(output, x_t, t, clip_denoised=self.clip_denoised, dynamic_threshold=self.dynamic_threshold)

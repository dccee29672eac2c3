"""The reverse process p(x_{t-1} | x_t) of a trained network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from training.diffusion.process import GaussianProcess, Model, ModelPrediction
from training.shapes import Float, Int64


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A network, the chain that it denoises, and what it is conditioned on.

    Attributes:
        process: The chain.
        network: The network; its input is the original timestep, in a spaced chain too.
        conditioning: Further inputs of the network, one row per image: labels `y`, low-resolution images `low_res`.
        clip_denoised: Clamp the predicted x_0 to [-1, 1], as the released code does outside of training.
    """

    process: GaussianProcess
    network: Model
    conditioning: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    clip_denoised: bool = field(default=True, kw_only=True)

    def p_mean_variance(self, x_t: Float[Tensor, "batch channels *size"], t: Int64[Tensor, " batch"]) -> ModelPrediction:
        """Return p(x_{t-1} | x_t), with one evaluation of the network.

        Args:
            x_t: Noisy images.
            t: Kept timestep of each image, 0 to K - 1.
        """
        output = self.network(x_t, self.process.model_timesteps(t), **self.conditioning)
        return self.process.read_output(output, x_t, t, clip_denoised=self.clip_denoised)

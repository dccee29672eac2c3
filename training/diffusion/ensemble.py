"""An ensemble: several models, each on its own range of timesteps (supplement section 4).

A model trained with L_vlb is better at both ends of the diffusion process and one trained with L_hybrid in between
(figure 3). Together they keep the second one's sample quality and have a better likelihood than either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.config.errors import UserError
from training.config.experiment import DiffusionConfig
from training.diffusion.process import Model
from training.shapes import Float


class Ensemble:
    """A model that passes each image to the member whose range contains its original timestep.

    The network's input contains the timestep, so an ensemble can replace a model anywhere: in any chain, spaced or
    not, for sampling and for likelihood.
    """

    def __init__(self, members: Sequence[tuple[Model, range]], diffusion: DiffusionConfig) -> None:
        """Set the members, each with its original timesteps (0-based), and the process that all were trained for.

        The ranges have step 1 and cover 0..T-1, each timestep once; see `ends_and_middle`. A model may appear twice.
        """
        self._members = tuple(members)
        self._timesteps_per_unit = diffusion.num_timesteps / 1000 if diffusion.rescale_timesteps else 1.0

    def __call__(
        self, x_t: Float[Tensor, "batch channels *size"], timesteps: Float[Tensor, " batch"], **conditioning: Tensor
    ) -> Float[Tensor, "batch outputs *size"]:
        """Return the output of each image's member.

        Args:
            timesteps: Original timesteps as a network sees them (scaled by 1000/T if the members were trained with that scale).
            **conditioning: One row per image: labels, low-resolution images.
        """
        original = torch.round(timesteps.double() * self._timesteps_per_unit).long()
        out: Tensor | None = None
        for model, part in self._members:
            mine = (original >= part.start) & (original < part.stop)
            rows = mine.nonzero().squeeze(1)
            if len(rows) == len(x_t):
                return model(x_t, timesteps, **conditioning)
            if len(rows) == 0:
                continue
            own = model(x_t[rows], timesteps[rows], **{name: value[rows] for name, value in conditioning.items()})
            if out is None:
                out = own.new_empty(len(x_t), *own.shape[1:])
            out[rows] = own
        assert out is not None, "the ranges cover every timestep"
        return out


def ends_and_middle(ends: Model, middle: Model, diffusion: DiffusionConfig, *, width: int = 100) -> Ensemble:
    """Return the ensemble of supplement section 4: `middle` for t in [width, T - width), `ends` for the first and last `width` timesteps.

    Args:
        ends: The paper's theta_vlb.
        middle: The paper's theta_hybrid.

    Raises:
        UserError: The two ends would meet.
    """
    num_timesteps = diffusion.num_timesteps
    if not 0 <= 2 * width <= num_timesteps:
        raise UserError(f"two ends of {width} timesteps do not fit into {num_timesteps}; use a width of 0 to {num_timesteps // 2}")
    parts = ((ends, range(width)), (middle, range(width, num_timesteps - width)), (ends, range(num_timesteps - width, num_timesteps)))
    return Ensemble(parts, diffusion)


def require_same_process(configs: Sequence[DiffusionConfig]) -> DiffusionConfig:
    """Return the process that all models share. Their objectives may differ.

    Raises:
        UserError: A field differs that gives the outputs another meaning.
    """
    first = configs[0]
    for other in configs[1:]:
        for name in ("num_timesteps", "schedule", "variance", "prediction", "rescale_timesteps"):
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                raise UserError(f"models of one ensemble must share diffusion.{name}; one has {ours!r}, another {theirs!r}")
    return first

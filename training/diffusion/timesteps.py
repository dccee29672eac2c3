"""The distribution of t in training: uniform, or in proportion to the root mean square of the losses at t.

A draw is keyed by the seed, the step and the image's index, so that it doesn't depend on how many workers share a
batch. Every draw comes with a weight that keeps the weighted loss an unbiased estimate of its mean over t.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from training.config.errors import UserError
from training.config.experiment import DiffusionConfig
from training.diffusion.noise import Stream, keyed_uniform
from training.shapes import Float, Float32, Float64, Int64

HISTORY_LENGTH = 10
UNIFORM_SHARE = 0.001


class TimestepSampler:
    """Draws every t with probability 1/T and weight 1; the base class of samplers that adapt to the losses."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps

    def sample(self, seed: int, step: int, indices: Int64[Tensor, " batch"]) -> tuple[Int64[Tensor, " batch"], Float32[Tensor, " batch"]]:
        """Draw t in 0..T-1 for each index, and its weight 1 / (T p_t), on the indices' device."""
        u = keyed_uniform(seed, Stream.TRAIN_TIMESTEP, indices, counter=step)
        return (u * self.num_timesteps).long(), torch.ones(len(indices), device=indices.device)

    def update(self, t: Int64[Tensor, " batch"], losses: Float[Tensor, " batch"]) -> None:
        """Adapt the distribution to the losses of a step; the uniform one does not change.

        Args:
            t: Timesteps of the global batch, in an order that is the same on every rank.
            losses: The unweighted loss of each, in the same order.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint stores."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; raise UserError if the state is another sampler's, or for another T."""
        own = self.state_dict()
        for name in own.keys() | state.keys():
            shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (state, own)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"the checkpoint's timestep sampler has {name} of shape {shapes[0]}, this experiment's {shapes[1]}; "
                    "resume with its own diffusion.timestep_sampler and diffusion.num_timesteps"
                )


class LossSecondMoment(TimestepSampler):
    """Probabilities p_t proportional to sqrt(E[L_t^2]), from the last ten losses of each t (equation 18 and the text below it).

    Uniform until every t has ten. From then on 0.1% of the probability stays uniform, so that no t is forgotten. The
    histories live where the losses are, and nothing here waits for that device.
    """

    def __init__(self, num_timesteps: int) -> None:
        super().__init__(num_timesteps)
        # Ring buffers: the mean of squares does not care about the order within a history.
        self._history = torch.zeros(num_timesteps, HISTORY_LENGTH, dtype=torch.float64)
        self._counts = torch.zeros(num_timesteps, dtype=torch.int64)

    def _is_full(self) -> Tensor:
        return (self._counts >= HISTORY_LENGTH).all()

    def probabilities(self) -> Float64[Tensor, " timesteps"]:
        """Return p_t, summing to 1: uniform before the histories are full, and where all losses are 0."""
        uniform = torch.full_like(self._history[:, 0], 1.0 / self.num_timesteps)
        root_mean_square = self._history.square().mean(1).sqrt()
        total = root_mean_square.sum()
        learned = (1.0 - UNIFORM_SHARE) * root_mean_square / total + UNIFORM_SHARE * uniform
        return torch.where(self._is_full() & (total != 0), learned, uniform)

    def sample(self, seed: int, step: int, indices: Int64[Tensor, " batch"]) -> tuple[Int64[Tensor, " batch"], Float32[Tensor, " batch"]]:
        """Draw t by inverting its distribution function; see `TimestepSampler`."""
        self._move_to(indices.device)
        p = self.probabilities()
        u = keyed_uniform(seed, Stream.TRAIN_TIMESTEP, indices, counter=step)
        # The last sum may round to less than 1, and u may lie above it.
        t = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=self.num_timesteps - 1)
        return t, (1.0 / (self.num_timesteps * p)).float()[t]

    def update(self, t: Int64[Tensor, " batch"], losses: Float[Tensor, " batch"]) -> None:
        """Append each loss to its t's history; see `TimestepSampler`.

        A loss that is not finite would make every later probability meaningless, and is left out.
        """
        self._move_to(losses.device)
        spare = self.num_timesteps  # one row more, for what is left out; it is dropped at the end
        history = torch.cat([self._history, self._history.new_zeros(1, HISTORY_LENGTH)])
        counts = torch.cat([self._counts, self._counts.new_zeros(1)])
        row, order = torch.where(losses.isfinite(), t, spare).sort(stable=True)
        added = torch.zeros_like(counts).index_add_(0, row, torch.ones_like(row))
        position = torch.arange(len(row), device=row.device) - (added.cumsum(0) - added)[row]  # 0 for the first loss of its t in this batch
        slot = (counts[row] + position) % HISTORY_LENGTH
        stays = position + HISTORY_LENGTH >= added[row]  # no later loss of this batch takes its slot
        history[torch.where(stays, row, spare), slot] = losses[order].double()
        self._history, self._counts = history[:-1], (counts + added)[:-1]

    def _move_to(self, device: torch.device) -> None:
        self._history, self._counts = self._history.to(device), self._counts.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the histories and the number of losses of each t."""
        return {"history": self._history.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the histories; see `TimestepSampler`."""
        super().load_state_dict(state)
        self._history.copy_(state["history"])
        self._counts.copy_(state["counts"])


def make_timestep_sampler(config: DiffusionConfig) -> TimestepSampler:
    """Return the sampler that the config names, over its T timesteps."""
    if config.timestep_sampler == "loss_second_moment":
        return LossSecondMoment(config.num_timesteps)
    return TimestepSampler(config.num_timesteps)

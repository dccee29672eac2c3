"""Models that are a little worse: noise on trained weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from evaluation.sampling.trained_model import TrainedModel


def noisy(state: Mapping[str, Tensor], size: float, seed: int) -> dict[str, Tensor]:
    """Return weights with normal noise of `size` standard deviations of each tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {key: value + size * value.std(correction=0) * torch.randn(value.shape, generator=generator) for key, value in state.items()}


def add_noise(model: TrainedModel, size: float, seed: int) -> TrainedModel:
    """Change the weights of a model, and return it."""
    model.network.load_state_dict(noisy(model.network.state_dict(), size, seed))
    return model

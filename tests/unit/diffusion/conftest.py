"""The released implementation's numbers, and the inputs that they were computed on (made by formula)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.config.experiment import ModelConfig
from training.models.unet import UNet


def wave(shape: tuple[int, ...], phase: float, scale: float = 1.0) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * math.sqrt(2) * torch.sin(0.7391 * i + 0.1117 * (i * i % 9973) + phase)).float().view(shape)


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "reference_values.json").read_text())
    return values


@pytest.fixture(scope="session")
def golden_image() -> Tensor:
    """Holds exact 0 and 255 pixels."""
    return (((torch.arange(2 * 3 * 32 * 32) * 37) % 256) / 127.5 - 1).view(2, 3, 32, 32)


@pytest.fixture(scope="session")
def golden_noise() -> Tensor:
    return wave((2, 3, 32, 32), 0.5)


@pytest.fixture(scope="session")
def golden_model() -> UNet:
    """The golden file's `base` network."""
    config = ModelConfig(model_channels=32, num_res_blocks=1, channel_mult=(1, 2, 2, 2))
    model = UNet(config, image_size=32, image_channels=3, out_channels=6)
    with torch.no_grad():
        for k, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(wave(tuple(parameter.shape), 0.31 * k, 0.03))
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter += 1.0
    return model.eval().requires_grad_(False)

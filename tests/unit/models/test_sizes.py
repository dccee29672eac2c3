"""Parameter counts and tensors of the paper's networks, and the same network from another library."""

from __future__ import annotations

import pytest
import torch
from diffusers_twin import diffusers_twin
from torch import nn

from training.checkpoints.diffusers_folder import to_diffusers
from training.config.experiment import ModelConfig
from training.models.unet import UNet

IMAGENET_64 = ModelConfig()
CIFAR_10 = ModelConfig(channel_mult=(1, 2, 2, 2))
LSUN = ModelConfig(channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_resolutions=(16,), num_heads=1, use_scale_shift_norm=False)
UPSAMPLER = ModelConfig(model_channels=192, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, low_res_size=64)


@pytest.mark.parametrize(
    ("config", "image_size", "out_channels", "num_classes", "num_parameters", "num_tensors"),
    [
        (ModelConfig(model_channels=64), 64, 6, 0, 30_303_494, 450),
        (ModelConfig(model_channels=96), 64, 6, 0, 68_126_598, 450),
        (IMAGENET_64, 64, 6, 0, 121_063_942, 450),
        (IMAGENET_64, 64, 3, 0, 121_060_483, 450),
        (IMAGENET_64, 64, 6, 1000, 121_575_942, 451),
        (ModelConfig(model_channels=192), 64, 6, 1000, 273_049_350, 451),
        (CIFAR_10, 32, 6, 0, 52_546_438, 446),
        (LSUN, 256, 6, 0, 113_676_678, None),
        (UPSAMPLER, 256, 6, 1000, 279_792_390, None),
    ],
)
def test_the_papers_networks_have_the_released_ones_parameters(
    config: ModelConfig, image_size: int, out_channels: int, num_classes: int, num_parameters: int, num_tensors: int | None
) -> None:
    with torch.device("meta"):
        model = UNet(config, image_size=image_size, image_channels=3, out_channels=out_channels, num_classes=num_classes)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    if num_tensors is not None:
        assert len(model.state_dict()) == num_tensors


@pytest.mark.slow
@pytest.mark.parametrize(("config", "image_size"), [(CIFAR_10, 32), (IMAGENET_64, 64)], ids=["cifar10", "imagenet64"])
def test_diffusers_network_with_mapped_weights_gives_the_same_numbers(config: ModelConfig, image_size: int) -> None:
    torch.manual_seed(0)
    model = UNet(config, image_size=image_size, image_channels=3, out_channels=6).eval()
    with torch.no_grad():
        for module in model.modules():  # no branch may be zero: those of the initial network hide everything behind them
            if isinstance(module, nn.Conv1d | nn.Conv2d) and not module.weight.any():
                module.reset_parameters()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        twin = diffusers_twin(config, image_size).eval()
        twin.load_state_dict(to_diffusers(model.state_dict(), config))
        x, t = torch.randn(2, 3, image_size, image_size), torch.tensor([0.25, 999.75])
        ours, theirs = model(x, t), twin(x, t).sample
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in model.parameters())
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5

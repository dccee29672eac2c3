"""The paper's network as diffusers builds it: a cross-check in tests, the baseline in benchmarks."""

from __future__ import annotations

from typing import Any

from training.config.experiment import ModelConfig


def diffusers_twin(config: ModelConfig, image_size: int, image_channels: int = 3) -> Any:
    """Diffusers' network of the same architecture (`.heads` has no option of its own)."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.unets.unet_2d import UNet2DModel

    attends = [image_size // 2**stage in config.attention_resolutions for stage in range(len(config.channel_mult))]
    twin = UNet2DModel(
        sample_size=image_size,
        in_channels=image_channels * (1 if config.low_res_size is None else 2),  # an upsampler sees the small image beside the noisy one
        out_channels=2 * image_channels,
        layers_per_block=config.num_res_blocks,
        block_out_channels=tuple(config.model_channels * mult for mult in config.channel_mult),
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        attention_head_dim=None,
        norm_num_groups=config.norm_groups,
        attn_norm_num_groups=config.norm_groups,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        flip_sin_to_cos=True,
        freq_shift=0,
    )
    for module in twin.modules():
        if isinstance(module, Attention):
            module.heads = config.num_heads
    return twin

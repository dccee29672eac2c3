"""The UNet of supplement section 1, and its variants."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.config.errors import UserError
from training.config.experiment import Experiment, ModelConfig
from training.models.dropout import KeyedDropout
from training.models.layers import (
    AttentionBlock,
    Downsample,
    Float32Sequential,
    GroupNorm32,
    ResBlock,
    TimestepEmbedSequential,
    Upsample,
    timestep_embedding,
    with_low_res,
    zero_,
)
from training.shapes import Float, Int64


def make_model(experiment: Experiment, *, gradient_checkpointing: bool = False) -> UNet:
    """Return the network of an experiment, freshly initialised from torch's global generator.

    Args:
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more compute.
    """
    return UNet(
        experiment.model,
        image_size=experiment.data.image_size,
        image_channels=experiment.data.image_channels,
        out_channels=experiment.out_channels,
        num_classes=experiment.num_label_embeddings,
        gradient_checkpointing=gradient_checkpointing,
    )


def initial_model(experiment: Experiment, *, gradient_checkpointing: bool = False) -> UNet:
    """Return the network before its first update, whose weights follow from the experiment's seed; torch's generator stays as it is.

    Args:
        gradient_checkpointing: See `make_model`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        return make_model(experiment, gradient_checkpointing=gradient_checkpointing)


def example_inputs(experiment: Experiment, batch_size: int) -> dict[str, Tensor]:
    """Return what an experiment's network takes, as zeros."""
    data, config = experiment.data, experiment.model
    inputs = {
        "x": torch.zeros(batch_size, data.image_channels, data.image_size, data.image_size),
        "timesteps": torch.zeros(batch_size),
    }
    if config.class_conditional:
        inputs["y"] = torch.zeros(batch_size, dtype=torch.int64)
    if config.low_res_size is not None:
        inputs["low_res"] = torch.zeros(batch_size, data.image_channels, config.low_res_size, config.low_res_size)
    return inputs


class UNet(nn.Module):
    """The network eps_theta(x_t, t), and v_theta where the variance is learned (the last half of the output's channels).

    Stages of `num_res_blocks` residual blocks, from the highest resolution to the lowest; a middle of block,
    attention, block; then the stages in reverse order, whose blocks also take the output of their counterparts. A
    resolution in `attention_resolutions` has attention after each of its blocks; the middle always has.

    At initialisation the output is exactly 0.

    Args:
        image_size: Height and width that `config.attention_resolutions` refer to.
        num_classes: Number of labels; 0 for a model without.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        image_size: int,
        image_channels: int,
        out_channels: int,
        num_classes: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.image_channels = image_channels
        self.num_classes = num_classes
        self.gradient_checkpointing = gradient_checkpointing
        width, emb_channels = config.model_channels, 4 * config.model_channels
        in_channels = image_channels * (2 if config.low_res_size is not None else 1)

        def res_block(channels: int, out: int) -> ResBlock:
            return ResBlock(
                channels,
                emb_channels,
                out,
                dropout=config.dropout,
                use_scale_shift_norm=config.use_scale_shift_norm,
                norm_groups=config.norm_groups,
                norm_eps=config.norm_eps,
            )

        def attention_block(channels: int) -> AttentionBlock:
            return AttentionBlock(channels, config.num_heads, norm_groups=config.norm_groups, norm_eps=config.norm_eps)

        def attention(channels: int, size: int) -> list[nn.Module]:
            return [attention_block(channels)] if size in config.attention_resolutions else []

        self.time_embed = Float32Sequential(nn.Linear(width, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, emb_channels)

        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(in_channels, width, 3, padding=1))])
        channels, size = width, image_size
        skips = [width]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                block = [res_block(channels, mult * width), *attention(mult * width, size)]
                channels = mult * width
                self.input_blocks.append(TimestepEmbedSequential(*block))
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(channels, config.downsample_padding)))
                skips.append(channels)
                size //= 2

        self.middle_block = TimestepEmbedSequential(res_block(channels, channels), attention_block(channels), res_block(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for position in range(config.num_res_blocks + 1):
                block = [res_block(channels + skips.pop(), mult * width), *attention(mult * width, size)]
                channels = mult * width
                if level and position == config.num_res_blocks:
                    block.append(Upsample(channels))
                    size *= 2
                self.output_blocks.append(TimestepEmbedSequential(*block))

        self.out = Float32Sequential(
            GroupNorm32(channels, config.norm_groups, config.norm_eps), nn.SiLU(), zero_(nn.Conv2d(channels, out_channels, 3, padding=1))
        )
        for layer, dropout in enumerate(module for module in self.modules() if isinstance(module, KeyedDropout)):
            dropout.layer = layer

    def forward(
        self,
        x: Float[Tensor, "..."],
        timesteps: Float[Tensor, "..."],
        y: Int64[Tensor, "..."] | None = None,
        low_res: Float[Tensor, "..."] | None = None,
        dropout_key: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Return the prediction at x_t.

        Args:
            x: The noisy images x_t, [batch, channels, height, width]; any size that halves in each stage but the last.
            timesteps: [batch]; t, already scaled by 1000/T where `rescale_timesteps` is set.
            y: [batch]; labels, only for a class-conditional model.
            low_res: [batch, channels, low_res_size, low_res_size] in [-1, 1]; only for an upsampler.
            dropout_key: From `training.models.dropout.dropout_key`; None draws masks from the device's generator.

        Returns:
            Predicted channels, then (where the variance is learned) as many for the variance.

        Raises:
            UserError: An argument is missing or unexpected, or has a wrong shape or range.
        """
        self._check(x, timesteps, y, low_res)
        emb = self.time_embed(timestep_embedding(timesteps, self.config.model_channels, self.config.time_embedding))
        if y is not None:
            emb = emb + self.label_emb(y)
        h = x if low_res is None else with_low_res(x, low_res)
        skips = []
        for block in self.input_blocks:
            h = self._run(block, h, emb, dropout_key)
            skips.append(h)
        h = self._run(self.middle_block, h, emb, dropout_key)
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb, dropout_key)
        prediction: Tensor = self.out(h)
        return prediction

    def _run(self, block: nn.Module, h: Tensor, emb: Tensor, dropout_key: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            # preserve_rng_state gives the recomputation the dropout masks of the first computation.
            recomputed: Tensor = checkpoint(block, h, emb, dropout_key, use_reentrant=False, preserve_rng_state=True)
            return recomputed
        computed: Tensor = block(h, emb, dropout_key)
        return computed

    def _check(self, x: Tensor, timesteps: Tensor, y: Tensor | None, low_res: Tensor | None) -> None:
        batch, factor = x.shape[0], 2 ** (len(self.config.channel_mult) - 1)
        if x.ndim != 4 or x.shape[1] != self.image_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise UserError(
                f"x: must be [batch, {self.image_channels}, height, width] with height and width divisible by {factor} "
                f"({len(self.config.channel_mult)} stages), got {list(x.shape)}"
            )
        if timesteps.shape != (batch,):
            raise UserError(f"timesteps: must be [batch], one per image: [{batch}], got {list(timesteps.shape)}")
        if (y is not None) != bool(self.num_classes):
            raise UserError(
                f"y: this model is class-conditional and needs one label per image, of 0 to {self.num_classes - 1}"
                if self.num_classes
                else "y: this model is not class-conditional and takes no labels"
            )
        if y is not None:
            if y.shape != (batch,):
                raise UserError(f"y: must be [batch], one label per image: [{batch}], got {list(y.shape)}")
            # On a GPU, looking at the labels would make each step wait for the device.
            if (
                y.device.type == "cpu"
                and not torch.compiler.is_compiling()
                and batch
                and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes
            ):
                raise UserError(f"y: labels must be of 0 to {self.num_classes - 1}, got {int(y.min())} to {int(y.max())}")
        size = self.config.low_res_size
        if (low_res is not None) != (size is not None):
            raise UserError(
                f"low_res: this model is an upsampler and needs the {size}x{size} images"
                if size is not None
                else "low_res: this model is not an upsampler and takes no low-resolution images"
            )
        if low_res is not None and low_res.shape != (batch, self.image_channels, size, size):
            raise UserError(f"low_res: must be {[batch, self.image_channels, size, size]}, got {list(low_res.shape)}")

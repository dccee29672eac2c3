"""The blocks that the UNet is made of (supplement section 1).

Module names, and so parameter names, are the released code's, so that its checkpoints load key for key.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.config.experiment import DownsamplePadding, TimeEmbedding
from training.models.dropout import KeyedDropout
from training.shapes import Float, Int64


def timestep_embedding(timesteps: Float[Tensor, " batch"], width: int, variant: TimeEmbedding = "cos_sin") -> Float[Tensor, "batch width"]:
    """Return [cos(t w_0), ..., cos(t w_{h-1}), sin(t w_0), ..., sin(t w_{h-1})], w_i = 10000^(-i/h), h = width / 2.

    The transformer's position embedding (Vaswani et al. 2017, section 3.5), cosines first. t need not be
    an integer: the caller scales it by 1000/T. "sin_cos" is the embedding of Ho et al.'s released code
    (`get_timestep_embedding` of its nn.py): sines first, and w_i = 10000^(-i/(h-1)), so that the last is 1/10000.

    Args:
        timesteps: One per image; any real number.
        width: Even; for "sin_cos" at least 4.
    """
    half = width // 2
    last = half if variant == "cos_sin" else half - 1
    # In float64, and rounded once: in float32 the last bits would differ by processor, and t up to 4000 multiplies them.
    frequencies = torch.exp(-math.log(10_000.0) / last * torch.arange(half, dtype=torch.float64, device=timesteps.device))
    angles = timesteps.float().unsqueeze(1) * frequencies.float()
    parts = [angles.cos(), angles.sin()]
    return torch.cat(parts if variant == "cos_sin" else parts[::-1], dim=1)


def zero_(module: nn.Conv1d | nn.Conv2d) -> nn.Conv1d | nn.Conv2d:
    """Set weight and bias to 0, for a residual branch that starts as the identity, or an output that starts at 0."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class GroupNorm32(nn.GroupNorm):
    """GroupNorm computed in float32; the result has the type of the input."""

    def __init__(self, channels: int, num_groups: int, eps: float) -> None:
        super().__init__(num_groups, channels, eps=eps)

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:
        """Normalise each group of channels of each image to mean 0 and variance 1, then scale and shift."""
        # nn.functional.group_norm refuses groups of one value, which a stage of one pixel has in a batch of one image.
        # The CPU's kernel reads bfloat16 and computes in float32 by itself, without a copy.
        h = x if x.device.type == "cpu" else x.float()
        return torch.group_norm(h, self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


class Float32Sequential(nn.Sequential):
    """Layers that stay in float32 under autocast: the time path and the output, which are cheap and sensitive."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in turn; the result is float32."""
        if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
            return self._apply_layers(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._apply_layers(x.float())

    def _apply_layers(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class ResBlock(nn.Module):
    """A residual block that takes the time embedding.

    With scale and shift, the embedding gives (w, b) and h becomes GroupNorm(h)(w + 1) + b; without, the embedding
    gives v and h becomes GroupNorm(h + v) (supplement section 1). The last convolution starts at 0.

    Args:
        out_channels: Channels of the output; where they differ from the input's, the skip is a 1x1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        emb_channels: int,
        out_channels: int,
        *,
        dropout: float,
        use_scale_shift_norm: bool,
        norm_groups: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm32(in_channels, norm_groups, norm_eps), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        emb_out = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = Float32Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels, norm_groups, norm_eps),
            nn.SiLU(),
            KeyedDropout(dropout),
            zero_(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self,
        x: Float[Tensor, "batch in_channels height width"],
        emb: Float[Tensor, "batch emb_channels"],
        dropout_key: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Add the residual branch to the (projected) input."""
        norm, silu, dropout, conv = self.out_layers
        h: Tensor = self.in_layers(x)
        injected = self.emb_layers(emb)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = injected.chunk(2, dim=1)
            h = torch.addcmul(shift.to(h.dtype), norm(h), (scale + 1.0).to(h.dtype))
        else:
            h = norm(h + injected.to(h.dtype))
        h = conv(dropout(silu(h), dropout_key))
        skip: Tensor = self.skip_connection(x)
        return skip + h


class AttentionBlock(nn.Module):
    """Multi-head self-attention over the pixels, with a residual connection (supplement section 1: four heads).

    The channels are split into heads first and into q, k, v within each head, as in the released weights. Those are
    1x1 convolutions over a sequence; here they act as matrices on tokens, as the fused kernel needs them.
    """

    def __init__(self, channels: int, num_heads: int, *, norm_groups: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm32(channels, norm_groups, norm_eps)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Return x + proj(softmax(q k^T / sqrt(channels / num_heads)) v)."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = nn.functional.linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)
        q, k, v = qkv.view(batch, height * width, self.num_heads, 3, channels // self.num_heads).permute(3, 0, 2, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
        h = nn.functional.linear(attended, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + h.transpose(1, 2).view(batch, channels, height, width)


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2, whose input is padded by one pixel.

    Args:
        padding: "symmetric" pads every side; "right_bottom" pads two, as TensorFlow's "SAME" does in Ho et al.'s released code.
    """

    def __init__(self, channels: int, padding: DownsamplePadding) -> None:
        super().__init__()
        self.padding = padding
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if padding == "symmetric" else 0)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels half_height half_width"]:
        """Pad and apply the convolution."""
        if self.padding == "right_bottom":
            x = nn.functional.pad(x, (0, 1, 0, 1))
        h: Tensor = self.op(x)
        return h


class Upsample(nn.Module):
    """Doubles height and width by repeating each pixel, then applies a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels double_height double_width"]:
        """Repeat each pixel and convolve."""
        h: Tensor = self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


class TimestepEmbedSequential(nn.Sequential):
    """Layers in turn; the residual blocks also take the time embedding and the dropout key."""

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch channels height width"],
        emb: Float[Tensor, "batch emb_channels"],
        dropout_key: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Apply the layers in turn."""
        for layer in self:
            x = layer(x, emb, dropout_key) if isinstance(layer, ResBlock) else layer(x)
        return x


def make_low_res(
    x_0: Float[Tensor, "batch channels height width"], low_res_size: int
) -> Float[Tensor, "batch channels low_height low_width"]:
    """Return the small image of a training image, whose size divides: the exact area average, not rounded to 8 bits again."""
    return nn.functional.interpolate(x_0, size=(low_res_size, low_res_size), mode="area")


def with_low_res(
    x_t: Float[Tensor, "batch channels height width"], low_res: Float[Tensor, "batch low_channels low_height low_width"]
) -> Float[Tensor, "batch all_channels height width"]:
    """Return x_t and the small image, in [-1, 1] and enlarged to its size, as one image: x_t's channels first.

    The enlargement is bilinear with pixel centres at half-integers (`align_corners=False`), as the released weights
    expect it.
    """
    return torch.cat([x_t, nn.functional.interpolate(low_res, size=x_t.shape[-2:], mode="bilinear", align_corners=False)], dim=1)

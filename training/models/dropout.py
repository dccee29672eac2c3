"""Keyed dropout: masks are a function of (seed, step, image, layer) and of nothing else.

Ordinary dropout draws from the device's generator, so that an image's mask depends on its batch and on
the number of workers. Here each image has a key, and each layer expands it into a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.diffusion.noise import Stream, keyed_uniform
from training.shapes import Float, Int64

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), as signed integers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64
_KEY_BITS = 53  # the layer's number takes the bits above
_LANES = 4  # 16-bit uniform numbers in one 64-bit word


def dropout_key(seed: int, step: int, indices: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """Return one 53-bit key per image, by its position in the stream of all batches, for all dropout layers of a training step."""
    return (keyed_uniform(seed, Stream.TRAIN_DROPOUT, indices, counter=step) * 2.0**_KEY_BITS).to(torch.int64)


def _mix(z: Tensor) -> Tensor:
    """Apply SplitMix64's output function, a bijection of 64-bit words, in place. The masks make the shifts logical."""
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(_MULTIPLIER_1)
    z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(_MULTIPLIER_2)
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


def keyed_dropout(
    x: Float[Tensor, "batch ..."], probability: float, key: Int64[Tensor, " batch"], layer: int
) -> Float[Tensor, "batch ..."]:
    """Zero each entry with the given probability and scale the rest by its inverse, so that the mean stays.

    The field of an image is SplitMix64 started at a mix of its key and the layer's number, with 16 bits per entry.

    Args:
        probability: Probability of zeroing an entry, rounded to a multiple of 2^-16 below 1 (the scale matches the rounded value).
        layer: The layer's number; layers of one network have different ones. Less than 1024.
    """
    threshold = min(round(probability * 0x10000), 0xFFFF)
    entries = x[0].numel()
    start = _mix(key + (layer << _KEY_BITS))
    positions = torch.arange(-(-entries // _LANES), device=x.device) * _INCREMENT
    words = _mix(start.unsqueeze(1) + positions)
    kept = words.view(torch.int16)[:, :entries] >= threshold - 0x8000
    return (x * kept.view(x.shape)).mul_(0x10000 / (0x10000 - threshold))


class KeyedDropout(nn.Module):
    """Dropout by a probability in [0, 1) in training: keyed if the caller passes a key, else drawn from the device's generator."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.layer = 0

    def forward(self, x: Float[Tensor, "batch ..."], key: Int64[Tensor, " batch"] | None = None) -> Float[Tensor, "batch ..."]:
        """Apply dropout; in evaluation, or where the probability is 0, return `x` itself."""
        if not self.training or self.probability == 0.0:
            return x
        if key is None:
            return nn.functional.dropout(x, self.probability)
        return keyed_dropout(x, self.probability, key, self.layer)

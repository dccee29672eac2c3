"""Keyed random numbers: a function of (seed, purpose, index, counter) and of nothing else.

An ordinary generator returns one sequence, so that the numbers of an image depend on its batch and on the number of
processes. Here each draw is computed from its key: a sample, a training step or a likelihood is the
same for any batch size, order or number of workers, two models can be compared on the same noise (figures 4, 20 and
21), and a resumed run needs no generator state.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), in integer
tensor operations, on whatever device the indices are. Its 128-bit counter contains, from the low word to the high one,
the position in the field, 48 bits of index, 16 bits of stream, and the caller's counter; its 64-bit key is the seed.
Different arguments therefore never share a counter.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from training.shapes import Float32, Float64, Int64

_Words = tuple[Tensor, Tensor, Tensor, Tensor]

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
# Counters that a CPU works on at once: small enough for its cache. The result does not depend on it.
_CPU_CHUNK = 1 << 15


class Stream(enum.IntEnum):
    """The purpose of a draw. Draws for different purposes are independent, whatever else they share."""

    TRAIN_NOISE = 1
    TRAIN_TIMESTEP = 2
    TRAIN_FLIP = 3
    TRAIN_DROPOUT = 4
    SAMPLE_START = 5
    SAMPLE_STEP = 6
    LIKELIHOOD = 7
    LIKELIHOOD_TIMESTEP = 8
    LABELS = 9
    LABEL_DROPOUT = 10
    REVERSE_VARIANCE = 11


def keyed_normal(
    seed: int, stream: int, indices: Int64[Tensor, " batch"], shape: tuple[int, ...], *, counter: int | Int64[Tensor, " batch"] = 0
) -> Float32[Tensor, "batch ..."]:
    """Return one field of independent N(0, 1) numbers per index.

    Box and Muller: with u_1, u_2 uniform, sqrt(-2 ln u_1) (cos 2 pi u_2, sin 2 pi u_2) are two independent normals.

    Bitwise the same for an index however the batch is split or ordered, on one device. Another device or processor
    rounds log and cos differently in the last bit.

    Args:
        seed: The experiment's seed, or the evaluation's; taken modulo 2^64.
        stream: The purpose, from `Stream`.
        indices: Index of each image, in [0, 2^48); the fields are made on the device of this tensor.
        shape: Shape of one field, such as (channels, height, width).
        counter: The training step or the timestep, in [0, 2^32); one for all, or one per index.

    Raises:
        ValueError: The stream, or the one counter for all, is out of its range. Tensors are not checked, as a GPU would have to wait.
    """
    size = math.prod(shape)
    num_blocks = -(-size // 4)
    out = torch.empty(len(indices), 4, num_blocks, dtype=torch.float32, device=indices.device)
    for rows, (w_0, w_1, w_2, w_3) in _blocks(seed, stream, indices, num_blocks, counter):
        _box_muller(w_0, w_1, out[rows, 0], out[rows, 1])
        _box_muller(w_2, w_3, out[rows, 2], out[rows, 3])
    return out.flatten(1)[:, :size].reshape(len(indices), *shape)


def keyed_uniform(
    seed: int, stream: int, indices: Int64[Tensor, " batch"], *, counter: int | Int64[Tensor, " batch"] = 0
) -> Float64[Tensor, " batch"]:
    """Return one number per index, uniform over the multiples of 2^-53 in [0, 1). Arguments and errors as `keyed_normal`."""
    out = torch.empty(len(indices), dtype=torch.float64, device=indices.device)
    for rows, (w_0, w_1, _, _) in _blocks(seed, stream, indices, 1, counter):
        out[rows] = (((w_0 << 21) ^ (w_1 >> 11)).double() * 2.0**-53).squeeze(1)
    return out


def _box_muller(
    w_1: Int64[Tensor, "rows blocks"],
    w_2: Int64[Tensor, "rows blocks"],
    first: Float32[Tensor, "rows blocks"],
    second: Float32[Tensor, "rows blocks"],
) -> None:
    """Write two normals for each pair of 32-bit words. u_1 is in (0, 1], so that its logarithm is finite."""
    radius = (w_1 + 1).float().mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = w_2.float().mul_(2.0 * math.pi * 2.0**-32)
    torch.mul(radius, angle.cos(), out=first)
    torch.mul(radius, angle.sin_(), out=second)


def _blocks(
    seed: int, stream: int, indices: Int64[Tensor, " batch"], num_blocks: int, counter: int | Int64[Tensor, " batch"]
) -> Iterator[tuple[slice, _Words]]:
    """Yield four 32-bit words for each (index, block), some rows of the batch at a time."""
    if not 0 <= stream < 1 << 16:
        raise ValueError(f"stream {stream} is not in [0, 65536)")
    if isinstance(counter, int) and not 0 <= counter < 1 << 32:
        raise ValueError(f"counter {counter} is not in [0, 2^32)")
    device = indices.device
    key = (seed & _WORD, (seed >> 32) & _WORD)
    position = torch.arange(num_blocks, device=device).unsqueeze(0)
    low, high = indices.unsqueeze(1) & _WORD, (indices.unsqueeze(1) >> 32) | (stream << 16)
    last = counter.unsqueeze(1) if isinstance(counter, Tensor) else torch.full_like(low, counter)
    step = max(1, len(indices) if device.type != "cpu" else _CPU_CHUNK // max(1, num_blocks))
    for start in range(0, len(indices), step):
        rows = slice(start, start + step)
        yield rows, philox_4x32((position, low[rows], high[rows], last[rows]), key)


def philox_4x32(counter: _Words, key: tuple[int, int]) -> _Words:
    """Return Philox4x32-10 of a counter: a bijection that passes tests of randomness (Salmon et al. 2011, section 3.3).

    A 32-bit word is an int64 here. The product of two words wraps modulo 2^64, as the generator needs it:
    its two halves are the two output words. The low halves need no mask until something multiplies or shifts them.

    Args:
        counter: Four words, of shapes that broadcast together.
        key: Two words.

    Returns:
        Four words in [0, 2^32), of the broadcast shape.
    """
    c_0, c_1, c_2, c_3 = counter
    k_0, k_1 = key
    for _ in range(_NUM_ROUNDS):
        p_0, p_1 = c_0 * _MULTIPLIERS[0], c_2 * _MULTIPLIERS[1]
        c_0, c_2 = _mixed_high_word(p_1, c_1, k_0), _mixed_high_word(p_0, c_3, k_1)
        c_1, c_3 = p_1, p_0
        k_0, k_1 = (k_0 + _WEYL_INCREMENTS[0]) & _WORD, (k_1 + _WEYL_INCREMENTS[1]) & _WORD
    return c_0, c_1 & _WORD, c_2, c_3 & _WORD


def _mixed_high_word(product: Tensor, word: Tensor, key: int) -> Tensor:
    """Return the product's high word, mixed with another word and the key."""
    return ((product >> 32) ^ word).bitwise_xor_(key).bitwise_and_(_WORD)

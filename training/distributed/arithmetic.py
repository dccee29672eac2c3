"""The arithmetic that a device is fast at."""

from __future__ import annotations

import functools
import time

import torch
from torch.nn import functional

from training.config.errors import UserError
from training.config.experiment import Precision

_ROUNDS = 5
_CLEARLY_SLOWER = 1.25
"""Ratio of the times from which bf16 is refused; timings of one processor differ by less."""


def require_fast(precision: Precision, device_type: str) -> None:
    """Refuse bf16 on a processor that is clearly slower in it than in fp32: by a quarter or more.

    A convolution of the networks' usual size is timed in both, once a process. The processor's list of instructions doesn't decide
    it: with AVX512-BF16 and without AMX, AMD's are twice as fast in bf16 and some of Intel's slower.

    Args:
        precision: "fp32" or "bf16".
        device_type: "cpu" or "cuda"; a GPU of any age passes.

    Raises:
        UserError: bf16 took clearly longer here.
    """
    if precision != "bf16" or device_type != "cpu":
        return
    fp32, bf16 = convolution_seconds()
    if bf16 >= _CLEARLY_SLOWER * fp32:
        found = torch.cpu.get_capabilities()
        raise UserError(
            f"precision bf16 is slower than fp32 on this processor ({found.get('cpu_name') or found['architecture']}): "
            f"a convolution took {1000 * bf16:.1f} ms in bf16 and {1000 * fp32:.1f} ms in fp32; use fp32"
        )


@functools.cache
def convolution_seconds() -> tuple[float, float]:
    """Time a convolution on the processor in fp32 and in bf16: 3x3, 128 channels, 4 images of 32x32.

    Returns:
        The least of five rounds of each, in seconds of processor time, which other work on the machine does not lengthen much.
    """
    # Not random: a training's numbers don't depend on whether its processor was timed.
    operands = [
        (torch.ones(4, 128, 32, 32, dtype=dtype), torch.ones(128, 128, 3, 3, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)
    ]
    least = [float("inf")] * len(operands)
    with torch.no_grad():
        for images, weight in operands:
            functional.conv2d(images, weight, padding=1)  # the first call prepares
        for _ in range(_ROUNDS):
            for i, (images, weight) in enumerate(operands):
                started = time.process_time()
                functional.conv2d(images, weight, padding=1)
                least[i] = min(least[i], time.process_time() - started)
    return least[0], least[1]

"""The most that this machine can do: convolutions and matrix products, for the networks, and copies, for everything else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Measured, Run, convolution_peak, copy_bandwidth, matrix_product_peak


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield f"convolution-{name}", Measured(value=convolution_peak(run.device, dtype, quick=run.quick) / 1e9)
        yield f"matrix-product-{name}", Measured(value=matrix_product_peak(run.device, dtype, quick=run.quick) / 1e9)
    yield "copy", Measured(value=copy_bandwidth(run.device, quick=run.quick) / 1e9, note="read and written both counted")

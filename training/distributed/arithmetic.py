"""The arithmetic that a device is fast at."""

from __future__ import annotations

import torch

from training.config.errors import UserError
from training.config.experiment import Precision


def require_fast(precision: Precision, device_type: str) -> None:
    """Refuse bf16 on an x86 processor without instructions for it, which takes more than twice the time of fp32.

    Args:
        precision: "fp32" or "bf16".
        device_type: "cpu" or "cuda"; a GPU of any age passes.

    Raises:
        UserError: This machine's processor has neither AVX512-BF16 nor AMX.
    """
    if precision != "bf16" or device_type != "cpu":
        return
    found = torch.cpu.get_capabilities()
    if found["architecture"] == "x86_64" and not (found["avx512_bf16"] or found["amx_bf16"]):
        raise UserError(
            f"precision bf16 is slower than fp32 on this processor ({found['cpu_name']}): it has neither AVX512-BF16 nor AMX; use fp32"
        )

"""Bounds of rounding errors, of which tests take their tolerances.

An operation errs by u times its result. Bounds count operations, and no cancellation between their errors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

U32 = 2.0**-24
"""Unit roundoff of float32."""
U64 = 2.0**-53
"""Unit roundoff of float64."""
U_BF16 = 2.0**-8
"""Unit roundoff of bfloat16."""

NETWORK = 160 * U32
"""Error of a small network's output in float32, in units of its root mean square: 1e-5.

Between input and output stand up to 160 operations, in 14 residual blocks with attention. Each rounds by u of its result, whose scale the
norms keep.
"""


def rounded(expected: Any, roundings: int, *, scale: float | None = None) -> Any:
    """Return what equals `expected`, a number or several, up to so many roundings in float64.

    Args:
        scale: The largest intermediate result, where a difference is smaller than what it is of; None takes the number itself.
    """
    if scale is None:
        return pytest.approx(expected, rel=roundings * U64, abs=0.0)
    return pytest.approx(expected, rel=0.0, abs=roundings * U64 * scale)


def schedule_error(num_timesteps: int) -> float:
    """Return the relative error of a table of a schedule in float64: 2 T u.

    It is that of a product or sum of T numbers with two roundings each. The cosine of the last timestep has the same: its argument is
    rounded beside a distance of pi / 2T from the zero.
    """
    return 2 * num_timesteps * U64


def assert_same_output(actual: Tensor, expected: Tensor, *, calls: int = 1) -> None:
    """Compare two results of the same network, which has the error `NETWORK` in each of so many calls."""
    scale = float(expected.detach().double().square().mean().sqrt())
    torch.testing.assert_close(actual, expected, rtol=0, atol=calls * NETWORK * scale)

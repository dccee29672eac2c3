"""Cards and processors: their peak, and the measured or assumed fraction of it that is reached.

`measured.json` beside this file has the speeds of whole training steps and samplers by card, which
`make bench WRITE=1` (and `make bench-gpu WRITE=1`) measured.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.config.errors import UserError

MEASURED_PATH = Path(__file__).with_name("measured.json")
ASSUMED_UTILISATION = 0.3
"""Fraction of the peak that is usual for these networks, where nothing was measured."""

Work = Literal["training", "sampling"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """An accelerator, or one core of a processor.

    Attributes:
        peak_flops: Dense floating point operations a second, in bf16 (fp16 where it has no bf16; fp32 for the CPU).
    """

    peak_flops: float
    memory_gib: float


CARDS = {
    "H100": Card(peak_flops=989e12, memory_gib=80),
    "H200": Card(peak_flops=989e12, memory_gib=141),
    "A100": Card(peak_flops=312e12, memory_gib=80),
    "L40S": Card(peak_flops=362e12, memory_gib=48),
    "L4": Card(peak_flops=121e12, memory_gib=24),
    "V100": Card(peak_flops=125e12, memory_gib=32),
    # A server with AVX-512, in fp32: 16 numbers in 2 units, 2 FLOPs each, at 4 GHz; and a core's part of its memory.
    "CPU": Card(peak_flops=256e9, memory_gib=4),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """The speed that a card reaches.

    Attributes:
        flops_per_second: Floating point operations a second, over whole training steps or whole sampling.
        basis: What it was measured on, or that it was assumed.
    """

    flops_per_second: float
    basis: str


def card_named(name: str) -> str:
    """Return the card's name as `CARDS` has it, whatever the case of `name`; refuse an unknown one."""
    known = {card.lower(): card for card in CARDS}
    if name.lower() not in known:
        raise UserError(f"there is no card {name!r}; the cards are {', '.join(CARDS)}")
    return known[name.lower()]


def speed_on(card: str, work: Work, forward_macs: int, *, utilisation: float | None = None) -> Speed:
    """Return the speed of a card in training or sampling.

    Small networks reach a smaller part of the peak than large ones, so the measured network nearest in size is taken.

    Args:
        work: "training", or "sampling" (the network alone).
        utilisation: The part of the peak to assume, in (0, 1], instead of what was measured.

    Raises:
        UserError: The utilisation is out of its range.
    """
    if utilisation is not None and not 0.0 < utilisation <= 1.0:
        raise UserError(f"utilisation must be above 0 and at most 1, got {utilisation}")
    precision = "fp32" if card == "CPU" else "bf16"
    measured = _measured().get(card, {"speeds": []}) if utilisation is None else {"speeds": []}
    speeds = [speed for speed in measured["speeds"] if speed["precision"] == precision and speed["phase"] == work]
    if not speeds:
        fraction = utilisation or ASSUMED_UTILISATION
        basis = f"{fraction:.0%} of its peak" + (", as given" if utilisation else ", assumed: nothing was measured")
        return Speed(flops_per_second=CARDS[card].peak_flops * fraction, basis=basis)
    nearest = min(speeds, key=lambda speed: abs(math.log(speed["forward_macs"] / forward_macs)))
    basis = f"{nearest['what']}, {precision}, measured {nearest['date']} on {measured['machine']}"
    return Speed(flops_per_second=nearest["flops_per_second"], basis=basis)


@functools.cache
def _measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MEASURED_PATH.read_text(encoding="utf-8"))
    return found

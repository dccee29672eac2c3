"""What computes, and how fast: an accelerator's peak, and the share of it that was measured or has to be assumed.

`measured.json` beside this file holds the speeds of whole training steps and samplers that `make bench WRITE=1` (and
`make bench-gpu WRITE=1`) measured, by card.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MEASURED_PATH = Path(__file__).with_name("measured.json")
ASSUMED_UTILISATION = 0.3
"""Of a card's peak where nothing was measured: what is usual for these networks."""

Phase = Literal["training", "sampling"]


class CostError(ValueError):
    """The question can't be answered; the message says what can be asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """An accelerator, or a processor's core: dense FLOPs a second in bf16 (fp16 where it has no bf16), and memory in GiB."""

    peak_flops: float
    memory_gib: float


CARDS = {
    "H100": Card(peak_flops=989e12, memory_gib=80),
    "H200": Card(peak_flops=989e12, memory_gib=141),
    "A100": Card(peak_flops=312e12, memory_gib=80),
    "L40S": Card(peak_flops=362e12, memory_gib=48),
    "L4": Card(peak_flops=121e12, memory_gib=24),
    "V100": Card(peak_flops=125e12, memory_gib=32),
    # One core of a server with AVX-512, in fp32: 16 numbers in 2 units, 2 FLOPs each, at 4 GHz; and its share of memory.
    "CPU": Card(peak_flops=256e9, memory_gib=4),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """FLOPs a second that are reached, and how that is known.

    Attributes:
        flops_per_second: Of a whole training step, or of whole sampling.
        basis: What it was measured on, or that it was assumed.
        measured: Whether it was measured.
    """

    flops_per_second: float
    basis: str
    measured: bool


def card_named(name: str) -> str:
    """The name of a card as `CARDS` has it, whatever its case.

    Raises:
        CostError: There is no such card.
    """
    known = {card.lower(): card for card in CARDS}
    if name.lower() not in known:
        raise CostError(f"there is no card {name!r}; the cards are {', '.join(CARDS)}")
    return known[name.lower()]


def speed_on(card: str, phase: Phase, forward_macs: int, *, utilisation: float | None = None) -> Speed:
    """How fast a card goes through a phase of an experiment.

    Small networks reach less of a card than large ones, so the measured network nearest in size is taken.

    Args:
        card: A name of `CARDS`.
        phase: Training, or the network alone.
        forward_macs: Multiply-accumulates of one image through the network.
        utilisation: The share of the peak to assume, in (0, 1], instead of what was measured.

    Raises:
        CostError: The utilisation is out of its range.
    """
    if utilisation is not None and not 0.0 < utilisation <= 1.0:
        raise CostError(f"utilisation must be above 0 and at most 1, got {utilisation}")
    known = _measured().get(card) if utilisation is None else None
    precision = "fp32" if card == "CPU" else "bf16"
    speeds = [speed for speed in known["speeds"] if speed["precision"] == precision and speed["phase"] == phase] if known else []
    if known is None or not speeds:
        share = ASSUMED_UTILISATION if utilisation is None else utilisation
        basis = f"{share:.0%} of its peak" + (", assumed: nothing was measured" if utilisation is None else ", as given")
        return Speed(flops_per_second=CARDS[card].peak_flops * share, basis=basis, measured=False)
    nearest = min(speeds, key=lambda speed: abs(math.log(speed["forward_macs"] / forward_macs)))
    basis = f"{nearest['what']}, {precision}, measured {nearest['date']} on {known['machine']}"
    return Speed(flops_per_second=nearest["flops_per_second"], basis=basis, measured=True)


@functools.cache
def _measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MEASURED_PATH.read_text())
    return found

"""Measure a row: both sides take turns in one process, and the result is the ratio of their medians with its range."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Clock = Literal["processor", "wall"]
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The settings of a run of the suite.

    Attributes:
        device: Where to measure.
        quick: The smallest sizes that go through the same code: for a test of the suite, not for a number.
        scratch: A directory that all groups of this run share.
    """

    device: torch.device
    quick: bool
    scratch: Path

    def rounds(self, count: int) -> int:
        """Return that many, or one."""
        return 1 if self.quick else count


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One row's number.

    Attributes:
        value: In the row's unit.
        low: Least of the rounds; None where there was one reading.
        high: Greatest of the rounds.
        note: Further observations, in a few words.
        details: Plain numbers that are kept in the JSON alone.
    """

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    details: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def seconds_of(work: Work, *, device: torch.device | None = None, clock: Clock = "processor") -> float:
    """Seconds of a GPU between two of its events, or the processor's seconds of this process, or the clock's."""
    if device is not None and device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    now = time.process_time if clock == "processor" else time.perf_counter
    started = now()
    work()
    return now() - started


def take_turns(
    sides: Mapping[str, Work], *, rounds: int, warmup: int = 1, device: torch.device | None = None, clock: Clock = "processor"
) -> dict[str, list[float]]:
    """Seconds of each side in each round; within a round each side has one turn, so that a busy moment hits all."""
    for work in sides.values():
        for _ in range(warmup):
            work()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds_of(work, device=device, clock=clock))
    return times


def ratio(theirs: Sequence[float], ours: Sequence[float], note: str = "", **details: float) -> Measured:
    """Return how many times faster ours is: the medians' ratio, and the least and greatest of the rounds' own ratios."""
    each = [slow / fast for slow, fast in zip(theirs, ours, strict=True)]
    value = statistics.median(theirs) / statistics.median(ours)
    seconds = {"their_seconds": statistics.median(theirs), "our_seconds": statistics.median(ours)}
    return Measured(value=value, low=min(each), high=max(each), note=note, details=seconds | details)


def excess_percent(without: Sequence[float], with_it: Sequence[float], note: str = "") -> Measured:
    """Return the percentage by which something makes work longer: medians, and the least and greatest of the rounds."""
    each = [100 * (slow / fast - 1) for fast, slow in zip(without, with_it, strict=True)]
    value = 100 * (statistics.median(with_it) / statistics.median(without) - 1)
    seconds = {"seconds_without": statistics.median(without), "seconds_with": statistics.median(with_it)}
    return Measured(value=value, low=min(each), high=max(each), note=note, details=seconds)


def of(values: Sequence[float], note: str = "", **details: float) -> Measured:
    """The median of readings of one thing, with their range."""
    return Measured(value=statistics.median(values), low=min(values), high=max(values), note=note, details=details or None)


def convolution_peak(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> float:
    """FLOPs a second of a 3x3 convolution of 256 channels at 32x32, forward and backward: the network's own roofline."""
    batch = 1 if quick else 1024 if device.type == "cuda" else 8
    layer = torch.nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=dtype)
    return _peak(layer, torch.randn(batch, 256, 32, 32, device=device, dtype=dtype), device, quick)


def matrix_product_peak(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> float:
    """FLOPs a second of the matrix product with the factors of that convolution, forward and backward."""
    batch = 1 if quick else 256 if device.type == "cuda" else 8  # nine times the memory of the convolution's images
    layer = torch.nn.Linear(9 * 256, 256, device=device, dtype=dtype)
    return _peak(layer, torch.randn(batch * 32 * 32, 9 * 256, device=device, dtype=dtype), device, quick)


def _peak(layer: torch.nn.Module, x: torch.Tensor, device: torch.device, quick: bool) -> float:
    """The fastest of ten passes; each multiplies the weights with every position, and so do its two gradients."""
    x.requires_grad_()
    gradient = torch.ones_like(layer(x))

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(gradient)

    for _ in range(3):
        step()
    flops = 3 * 2 * 9 * 256 * gradient.numel()
    return flops / min(seconds_of(step, device=device) for _ in range(1 if quick else 10))


def copy_bandwidth(device: torch.device, *, quick: bool = False) -> float:
    """Bytes a second that a copy of 256 MB moves, read and written both counted."""
    source = torch.ones((1 if quick else 64) * 2**20, device=device)
    target = torch.zeros_like(source)
    moved = 2 * source.numel() * source.element_size()
    target.copy_(source)
    return moved / min(seconds_of(lambda: target.copy_(source), device=device, clock="wall") for _ in range(1 if quick else 10))


def resident_bytes() -> int:
    """The resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

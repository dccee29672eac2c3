"""Peaks of memory: of training steps, each in a process of its own, and of what a Frechet distance keeps."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
from measuring import Measured, Run, peak_rss_bytes
from training_steps import baseline_step, network_experiment, our_trainer, set_up, updates_of

from evaluation.distances.frechet import Moments


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    bytes_of = {side: _in_own_process(side, run) for side in ("baseline", "fp32", "bf16")}
    for precision in ("fp32", "bf16"):
        note = f"{bytes_of[precision] / 1e6:,.0f} MB, the baseline {bytes_of['baseline'] / 1e6:,.0f} MB"
        yield f"training-{precision}", Measured(value=bytes_of[precision] / bytes_of["baseline"], note=note)
    if run.device.type == "cpu":
        held = Moments(2048)
        held.update(torch.randn(64, 2048))
        size = sum(tensor.numel() * tensor.element_size() for tensor in (held.total, held.outer))
        yield "moments", Measured(value=size / 1e6, note="whatever the number of images")


def _in_own_process(side: str, run: Run) -> int:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(training_peak, side, run).result()


def training_peak(side: str, run: Run) -> int:
    """Bytes that a process needs for two steps beyond what its libraries take."""
    import diffusers.models.unets.unet_2d  # noqa: F401

    set_up(run.device)
    experiment = network_experiment("cifar10", run)
    before = peak_rss_bytes()
    step = baseline_step(experiment, run.device) if side == "baseline" else updates_of(our_trainer(experiment, run.device, precision=side))  # type: ignore[arg-type]
    step()
    step()
    return torch.cuda.max_memory_allocated() if run.device.type == "cuda" else peak_rss_bytes() - before

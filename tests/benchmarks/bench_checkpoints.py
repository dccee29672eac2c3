"""The time that training waits for a checkpoint: the copy that it makes before a thread writes it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from measuring import Measured, Run, copy_bandwidth, of, seconds_of
from training_steps import network_experiment, our_trainer, set_up

from training.checkpoints.checkpoint import AsyncWriter
from training.config.presets import preset
from training.cost.accelerators import CARDS
from training.cost.estimate import TRAINING_PASSES, count_macs

_MFU = 0.35


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    set_up(run.device)
    trainer = our_trainer(network_experiment("cifar10", run, batch=2), run.device, precision="fp32")
    batch = next(trainer.batches.batches(0, 1))
    trainer._update(batch)  # the optimiser's state is made by the first update
    writer = AsyncWriter(str(run.scratch / "checkpoint-stall"))
    stalls, writing = [], []
    for step in range(1, run.rounds(3) + 1):
        stalls.append(seconds_of(lambda step=step: writer.save(step, trainer.checkpoint_files()), clock="wall"))
        started = time.perf_counter()
        writer.wait()
        writing.append(time.perf_counter() - started)
    writer.close()
    tensors = [tensor for kind in ("model.pt", "ema_0.9999.pt") for tensor in trainer.checkpoint_files()[kind].values()]
    size = 2 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # Adam's two moments are as large as both
    whole = preset("cifar10-hybrid-cosine")
    flops = 2.0 * TRAINING_PASSES * sum(count_macs(whole).values()) * whole.optim.global_batch_size
    interval = whole.optim.checkpoint_interval * flops / (CARDS["H100"].peak_flops * _MFU)
    copying = 2 * size / copy_bandwidth(torch.device("cpu"), quick=run.quick)
    note = (
        f"{statistics.median(stalls):.2f} s for {size / 1e6:,.0f} MB (a bare copy {copying:.2f} s) of {interval:.0f} s; "
        f"the thread writes for {statistics.median(writing):.1f} s more"
    )
    yield "stall", of([100 * seconds / interval for seconds in stalls], note, interval_seconds=interval, bytes=float(size))

"""A training step on the card: what torch.compile, CUDA graphs and the fused optimiser gain, and how long it waits for its batch."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import torch
from measuring import Measured, Run, Work, ratio, take_turns
from photographs import crops_of_photographs
from training_steps import network_experiment, our_trainer, set_up, updates_of

from training.data.loading.loader import Loader
from training.loop.trainer import Trainer
from training.models.unet import make_model


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    set_up(run.device)
    yield "fused", fused_optimizer(run)
    yield "waiting", waiting_for_batches(run, 5 if run.quick else 100)
    gc.collect()
    yield "compile", compiled_step(run)
    gc.collect()
    yield "graphs", step_with_graphs(run)  # the last, as no training runs so: if it fails, the other rows are there


def fused_optimizer(run: Run) -> Measured:
    """An update of the weights by torch's two forms of AdamW; a training takes the fused one."""
    sides: dict[str, Work] = {}
    for form in ("foreach", "fused"):
        parameters = list(make_model(network_experiment("cifar10", run)).to(run.device).parameters())
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        sides[form] = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, **{form: True}).step  # type: ignore[arg-type]
    times = take_turns(sides, rounds=run.rounds(20), warmup=3, device=run.device)
    return ratio(times["foreach"], times["fused"])


def waiting_for_batches(run: Run, num_steps: int) -> Measured:
    """The percentage of a training's time in which the device has nothing to do but to wait for the loader's batch.

    The host waits for the end of each step before it takes the next batch; so none of the wait hides behind work in the device's queue.
    """
    experiment = network_experiment("cifar10", run)
    size = experiment.optim.global_batch_size
    waited, whole = [], []
    with crops_of_photographs(64 if run.quick else 4096, 32) as crops:
        loader = Loader(crops.data_uri, seed=0, global_batch_size=size, cache_dir=crops.cache)
        trainer = our_trainer(experiment, run.device, precision="bf16", source=loader)
        batches = loader.batches(0, num_steps, pin_memory=run.device.type == "cuda")
        for number in range(num_steps):
            started = time.perf_counter()
            batch = next(batches)
            arrived = time.perf_counter()
            trainer._update(batch)
            trainer.step += 1
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
            if number >= min(10, num_steps // 2):  # the first steps compile, and choose cuDNN's algorithms
                waited.append(arrived - started)
                whole.append(time.perf_counter() - started)
    each = [100 * wait / step for wait, step in zip(waited, whole, strict=True)]
    note = f"batch {size}, {1000 * sum(whole) / len(whole):.1f} ms a step; the range of steps"
    return Measured(value=100 * sum(waited) / sum(whole), low=min(each), high=max(each), note=note)


def compiled_step(run: Run) -> Measured:
    """Our step as `resources.compile` makes it, beside our eager step."""
    experiment = network_experiment("cifar10", run)
    eager, compiled = (our_trainer(experiment, run.device, precision="bf16", compiled=compiled) for compiled in (False, True))
    times = take_turns({"eager": updates_of(eager), "compiled": updates_of(compiled)}, rounds=run.rounds(20), warmup=3, device=run.device)
    return ratio(times["eager"], times["compiled"], f"batch {experiment.optim.global_batch_size}")


def step_with_graphs(run: Run) -> Measured:
    """Our step with the network and its gradient replayed as CUDA graphs, beside our step with `resources.compile`."""
    experiment = network_experiment("cifar10", run)
    compiled, graphs = (our_trainer(experiment, run.device, precision="bf16", compiled=True) for _ in range(2))
    sides = {"compiled": updates_of(compiled), "graphs": _with_graphs(graphs)}
    # The first calls of a graph compile, run once outside of it, and record it.
    times = take_turns(sides, rounds=run.rounds(20), warmup=5, device=run.device)
    return ratio(times["compiled"], times["graphs"], f"batch {experiment.optim.global_batch_size}")


def _with_graphs(trainer: Trainer) -> Work:
    trainer._network._network = torch.compile(trainer.state.model, dynamic=False, mode="reduce-overhead")
    update = updates_of(trainer)

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        update()

    return step

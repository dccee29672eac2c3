"""The cost to training of scoring a checkpoint at the same time, where each has a core of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator

import torch
from measuring import Measured, Run, excess_percent, seconds_of
from training_steps import network_experiment, our_trainer, updates_of

from training.config.experiment import SamplingConfig
from training.diffusion.process import Denoiser
from training.diffusion.samplers.sampler import make_sampler, make_sampling_process, sample
from training.models.unet import make_model


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The row of this group: by the clock, a step with and without the other process, in turns."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("scoring beside training needs two cores, and this process may use one")
    os.sched_setaffinity(0, {cores[0]})
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    other = context.Process(target=draw_for_ever, args=(run, cores[1], started), daemon=True)
    step = updates_of(our_trainer(network_experiment("cifar10", run, batch=4), run.device, precision="fp32"))
    step()
    other.start()
    try:
        if not started.wait(120):
            raise RuntimeError("the process that draws images did not start")
        alone, beside = [], []
        for _ in range(run.rounds(8)):
            os.kill(other.pid or 0, signal.SIGSTOP)
            alone.append(seconds_of(step, clock="wall"))
            os.kill(other.pid or 0, signal.SIGCONT)
            beside.append(seconds_of(step, clock="wall"))
    finally:
        other.kill()
        other.join()
    yield "training", excess_percent(alone, beside, "CIFAR-10's network on both cores: batch 4 is trained, 8 images are drawn")


def draw_for_ever(run: Run, core: int, started: object) -> None:
    """Draws images as a score does, on a core of its own, until it is killed."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    experiment = network_experiment("cifar10", run)
    network = make_model(experiment).eval().requires_grad_(False)
    sampling = SamplingConfig(method="dpm_solver_pp", spacing="20")
    denoiser = Denoiser(make_sampling_process(experiment.diffusion, sampling), network)
    indices = torch.arange(8)
    started.set()  # type: ignore[attr-defined]
    while True:
        sample(denoiser, make_sampler(sampling), indices=indices, shape=(3, 32, 32), seed=0)

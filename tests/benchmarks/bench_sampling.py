"""Images drawn end to end, from noise to 8 bits, beside diffusers' network under its own schedulers."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import Measured, Run, Work, ratio, take_turns
from training_steps import set_up

from evaluation.records.devices import sampling_batch_size
from training.config.experiment import Experiment, SamplingConfig
from training.config.presets import preset
from training.cost.estimate import count_macs
from training.diffusion.pixels import quantize
from training.diffusion.process import Denoiser, Model
from training.diffusion.samplers.sampler import make_sampler, make_sampling_process, sample
from training.models.unet import make_model

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from diffusers_twin import diffusers_twin

SAMPLERS = {
    "ancestral-250": SamplingConfig(spacing="250"),
    "ddim-50": SamplingConfig(method="ddim", spacing="ddim50"),
    "dpm-solver-20": SamplingConfig(method="dpm_solver_pp", spacing="20"),
}


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    set_up(run.device)
    on_gpu = run.device.type == "cuda"
    width = 32 if run.quick else 128 if on_gpu else 64
    experiment = preset("cifar10-hybrid-cosine", [f"model.model_channels={width}", "diffusion.num_timesteps=1000"])
    batch = 1 if run.quick else 64 if on_gpu else 1
    network = make_model(experiment).to(run.device).eval().requires_grad_(False)
    twin = diffusers_twin(experiment.model, experiment.data.image_size).to(run.device).eval().requires_grad_(False)
    sides: dict[str, Work] = {}
    for name, sampling in SAMPLERS.items():
        steps = 2 if run.quick else int(name.rpartition("-")[2])
        sides[f"theirs {name}"] = baseline(twin, name, steps, batch, experiment, run.device)
        sides[f"ours {name}"] = ours(network, experiment, sampling if not run.quick else _short(sampling), torch.arange(batch), run.device)
    sides["bf16"] = ours(_in_bf16(network, run.device), experiment, SAMPLERS["dpm-solver-20"], torch.arange(batch), run.device)
    # The first image of a process is dearer than the next; a short one of each side is enough to be past that.
    for work in (sides["theirs dpm-solver-20"], sides["ours dpm-solver-20"], sides["bf16"]):
        work()
    times = take_turns(sides, rounds=run.rounds(2), warmup=0, device=run.device)
    macs = sum(count_macs(experiment).values())

    def speed(side: str, steps: int) -> dict[str, float]:
        return {"forward_macs": float(macs), "flops_per_second": 2 * macs * steps * batch / statistics.median(times[side])}

    for name in SAMPLERS:
        steps = int(name.rpartition("-")[2])
        yield name, ratio(times[f"theirs {name}"], times[f"ours {name}"], f"batch {batch}", **speed(f"ours {name}", steps))
    if not on_gpu:
        yield "batch", in_batches(run)
        yield "set-fashion-mnist", a_set(run, preset("fashion-mnist-hybrid-cosine", ["model.class_conditional=false"]), 250)
        yield "set-cifar10", a_set(run, experiment, 64)
    yield "end-to-end-bf16", ratio(times["theirs ancestral-250"], times["bf16"], f"batch {batch}", **speed("bf16", 20))


def in_batches(run: Run) -> Measured:
    """The network of small grey images: above 32 MB the C library maps and unmaps the memory of an activation at each use."""
    experiment = preset("fashion-mnist-hybrid-cosine")
    network = make_model(experiment).eval().requires_grad_(False)
    count = 4 if run.quick else 250
    x, t, y = torch.randn(count, 1, 28, 28), torch.full((count,), 500.0), torch.zeros(count, dtype=torch.int64)
    size = sampling_batch_size(experiment, "cpu")

    def of(batch: int) -> Work:
        return lambda: [network(x[part], t[part], y[part]) for part in torch.arange(count).split(batch)]

    times = take_turns({"at once": of(count), "ours": of(size)}, rounds=run.rounds(5), device=run.device)
    return ratio(times["at once"], times["ours"], f"{size} at a time")


def a_set(run: Run, experiment: Experiment, count: int) -> Measured:
    """Images of a whole set, as many at a time as our sampler takes, and all at once as diffusers' pipelines do; the time of two steps."""
    count = 4 if run.quick else count
    network = make_model(experiment).eval().requires_grad_(False)
    twin = diffusers_twin(experiment.model, experiment.data.image_size, experiment.data.image_channels).eval().requires_grad_(False)
    size = sampling_batch_size(experiment, "cpu")
    sampling = SamplingConfig(method="dpm_solver_pp", spacing="2")
    parts = [ours(network, experiment, sampling, indices, run.device) for indices in torch.arange(count).split(size)]
    sides = {
        "theirs": baseline(twin, "dpm-solver", 2, count, experiment, run.device),
        "ours": lambda: [draw() for draw in parts],
    }
    times = take_turns(sides, rounds=run.rounds(3), device=run.device)
    return ratio(times["theirs"], times["ours"], f"{min(size, count)} of {count} at a time")


def _short(sampling: SamplingConfig) -> SamplingConfig:
    return SamplingConfig(method=sampling.method, spacing="ddim2" if sampling.method == "ddim" else "2")


def _in_bf16(network: Model, device: torch.device) -> Model:
    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return network(*args, **kwargs).float()

    return run


def ours(network: Model, experiment: Experiment, sampling: SamplingConfig, indices: torch.Tensor, device: torch.device) -> Work:
    """Draws a batch, as `evaluation.sampling.generate` does."""
    denoiser, positions = Denoiser(make_sampling_process(experiment.diffusion, sampling), network), indices.to(device)
    shape = (experiment.data.image_channels, experiment.data.image_size, experiment.data.image_size)
    return lambda: quantize(sample(denoiser, make_sampler(sampling), indices=positions, shape=shape, seed=0)).cpu()


def baseline(twin: Any, name: str, steps: int, batch: int, experiment: Experiment, device: torch.device) -> Work:
    """Draws a batch as diffusers' own pipelines do: set the timesteps, and step from one to the next."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    common = {"num_train_timesteps": experiment.diffusion.num_timesteps, "beta_schedule": "squaredcos_cap_v2"}
    scheduler: Any
    if name.startswith("ancestral"):
        scheduler = DDPMScheduler(**common, variance_type="learned_range")
    elif name.startswith("ddim"):
        scheduler = DDIMScheduler(**common)
    else:
        scheduler = DPMSolverMultistepScheduler(**common)

    channels, size = experiment.data.image_channels, experiment.data.image_size

    @torch.no_grad()
    def draw() -> torch.Tensor:
        scheduler.set_timesteps(steps)
        x = torch.randn(batch, channels, size, size, device=device)
        for t in scheduler.timesteps:
            output = twin(x, t).sample
            # The others take the noise alone.
            x = scheduler.step(output if name.startswith("ancestral") else output[:, :channels], t, x).prev_sample
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    return draw

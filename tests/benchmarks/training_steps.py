"""The training steps that rows compare: the paper's method as one would write it with diffusers, and our loop's update.

The baseline is eager float32 with a noise-prediction loss, AdamW as torch makes it by default and the average of the
weights parameter by parameter. Ours is a whole update of `training.loop.trainer`: keyed noise and timesteps, L_hybrid with its
bound, fused AdamW, the average, what is logged. So ours does more in a step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import Run, Work
from torch import nn

from training.config.experiment import Experiment, Precision, Resources
from training.config.presets import preset
from training.diffusion.pixels import to_model_range
from training.launch.torchrun import RandomImages
from training.loop.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from diffusers_twin import diffusers_twin

COMMON = ("model.dropout=0", "diffusion.timestep_sampler=uniform")
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cifar10": ("cifar10-hybrid-cosine", ()),
    "imagenet64": ("imagenet64-hybrid-cosine", ()),
    "upsampler": (
        "imagenet256-upsampler-hybrid-linear",
        ("data.image_size=128", "model.low_res_size=32", "model.model_channels=96", "model.class_conditional=false"),
    ),
}
CPU_BATCH = {"cifar10": 8, "imagenet64": 2, "upsampler": 1}
GPU_BATCH = {"cifar10": 128, "imagenet64": 128, "upsampler": 32}
SMALL = ("model.model_channels=32", "model.num_res_blocks=1")


def network_experiment(name: str, run: Run, *, batch: int = 0) -> Experiment:
    """The experiment of a network, at the batch that this device takes."""
    preset_name, overrides = NETWORKS[name]
    size = batch or (GPU_BATCH if run.device.type == "cuda" else CPU_BATCH)[name]
    small = SMALL if run.quick else ()
    return preset(preset_name, [*COMMON, *overrides, *small, f"optim.global_batch_size={2 if run.quick else size}"])


def baseline_step(experiment: Experiment, device: torch.device) -> Work:
    """A step of the baseline on the images that ours has."""
    network = diffusers_twin(experiment.model, experiment.data.image_size).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    source = RandomImages(experiment, device)
    low_res_size = experiment.model.low_res_size

    def step() -> None:
        x_0 = to_model_range(source.images)
        t = torch.rand(len(x_0), device=device) * 1000
        noise = torch.randn_like(x_0)
        inputs = 0.7 * x_0 + 0.7 * noise
        if low_res_size is not None:
            small = nn.functional.interpolate(x_0, low_res_size, mode="area")
            inputs = torch.cat([inputs, nn.functional.interpolate(small, x_0.shape[-1], mode="bilinear")], dim=1)
        loss = (network(inputs, t).sample[:, :3] - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        move_by_parameter(average, list(network.parameters()))

    return step


@torch.no_grad()
def move_by_parameter(average: list[torch.Tensor], parameters: list[nn.Parameter]) -> None:
    """The average of the weights as most code moves it."""
    for kept, parameter in zip(average, parameters, strict=True):
        kept.mul_(0.9999).add_(parameter, alpha=1e-4)


def our_trainer(
    experiment: Experiment, device: torch.device, *, precision: Precision, source: Any = None, compiled: bool | None = None
) -> Trainer:
    """A trainer on images in memory, or from `source`; compiled where that pays, on a GPU, unless `compiled` says."""
    on_gpu = device.type == "cuda"
    resources = Resources(
        precision=precision,
        compile=on_gpu if compiled is None else compiled,
        num_gpus_per_worker=int(on_gpu),
        microbatch_size=experiment.optim.global_batch_size,
    )
    return Trainer(experiment, resources, source or RandomImages(experiment, device), device=device)


def updates_of(trainer: Trainer) -> Work:
    """One update of the loop at each call."""
    batches: Iterator[Any] = trainer.batches.batches(0, 10**9)

    def step() -> None:
        trainer._update(next(batches))
        trainer.step += 1

    return step


def set_up(device: torch.device) -> None:
    """One thread on a CPU; on a GPU what both sides are given: TF32, and the fastest of cuDNN's algorithms."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(1)

"""Train with torch alone: no Ray, no MLflow, no S3; in one process or under torchrun.

    python -m training.launch.torchrun --preset cifar10-hybrid-cosine --steps 100
    torchrun --nproc-per-node 8 -m training.launch.torchrun --preset imagenet64-hybrid-cosine --steps 100 --bf16 --compile

It runs and times the loop of the pipelines on random images of the data set's shape, so that a speed can be measured on a GPU machine
where only torch is installed. It prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from training.config.errors import UserError
from training.config.experiment import Experiment, Resources
from training.config.presets import preset
from training.diffusion.pixels import Batch
from training.distributed.ranks import use_fast_kernels
from training.loop.interfaces import Hooks, TrainingError
from training.loop.trainer import Trainer


class RandomImages:
    """A source of one batch of random images, made once and reused, so that only the loop is timed."""

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        data = experiment.data
        self.size = experiment.optim.global_batch_size
        generator = torch.Generator().manual_seed(experiment.seed)
        shape = (self.size, data.image_channels, data.image_size, data.image_size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.labels = torch.randint(0, data.num_classes, (self.size,), generator=generator).to(device) if data.num_classes else None
        self.offsets = torch.arange(self.size, device=device)

    def batches(
        self, first_step: int, num_steps: int, start: int = 0, stop: int | None = None, *, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """Yield the same images at every step, with that step's positions; they are on the device already."""
        part = slice(start, stop)
        labels = self.labels[part] if self.labels is not None else None
        for step in range(first_step, first_step + num_steps):
            yield Batch(self.images[part], labels, self.offsets[part] + step * self.size)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train on random images and print the mean speed; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.launch.torchrun", description="Time the training loop with torch alone.")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="section.field=value", dest="overrides")
    parser.add_argument("--steps", type=int, default=50, help="updates that are timed")
    parser.add_argument("--warmup", type=int, default=10, help="updates before, not timed")
    parser.add_argument("--microbatch", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.warmup < 0:
        parser.error("--steps must be at least 1 and --warmup at least 0")
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if world_size > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(device)
        use_fast_kernels()
    last: dict[str, float] = {}
    try:
        experiment = preset(options.preset, [*options.overrides, f"optim.num_steps={options.warmup + options.steps}"])
        resources = Resources(
            num_workers=world_size,
            num_gpus_per_worker=int(on_gpu),
            microbatch_size=options.microbatch,
            precision="bf16" if options.bf16 else "fp32",
            compile=options.compile,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        source = RandomImages(experiment, device)
        hooks = Hooks(log=lambda step, metrics: last.update(metrics))
        trainer = Trainer(experiment, resources, source, device=device, rank=rank, world_size=world_size, hooks=hooks)
        if options.warmup:
            trainer.train(options.warmup)
        started = time.perf_counter()
        trainer.train(options.warmup + options.steps)
        seconds = time.perf_counter() - started
        trainer.close()
    except (UserError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if rank == 0:
        images = options.steps * experiment.optim.global_batch_size
        report = {
            "preset": experiment.name,
            "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "world_size": world_size,
            "precision": resources.precision,
            "compile": resources.compile,
            "steps": options.steps,
            "last_step": trainer.step,
            "images_per_second": images / seconds,
            "loss": last["loss"],
        }
        print(json.dumps(report))  # noqa: T201
    if world_size > 1:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""One update by one worker and by two, in turns: run by torchrun as two processes, it prints the seconds of each as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from training.config.experiment import Resources
from training.config.presets import preset
from training.launch.torchrun import RandomImages
from training.loop.interfaces import Hooks
from training.loop.trainer import Trainer


def main() -> None:
    """Arguments: the number of turns, and the overrides of the preset cifar10-hybrid-cosine."""
    turns, overrides = int(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    experiment = preset("cifar10-hybrid-cosine", [*overrides, f"optim.num_steps={turns + 1}"])
    images, device = RandomImages(experiment, torch.device("cpu")), torch.device("cpu")

    def trainer(workers: int) -> Trainer:
        resources = Resources(num_workers=workers, num_gpus_per_worker=0)
        hooks = Hooks(log=lambda step, metrics: None)
        return Trainer(experiment, resources, images, device=device, rank=rank if workers > 1 else 0, world_size=workers, hooks=hooks)

    both, alone = trainer(2), trainer(1) if rank == 0 else None
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for turn in range(turns + 1):  # the first one warms up
        for name, work in (("one", alone), ("two", both)):
            dist.barrier()
            started = time.perf_counter()
            if work is not None:
                work.train(turn + 1)
            dist.barrier()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    if rank == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

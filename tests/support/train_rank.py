"""One of the ranks that train without Ray; the others and the meeting point are in the environment, as torchrun sets it."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from training.checkpoints import checkpoint
from training.config.experiment import Experiment, Resources
from training.data.loading.loader import Loader
from training.loop.interfaces import Hooks
from training.loop.trainer import Trainer

if __name__ == "__main__":
    experiment, data_uri, folder = Experiment.from_json(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    loader = Loader(f"{data_uri}/train", seed=experiment.seed, global_batch_size=experiment.optim.global_batch_size)
    logged = {}
    hooks = Hooks(log=logged.__setitem__, save=lambda step, files: checkpoint.save(str(folder), step, files))
    Trainer(experiment, Resources(num_threads=1), loader, rank=rank, world_size=dist.get_world_size(), hooks=hooks).train()
    if rank == 0:
        (folder / "logged.json").write_text(json.dumps(logged))
    dist.barrier()
    dist.destroy_process_group()

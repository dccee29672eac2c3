"""Export a checkpoint's network as a `.pt2` file of torch.export, which runs with torch alone."""

from __future__ import annotations

import io
from typing import Any

import torch

from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.network import load_network
from training.models.unet import example_inputs


def export_program(checkpoint_uri: str, file_uri: str, *, weights: str | None = None) -> dict[str, Any]:
    """Write a checkpoint's network as a program for any batch size; `torch.export.load(file).module()` is the network.

    Its arguments are those of `training.models.unet.UNet.forward`, by name: `x`, `timesteps`, and `y` or `low_res` where the network takes
    them. The file also contains `experiment.json`, which says how timesteps are scaled and what the output's channels are.

    Args:
        weights: "ema_0.9999" or "model"; None takes the experiment's first average.

    Returns:
        Plain data: `file_uri`, `weights`, `parameters`, `inputs` (name -> shape, with "batch"), `num_bytes`.

    Raises:
        CheckpointError: There is no such checkpoint, no such weights in it, or they are another network's.
    """
    experiment = checkpoint.load_experiment(checkpoint_uri)
    chosen = checkpoint.choose_weights(checkpoint_uri, weights)
    storage.check_destination(file_uri)
    network = load_network(checkpoint_uri, chosen, experiment)
    inputs = example_inputs(experiment, 2)  # a batch of one would be traced as a constant
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (), kwargs=inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    written = io.BytesIO()  # torch's writer of this format ends the process where the disk is full
    torch.export.save(program, written, extra_files={checkpoint.EXPERIMENT: experiment.to_json()})
    num_bytes = checkpoint.export_file(file_uri, "network.pt2", lambda path: path.write_bytes(written.getbuffer()))
    return {
        "file_uri": file_uri,
        "weights": chosen,
        "parameters": sum(tensor.numel() for tensor in network.state_dict().values()),
        "inputs": {name: ["batch", *tensor.shape[1:]] for name, tensor in inputs.items()},
        "num_bytes": num_bytes,
    }

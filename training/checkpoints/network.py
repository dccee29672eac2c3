"""The network of a checkpoint, and the comparison of a state dict with the network that it should be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from training.checkpoints import checkpoint
from training.config.experiment import Experiment
from training.models.unet import UNet, make_model

Shapes = Mapping[str, tuple[int, ...]]


def load_network(checkpoint_uri: str, weights: str, experiment: Experiment) -> UNet:
    """Load the network of a checkpoint on the CPU, in evaluation mode and without gradients.

    Args:
        weights: "ema_0.9999" or "model".
        experiment: The checkpoint's own, which says what the network looks like.

    Raises:
        CheckpointError: There is no such checkpoint, no such weights in it, or they are another network's.
    """
    state = load_state(checkpoint_uri, weights, experiment)
    with torch.random.fork_rng(devices=[]):
        network = make_model(experiment)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def load_state(checkpoint_uri: str, weights: str, experiment: Experiment) -> dict[str, Tensor]:
    """Return the weights alone; arguments and errors are those of `load_network`."""
    state = checkpoint.load_model_state(checkpoint_uri, weights)
    difference = describe_difference(expected_shapes(experiment), shapes_of(state))
    if difference:
        raise checkpoint.CheckpointError(
            f"{checkpoint_uri} ({weights}): is not a network of the checkpoint's experiment: {difference}; take another checkpoint"
        )
    return state


def expected_shapes(experiment: Experiment) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in the state dict of an experiment's network."""
    with torch.device("meta"):
        return shapes_of(make_model(experiment).state_dict())


def describe_difference(expected: Shapes, found: Shapes) -> str:
    """Return the differences of two state dicts in one line: the first of each kind and the number of others; else empty."""
    missing = [f"{name} {list(expected[name])} is missing" for name in expected if name not in found]
    surplus = [f"{name} {list(found[name])} is not expected" for name in found if name not in expected]
    other = [
        f"{name} is {list(found[name])} where {list(shape)} is expected"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return "; ".join(kind[0] + (f" (and {len(kind) - 1} more)" if len(kind) > 1 else "") for kind in (other, missing, surplus) if kind)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}

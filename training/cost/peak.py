"""Peak memory of training and of sampling: the network runs without data, and the storages that are alive are counted."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.config.experiment import Experiment
from training.models.unet import make_model


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make and that are still alive.

    Attributes:
        now: Bytes that are alive.
        peak: The most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def drop(_: Any) -> None:
            del self._alive[key]
            self.now -= num_bytes

        self._alive[key] = weakref.ref(storage, drop)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


def training_bytes(experiment: Experiment, batch_size: int, *, bf16: bool) -> int:
    """Return the peak of an update with that many images at once: weights, gradients, Adam's moments, averages and activations.

    The libraries of the process and the workspaces of single operations come on top.
    """
    live, parameters = _run(experiment, batch_size, bf16=bf16, trains=True)
    averages = len(experiment.optim.ema_decays) + len(experiment.optim.ema_snapshot_stds)
    return live + (2 + averages) * 4 * parameters


def scoring_bytes(experiment: Experiment, batch_size: int) -> int:
    """Return the peak of a network evaluation of that many images, without gradients, in float32."""
    return _run(experiment, batch_size, bf16=False, trains=False)[0]


def _run(experiment: Experiment, batch_size: int, *, bf16: bool, trains: bool) -> tuple[int, int]:
    """Return the peak of one pass, with the weights and (if it trains) the gradients, and the number of parameters."""
    # Without labels: the check of their range needs values, which fake tensors do not have. Their embedding is small.
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, class_conditional=False))
    data, config = experiment.data, experiment.model
    with FakeTensorMode(), LiveBytes() as live, torch.set_grad_enabled(trains):
        model = make_model(experiment).train(trains)
        inputs = {
            "x": torch.zeros(batch_size, data.image_channels, data.image_size, data.image_size),
            "timesteps": torch.zeros(batch_size),
        }
        if config.low_res_size is not None:
            inputs["low_res"] = torch.zeros(batch_size, data.image_channels, config.low_res_size, config.low_res_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(**inputs)
        if trains:
            output.float().square().mean().backward()
    return live.peak, sum(parameter.numel() for parameter in model.parameters())

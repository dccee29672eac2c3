"""Peak memory of training and of sampling: the network runs without data, and the storages that are alive are counted."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.config.experiment import Experiment, SamplingConfig
from training.models.unet import UNet, example_inputs, make_model


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make and that are still alive.

    Attributes:
        now: Bytes that are alive.
        peak: The most that were alive at once, with the copies that a convolution makes while it runs.
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
                self.add(leaf)
        # oneDNN copies the images that it reads and those that it writes, or their gradients, into an order of its own.
        if func is torch.ops.aten.convolution.default:
            self.peak = max(self.peak, self.now + args[0].nbytes + result.nbytes)
        elif func is torch.ops.aten.convolution_backward.default:
            self.peak = max(self.peak, self.now + args[0].nbytes + args[1].nbytes)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage for as long as it is alive."""
        storage = tensor.untyped_storage()
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
    fake = fake_network(experiment)
    model = fake.model.train(trains)
    with fake.mode, LiveBytes() as live, torch.set_grad_enabled(trains):
        for tensor in (*model.parameters(), *model.buffers()):
            live.add(tensor)
        inputs = example_inputs(fake.experiment, batch_size)  # alive to the end, as in training
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(**inputs)
        if trains:
            output.float().square().mean().backward()
    # The embedding of the labels is alive all the time. Its gradient is made when the activations are gone.
    labels = _count_label_parameters(experiment)
    peak = max(live.peak, live.now + (4 * labels if trains else 0)) + 4 * labels
    model.zero_grad(set_to_none=True)
    return peak, labels + sum(parameter.numel() for parameter in model.parameters())


def _count_label_parameters(experiment: Experiment) -> int:
    with torch.device("meta"):
        embedding = getattr(make_model(experiment), "label_emb", None)
    return 0 if embedding is None else sum(parameter.numel() for parameter in embedding.parameters())


class FakeNetwork(NamedTuple):
    """A network without data, the mode in which it runs, and its experiment.

    The experiment has no labels: the check of their range needs values, which fake tensors do not have.
    """

    model: UNet
    mode: FakeTensorMode
    experiment: Experiment


def fake_network(experiment: Experiment) -> FakeNetwork:
    """Return an experiment's network without data, without gradients; an estimate looks at the same one several times."""
    model = dataclasses.replace(experiment.model, class_conditional=False, label_dropout=0.0)
    # The network does not depend on the samplers, and their guidance may need the label that is left out.
    evaluation = dataclasses.replace(experiment.evaluation, sampling=SamplingConfig(), scoring_sampling=SamplingConfig())
    return _build(dataclasses.replace(experiment, model=model, evaluation=evaluation))


@functools.lru_cache(maxsize=1)
def _build(experiment: Experiment) -> FakeNetwork:
    with FakeTensorMode() as mode:
        return FakeNetwork(make_model(experiment), mode, experiment)

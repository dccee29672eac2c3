"""One training step on the card beside the same step on the processor: loss and gradient in float32, without TF32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Measured, Run
from torch import Tensor
from training_steps import network_experiment, our_trainer

from training.config.experiment import Experiment

BATCH = 4


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    experiment = network_experiment("cifar10", run, batch=BATCH)
    here, there = (loss_and_gradients(experiment, device) for device in (torch.device("cpu"), run.device))
    yield "loss", Measured(value=parts_per_million(there.pop("loss"), here.pop("loss")), note=f"batch {experiment.optim.global_batch_size}")
    each = {name: parts_per_million(there[name], gradient) for name, gradient in here.items()}
    worst = max(each, key=lambda name: each[name])
    whole = parts_per_million(_joined(there), _joined(here))
    yield "gradient", Measured(value=whole, note=f"{worst} alone {each[worst]:.3g} ppm, the most of all parameters")


def loss_and_gradients(experiment: Experiment, device: torch.device) -> dict[str, Tensor]:
    """Return the "loss" of each image of the first step, [batch], and each parameter's gradient by its name; on the host."""
    trainer = our_trainer(experiment, device, precision="fp32", compiled=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.state.parameters:  # a new network's last layers are 0, and so is the gradient of what is before them
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(device))
    batch = next(iter(trainer.batches.batches(0, 1)))
    _, losses = trainer._backward(batch.images, batch.labels, batch.indices, waits=False)
    named = trainer.state.model.named_parameters()
    return {"loss": losses.cpu()} | {name: parameter.grad.cpu() for name, parameter in named if parameter.grad is not None}


def parts_per_million(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference, in millionths of that of `expected`."""
    return 1e6 * float((found.double() - expected.double()).norm() / expected.double().norm())


def _joined(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])

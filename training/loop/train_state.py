"""The state that training changes: weights, their averages, the optimiser's moments, and the loss history of the sampler of t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training.config.experiment import Experiment, Resources
from training.diffusion.timesteps import make_timestep_sampler
from training.models.ema import EMA, PowerEMA, average_name, snapshot_name
from training.models.unet import initial_model


def learning_rate_at(step: int, learning_rate: float, lr_anneal_steps: int) -> float:
    """Return the rate of the update after `step`: constant, or linear to 0 over `lr_anneal_steps`. The first update has the full rate."""
    if lr_anneal_steps == 0:
        return learning_rate
    return learning_rate * max(0.0, 1.0 - step / lr_anneal_steps)


class TrainState:
    """An experiment's network and everything else that an update changes; the same on every rank."""

    def __init__(self, experiment: Experiment, resources: Resources, device: torch.device) -> None:
        optim = experiment.optim
        # Every rank builds the same weights, from the seed; nothing is broadcast.
        self.model = initial_model(experiment, gradient_checkpointing=resources.gradient_checkpointing)
        self.model.to(device).train()
        if resources.compile and device.type == "cuda":
            # Faster only with compile: eager CUDA GroupNorm returns NCHW.
            nn.utils.convert_conv2d_weight_memory_format(self.model, torch.channels_last)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optim.learning_rate,
            betas=optim.adam_betas,
            eps=optim.adam_eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self.ema_decays, self.ema_snapshot_stds = optim.ema_decays, optim.ema_snapshot_stds
        self.ema = EMA(self.model, optim.ema_decays)
        self.power_ema = PowerEMA(self.model, optim.ema_snapshot_stds) if optim.ema_snapshot_stds else None
        self.timestep_sampler = make_timestep_sampler(experiment.diffusion)

    def update(self, step: int, learning_rate: float, found_inf: Tensor) -> None:
        """Update the weights by their gradients, and the averages by the weights.

        Args:
            found_inf: Scalar on the device, 1 to leave the weights as they are, else 0. Only the fused optimiser reads it, not the host.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.ema.update(self.model)
        if self.power_ema is not None:
            self.power_ema.update(self.model, step + 1)

    def files(self) -> dict[str, Any]:
        """Return its files in a checkpoint, by name; the tensors are the live ones."""
        files: dict[str, Any] = {
            "model.pt": self.model.state_dict(),
            "optimizer.pt": self.optimizer.state_dict(),
            "timestep_sampler.pt": self.timestep_sampler.state_dict(),
        }
        for decay in self.ema_decays:
            files[f"{average_name(decay)}.pt"] = self.ema.state_dict(decay)
        if self.power_ema is not None:
            for std in self.ema_snapshot_stds:
                files[f"{snapshot_name(std)}.pt"] = self.power_ema.state_dict(std)
        return files

    def restore(self, read: Callable[[str], Any]) -> None:
        """Restore the files of a checkpoint, which `read` returns by name."""
        self.model.load_state_dict(read("model.pt"))
        self.optimizer.load_state_dict(read("optimizer.pt"))
        # Fused Adam walks weights and moments in memory order, which the checkpoint's compile setting chose, and load_state_dict keeps.
        for parameter, state in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.empty_like(parameter).copy_(state[name])
        self.timestep_sampler.load_state_dict(read("timestep_sampler.pt"))
        for decay in self.ema_decays:
            self.ema.load_state_dict(decay, read(f"{average_name(decay)}.pt"))
        if self.power_ema is not None:
            for std in self.ema_snapshot_stds:
                self.power_ema.load_state_dict(std, read(f"{snapshot_name(std)}.pt"))

"""What a training run logs, summed on the device and read once in a while."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import Tensor

from training.diffusion.losses import LossTerms


class Meter:
    """Sums of what is logged, kept on the device; read once per log boundary."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.consecutive = torch.zeros((), device=device)
        self._reset()
        self.restart_clock()

    def _reset(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, l_simple, l_vlb
        self.images = torch.zeros((), dtype=torch.float64, device=self.device)
        self.has_vlb = False
        self.quartile_sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.quartile_weights = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.norm_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.skipped = torch.zeros((), device=self.device)
        self.updates = 0

    def restart_clock(self) -> None:
        """Begins the time over which speed is taken."""
        self.clock = time.perf_counter()

    def add_losses(self, t: Tensor, weights: Tensor, terms: LossTerms, num_timesteps: int) -> None:
        """Adds a microbatch: its timesteps (of `num_timesteps`), their importance weights, and its terms."""
        with torch.no_grad():
            weights = weights.double()
            loss = terms.loss.detach().double()
            finite = loss.isfinite().double()  # what is skipped is counted, and stays out of the means
            columns = [loss, terms.l_simple, terms.l_vlb if terms.l_vlb is not None else torch.zeros_like(loss)]
            self.sums += torch.stack([(column.detach().double() * weights).nan_to_num(0.0, 0.0, 0.0).sum() for column in columns])
            self.has_vlb = terms.l_vlb is not None
            self.images += finite.sum()
            quartile = (4 * t) // num_timesteps
            self.quartile_sums.index_add_(0, quartile, (loss * weights).nan_to_num(0.0, 0.0, 0.0))
            self.quartile_weights.index_add_(0, quartile, weights * finite)

    def add_gradient(self, norm: Tensor, found_inf: Tensor) -> None:
        """Adds an update: its gradient's norm, and 1 where it was skipped, else 0; both scalars on the device."""
        self.updates += 1
        self.norm_sum += torch.where(found_inf > 0, torch.zeros_like(norm), norm).double()
        self.skipped += found_inf
        self.consecutive = (self.consecutive + 1) * found_inf

    def reduce(self, world_size: int) -> dict[str, float]:
        """Means over the images of all ranks since the last call; the one place that waits for the device."""
        packed = torch.cat([self.sums, self.images.reshape(1), self.quartile_sums, self.quartile_weights])
        if world_size > 1:
            dist.all_reduce(packed)
        values = packed.tolist()
        loss, l_simple, l_vlb = values[:3]
        count = max(values[3], 1.0)
        used = max(self.updates - float(self.skipped), 1.0)
        metrics = {
            "loss": loss / count,
            "l_simple": l_simple / count,
            "grad_norm": float(self.norm_sum) / used,
            "skipped": float(self.skipped),
            "consecutive_skips": float(self.consecutive),
            "updates": float(self.updates),
            "seconds": time.perf_counter() - self.clock,
        }
        if self.has_vlb:
            metrics["l_vlb"] = l_vlb / count
        for quartile in range(4):
            if values[8 + quartile] > 0:
                metrics[f"loss_q{quartile}"] = values[4 + quartile] / values[8 + quartile]
        self._reset()
        self.restart_clock()
        return metrics

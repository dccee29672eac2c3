"""Metrics of a training run, summed on the device and read at log boundaries."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.diffusion.losses import LossTerms


class Meter:
    """Sums of the metrics on the device, read once per log boundary."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.consecutive = torch.zeros((), device=device)
        self._reset()
        self.restart_clock()

    def _reset(self) -> None:
        # This rank's sums in one tensor: loss, l_simple, l_vlb; images; sums and weights of the quartiles of t.
        self.rank_sums = torch.zeros(12, dtype=torch.float64, device=self.device)
        self.sums, self.images, self.quartile_sums, self.quartile_weights = self.rank_sums.split([3, 1, 4, 4])  # type: ignore[no-untyped-call]
        self.has_vlb = False
        # The same on every rank.
        self.norm_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.skipped = torch.zeros((), device=self.device)
        self.longest = self.consecutive.clone()  # a run of skipped updates may go on from before the last call
        self.updates = 0
        self.seconds_before = 0.0

    def restart_clock(self) -> None:
        """Restart the time over which speed is measured; the seconds of a resumed run before its interruption are added."""
        self.clock = time.perf_counter()

    def state(self, world_size: int) -> dict[str, Any]:
        """Return the sums of all ranks since the last log line, as numbers that JSON preserves exactly; a collective operation."""
        all_sums = [self.rank_sums]
        if world_size > 1:
            all_sums = [torch.empty_like(self.rank_sums) for _ in range(world_size)]
            dist.all_gather(all_sums, self.rank_sums)
        return {
            "shares": [sums.tolist() for sums in all_sums],
            "has_vlb": self.has_vlb,
            "norm_sum": float(self.norm_sum),
            "skipped": float(self.skipped),
            "consecutive": float(self.consecutive),
            "updates": self.updates,
            "seconds": self.seconds_before + time.perf_counter() - self.clock,
        }

    def load_state(self, state: Mapping[str, Any], rank: int, world_size: int) -> None:
        """Restore a result of `state`; exactly, if the number of workers is the same."""
        all_sums = torch.tensor(state["shares"], dtype=torch.float64)
        if len(all_sums) != world_size:
            all_sums = torch.cat([all_sums.sum(0, keepdim=True), all_sums.new_zeros(world_size - 1, all_sums.shape[1])])
        self.rank_sums.copy_(all_sums[rank])
        self.has_vlb = state["has_vlb"]
        self.norm_sum.fill_(state["norm_sum"])
        self.skipped.fill_(state["skipped"])
        self.consecutive.fill_(state["consecutive"])
        self.longest.fill_(state["consecutive"])  # a run of skips that ended before the interruption is forgotten
        self.updates = state["updates"]
        self.seconds_before = state["seconds"]

    def add_losses(self, t: Tensor, weights: Tensor, terms: LossTerms, num_timesteps: int) -> None:
        """Add a microbatch: its timesteps (of `num_timesteps`), their importance weights, and its terms."""
        with torch.no_grad():
            columns = [terms.loss, terms.l_simple, terms.l_vlb if terms.l_vlb is not None else torch.zeros_like(terms.loss)]
            values = torch.stack([column.detach().double() for column in columns])
            finite = values.isfinite().all(0)  # an image with a term that is not finite is left out of every mean
            weights = torch.where(finite, weights.double(), 0.0)
            values = torch.where(finite, values, 0.0) * weights
            self.sums += torch.stack([column.sum() for column in values])
            self.has_vlb = terms.l_vlb is not None
            self.images += finite.sum()
            quartile = (4 * t) // num_timesteps
            self.quartile_sums.index_add_(0, quartile, values[0])
            self.quartile_weights.index_add_(0, quartile, weights)

    def add_gradient(self, norm: Tensor, found_inf: Tensor) -> None:
        """Add an update: its gradient's norm, and 1 if it was skipped, else 0; both scalars on the device."""
        self.updates += 1
        self.norm_sum += torch.where(found_inf > 0, torch.zeros_like(norm), norm).double()
        self.skipped += found_inf
        self.consecutive = (self.consecutive + 1) * found_inf
        self.longest = torch.maximum(self.longest, self.consecutive)

    def reduce(self, world_size: int) -> dict[str, float]:
        """Return the means since the last call; the one place where the host waits for the device.

        The means over images are NaN if no image of any rank has a finite loss, and the mean gradient norm if every update was skipped.
        """
        if world_size > 1:
            dist.all_reduce(self.rank_sums)
        loss, l_simple, l_vlb, images, *quartiles = self.rank_sums.tolist()
        count = images or math.nan
        used = self.updates - float(self.skipped) or math.nan
        metrics = {
            "loss": loss / count,
            "l_simple": l_simple / count,
            "grad_norm": float(self.norm_sum) / used,
            "skipped": float(self.skipped),
            "consecutive_skips": float(self.consecutive),
            "longest_skips": float(self.longest),
            "updates": float(self.updates),
            "seconds": self.seconds_before + time.perf_counter() - self.clock,
        }
        if self.has_vlb:
            metrics["l_vlb"] = l_vlb / count
        for quartile, (total, weight) in enumerate(zip(quartiles[:4], quartiles[4:], strict=True)):
            if weight > 0:
                metrics[f"loss_q{quartile}"] = total / weight
        self._reset()
        self.restart_clock()
        return metrics

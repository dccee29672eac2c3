"""Memory and floating point use of a training process."""

from __future__ import annotations

import math
import time

import psutil
import torch

from training.config.experiment import Experiment, Resources
from training.console import format_rate, format_remaining, say
from training.cost.accelerators import CARDS
from training.cost.estimate import TRAINING_PASSES, count_macs


class Gauge:
    """Memory and model FLOPs utilisation (MFU) of a training process.

    MFU is the network's floating point operations per second (forward and backward, without recomputation), divided by the dense bf16
    peak of all workers' cards. There is no MFU where the peak is not known, as on a CPU.
    """

    def __init__(self, experiment: Experiment, resources: Resources, world_size: int) -> None:
        self._on_gpu = resources.num_gpus_per_worker > 0  # not `is_available`: a machine with a GPU may train on its processor
        name = torch.cuda.get_device_name() if self._on_gpu else ""
        peak = next((card.peak_flops for key, card in CARDS.items() if key in name.replace("-", " ").split()), None)
        self._flops_per_image = 2 * TRAINING_PASSES * sum(count_macs(experiment).values()) if peak else 0
        self._peak = peak * world_size if peak else None

    def read(self, images_per_second: float) -> dict[str, float]:
        """Return the metrics: memory in GiB (on a GPU the most so far, on a CPU the present use), and the MFU, 0 to 1, if there is one."""
        num_bytes = torch.cuda.max_memory_allocated() if self._on_gpu else psutil.Process().memory_info().rss
        metrics = {"memory_gib": num_bytes / 2**30}
        if self._peak is not None:
            metrics["mfu"] = images_per_second * self._flops_per_image / self._peak
        return metrics


SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Prints one line every few seconds: step, loss, speed, time left."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._started: tuple[float, int] | None = None
        self._shown_at = -math.inf

    def show(self, step: int, loss: float, images_per_second: float) -> None:
        """Print the line of a step, if it is time for one."""
        now = time.monotonic()
        left = ""
        if self._started is None:
            self._started = (now, step)  # the first interval contains the warm-up; time left counts from its end
        else:
            left = format_remaining(step - self._started[1], self._num_steps - self._started[1], now - self._started[0])
        if now - self._shown_at >= SECONDS_BETWEEN_LINES or step == self._num_steps:
            self._shown_at = now
            say(f"step {step:,}/{self._num_steps:,}  loss {loss:.4f}  {format_rate(images_per_second, 1, 'images')}  {left}".rstrip())

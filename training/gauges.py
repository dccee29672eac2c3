"""How well a machine is used: memory, share of its peak, and MLflow's own system metrics."""

from __future__ import annotations

from typing import Any

import torch

from training.cards import CARDS
from training.config import Experiment
from training.cost import TRAINING_PASSES, count_macs


class Gauge:
    """Memory and model FLOPs utilisation (MFU) of a training process.

    MFU is the floating point operations of the network that the images per second amount to (forward and backward,
    recomputation not counted), over the dense bf16 peak of all workers' cards. Where the peak is not known, as on a
    CPU, there is none.
    """

    def __init__(self, experiment: Experiment, world_size: int) -> None:
        self._on_gpu = torch.cuda.is_available()
        name = torch.cuda.get_device_name() if self._on_gpu else ""
        peak = next((card.peak_flops for key, card in CARDS.items() if key in name.replace("-", " ").split()), None)
        self._flops_per_image = 2 * TRAINING_PASSES * sum(count_macs(experiment).values()) if peak else 0
        self._peak = peak * world_size if peak else None

    def read(self, images_per_second: float) -> dict[str, float]:
        """The metrics of this moment: memory in GiB, and MFU in 0 to 1 where the peak is known."""
        if self._on_gpu:
            used = {"memory_gib": torch.cuda.max_memory_allocated() / 2**30}
        else:
            import psutil

            used = {"memory_gib": psutil.Process().memory_info().rss / 2**30}
        if self._peak is not None:
            used["mfu"] = images_per_second * self._flops_per_image / self._peak
        return used


def watch_system(tracking_run_id: str) -> Any:
    """Starts MLflow's monitor of this machine (processor, memory, disk, network, GPUs); `finish()` ends it."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(tracking_run_id, sampling_interval=10, resume_logging=True)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor

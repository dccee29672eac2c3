"""How well a machine is used: memory, share of its peak, and MLflow's own system metrics."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch

from training.config.experiment import Experiment
from training.cost.accelerators import CARDS
from training.cost.estimate import TRAINING_PASSES, count_macs

_SYSTEM_SECONDS = 10.0


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


class SystemGauge:
    """The machine's processor, memory, disk, network and GPUs, by MLflow's own collectors and under its names.

    MLflow's thread that logs them ends when the server is away once, and a second one counts its steps from 0 again.
    """

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._collectors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]  # type: ignore[no-untyped-call]
        with contextlib.suppress(Exception):  # whatever says that there is no GPU
            self._collectors.append(GPUMonitor())  # type: ignore[no-untyped-call]
        self._collect()  # the processor's use is counted from here
        self._asked_at = time.monotonic()

    def read(self) -> dict[str, float]:
        """The values of now; none where less than ten seconds have passed, as some of them take milliseconds."""
        if time.monotonic() - self._asked_at < _SYSTEM_SECONDS:
            return {}
        self._asked_at = time.monotonic()
        return self._collect()

    def _collect(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for collector in self._collectors:
            collector.clear_metrics()
            collector.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in collector.aggregate_metrics().items()}
        return values

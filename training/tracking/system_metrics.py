"""The machine's processor, memory, disk, network and GPUs, by MLflow's own collectors and under its names."""

from __future__ import annotations

import contextlib
import time
from typing import Any

_SECONDS_BETWEEN_READINGS = 10.0  # some of the collectors take milliseconds


class SystemMetrics:
    """MLflow's collectors of system metrics.

    MLflow's own logging thread is not used: it ends at the first failed request, and a new one counts its steps from 0 again.
    """

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._collectors: list[Any] = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            with contextlib.suppress(Exception):  # raised, in one form or another, where there is no network or no GPU
                self._collectors.append(kind())
        self._collect()  # the processor's use is counted from here
        self._read_at = time.monotonic()

    def read(self) -> dict[str, float]:
        """Return the current values by MLflow's names; nothing within ten seconds of the last ones."""
        if time.monotonic() - self._read_at < _SECONDS_BETWEEN_READINGS:
            return {}
        self._read_at = time.monotonic()
        return self._collect()

    def _collect(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for collector in self._collectors:
            with contextlib.suppress(Exception):  # training goes on without what can't be read
                collector.clear_metrics()
                collector.collect_metrics()
                values |= {f"system/{name}": float(value) for name, value in collector.aggregate_metrics().items()}
        return values

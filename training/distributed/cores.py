"""The processor cores that this process may use: in a container fewer than the machine has."""

from __future__ import annotations

import os
import sys


def available_cores() -> int:
    """Return the number of cores, at least 1: those of the machine, of the process's affinity mask, and of its container's limit.

    `os.cpu_count` and torch count the machine's. A pod of 2 cores on a machine of 64 would compute with 64 threads, which wait for each
    other whenever the kernel halts the pod for having used its share.
    """
    from joblib import cpu_count  # it reads the limits of cgroups, both versions

    return int(cpu_count())


def limit_threads() -> None:
    """Let torch compute with no more threads than there are cores for it, in this process and in those that it starts."""
    cores = available_cores()
    if cores < (os.cpu_count() or 1) and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(cores)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(cores)

"""Which rank hangs: each one writes down the step that it begins, where the others can read it.

A collective that times out says only that somebody did not come. The one whose step is behind is the one.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but its stubs do not say so

_PATIENCE = timedelta(seconds=10)


class Heartbeats:
    """The last step that each rank began, in a store that lives in rank 0; made by all ranks together."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        port: list[int] = [0]
        if rank == 0:
            self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
            port = [self._store.port]
        dist.broadcast_object_list(port, src=0)
        if rank != 0:
            self._store = TCPStore(host, port[0], is_master=False, timeout=_PATIENCE)
        self.beat(-1)

    def beat(self, step: int) -> None:
        """Notes that this rank begins a step. Tens of microseconds; a store that is gone is no reason to stop."""
        try:
            self._store.set(str(self._rank), str(step))
        except RuntimeError:
            return

    def verdict(self) -> str:
        """One clause that names who is behind."""
        try:
            steps = [int(self._store.get(str(rank))) for rank in range(self._world_size)]
        except RuntimeError:
            return "rank 0 does not answer"
        behind = [rank for rank, step in enumerate(steps) if step < max(steps)]
        if not behind:
            return f"all ranks began step {max(steps):,} and one of them does not finish it"
        named = ", ".join(f"rank {rank} stopped answering in step {steps[rank]:,}" for rank in behind)
        return f"{named} (the others began step {max(steps):,})"

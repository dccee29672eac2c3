"""Heartbeats, which name a rank that hangs: each rank publishes its progress, and the others can read it.

A collective that times out does not name the rank that it waited for. Heartbeats show which one it is: a process that has stopped, or one
that has made less progress than the others.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but its stubs do not say so

from training.console import say

_STORE_TIMEOUT = timedelta(seconds=10)
_PULSE_SECONDS = 1.0
_OBSERVATION_SECONDS = 4.0


class Heartbeats:
    """Progress and pulse of each rank, in a store on rank 0; all ranks create it together.

    Progress is the step, and whether the rank computes or waits for the others in it. The pulse is a counter that a thread
    increments. It stands still where the process is stopped or its machine is gone.
    """

    def __init__(self, rank: int, world_size: int, *, alarm_seconds: float | None = None) -> None:
        """Open the store.

        Args:
            alarm_seconds: Report the stragglers once this rank has made no progress for this time. For NCCL, whose time-out ends the
                process before it can report; None leaves the report to the caller of `describe_stragglers`.
        """
        self._rank, self._world_size = rank, world_size
        self._alarm_seconds = alarm_seconds
        self._progress: tuple[int, float] | None = None
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        port: list[int] = [0]
        if rank == 0:
            self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_STORE_TIMEOUT)
            port = [self._store.port]
        dist.broadcast_object_list(port, src=0)
        if rank != 0:
            self._store = TCPStore(host, port[0], is_master=False, timeout=_STORE_TIMEOUT)
        self.beat(-1, waiting=False)
        self._write("pulse", 0)
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._start(self._pulse)
        # Python ends its threads at any point; if one is in the store's C++ code, the process aborts (SIGABRT).
        atexit.register(self.end)

    def beat(self, step: int, *, waiting: bool) -> None:
        """Publish this rank's progress; takes tens of microseconds. `waiting` is True while it waits for the other ranks."""
        self._progress = 2 * step + waiting, time.monotonic()
        self._write("progress", self._progress[0])

    def waited_seconds(self) -> float:
        """Return the seconds for which this rank has waited for the others; 0 while it is at work."""
        progress, since = self._progress or (0, 0.0)
        return time.monotonic() - since if progress % 2 else 0.0

    def end(self) -> None:
        """Stop the threads and wait for their end."""
        self._ended.set()
        for thread in self._threads:
            thread.join(_STORE_TIMEOUT.total_seconds())
        atexit.unregister(self.end)

    def describe_stragglers(self) -> str:
        """Return one clause that names the ranks that are behind; takes a few seconds."""
        try:
            before = self._read("pulse")
            time.sleep(_OBSERVATION_SECONDS)
            silent = [rank for rank, (a, b) in enumerate(zip(before, self._read("pulse"), strict=True)) if a == b]
            progress = self._read("progress")
        except RuntimeError:
            return "rank 0 does not answer"
        latest = max(progress)
        behind = silent or [rank for rank, value in enumerate(progress) if value < latest]
        if not behind and latest % 2:
            return f"all ranks wait for each other {_place(latest)}; the network between them is the likely cause"
        if not behind:
            return f"no rank waits for another: all are at work {_place(latest)}"
        state = "stands still" if silent else "is behind,"
        return ", ".join(f"rank {rank} {state} {_place(progress[rank])}" for rank in behind)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="iddpm-pulse", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _pulse(self) -> None:
        count = 0
        reported = -1
        while not self._ended.wait(_PULSE_SECONDS):
            count += 1
            self._write("pulse", count)
            progress, since = self._progress or (-1, 0.0)
            is_new = progress >= 0 and progress != reported  # before the first step a rank restores a checkpoint, for minutes
            if self._alarm_seconds is not None and is_new and time.monotonic() - since > self._alarm_seconds:
                reported = progress
                self._start(functools.partial(self._report, self._alarm_seconds))  # in a thread, so that the pulse continues

    def _report(self, seconds: float) -> None:
        say(f"{self.describe_stragglers()}; rank {self._rank} has made no progress for {seconds:.0f} s")

    def _write(self, key: str, value: int) -> None:
        try:
            self._store.set(f"{key}/{self._rank}", str(value))
        except RuntimeError:  # training continues without the store
            return

    def _read(self, key: str) -> list[int]:
        return [int(self._store.get(f"{key}/{rank}")) for rank in range(self._world_size)]


def _place(progress: int) -> str:
    return f"in step {progress // 2:,}" if progress >= 0 else "before its first step"

"""The waits before anything happens: the command line, the first update, the local services."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from measuring import Measured, Run, of, seconds_of

from pipelines.services import services

_IDDPM = [sys.executable, "-m", "pipelines.cli.main"]


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group; by the clock, each command in a process of its own."""
    command([*_IDDPM, "--help"])
    yield "help", of([command([*_IDDPM, "--help"]) for _ in range(run.rounds(7))])
    bare = [sys.executable, "-m", "training.launch.torchrun", "--preset", "digits-hybrid-cosine", "--warmup", "0", "--steps", "1"]
    yield "first-step", of([command(bare) for _ in range(run.rounds(3))])
    fresh, again, running = [], [], []
    memory = 0
    for _ in range(run.rounds(2)):
        home = Path(tempfile.mkdtemp(prefix="iddpm-bench-"))
        environment = {"IDDPM_HOME": str(home)}
        try:
            fresh.append(command([*_IDDPM, "up"], environment))
            running.append(command([*_IDDPM, "up"], environment))
            memory = sum(service.memory_bytes for service in services.status(home).services)
            services.down(home)
            again.append(command([*_IDDPM, "up"], environment))
        finally:
            services.down(home)
            shutil.rmtree(home, ignore_errors=True)
    yield "services-fresh", of(fresh)
    yield "services-again", of(again)
    yield "services-running", of(running)
    yield "services-memory", Measured(value=memory / 1e6)


def command(arguments: list[str], environment: Mapping[str, str] | None = None) -> float:
    """Seconds of a command from its start to its end; it must succeed."""

    def call() -> None:
        done = subprocess.run(arguments, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise RuntimeError(f"{' '.join(arguments[1:])} ended with {done.returncode}: {said}")

    return seconds_of(call, clock="wall")

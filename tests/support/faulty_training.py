"""A training with two Ray workers in a process of its own, for tests that disturb it, and the undisturbed one that they compare it with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from training import storage
from training.checkpoints import checkpoint
from training.config.presets import preset
from training.data.splits import prepare_experiment
from training.tracking.runs import attach

_TRAIN = Path(__file__).with_name("train_driver.py")
_TRAIN_RANK = Path(__file__).with_name("train_rank.py")
PRESET = "digits-hybrid-cosine"
NUM_STEPS, FEW_STEPS, INTERVAL = 240, 100, 20
OVERRIDES = [
    f"optim.num_steps={NUM_STEPS}",
    f"optim.checkpoint_interval={INTERVAL}",
    "optim.global_batch_size=16",
    "diffusion.timestep_sampler=loss_second_moment",
    "diffusion.num_timesteps=20",
    "evaluation.sampling.spacing=",
    "evaluation.scoring_sampling.spacing=5",
    "evaluation.scoring_num_samples=40",
    "evaluation.patience=0",
    "evaluation.likelihood_steps=5",
    "model.dropout=0.1",
]


_RUNNING: list[Run] = []


def end_all() -> None:
    """Kill the trainings that a failed test has left."""
    while _RUNNING:
        _RUNNING.pop().end()


class Run:
    """A training step in its own process group, read line by line."""

    def __init__(
        self,
        root: str,
        data_uri: str,
        resources: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        ray_address: str = "local",
        overrides: Sequence[str] = (),
        reference_uri: str = "",
    ) -> None:
        arguments = {
            "experiment": preset(PRESET, [*OVERRIDES, *overrides]).to_json(),
            "data_uri": data_uri,
            "reference_uri": reference_uri,
            "storage_root_uri": root,
            # Of its own: in one experiment all runs of one key are one run, in which the first values stay.
            "tracking_experiment": f"faults {root.rpartition('/')[2]}",
            "resources": {"num_workers": 2, "num_threads": 1, **(resources or {})},
            "ray_address": ray_address,
        }
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(_TRAIN), json.dumps(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        _RUNNING.append(self)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, ""):
            if "PlacementGroupCleaner" not in line:
                self.lines.append(line)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait(self, timeout: float = 900) -> int:
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def end(self) -> None:
        """Kill the processes that a failed test has left."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                process.kill()

    def workers(self) -> list[psutil.Process]:
        """The two training processes, in the order of their start."""
        return workers_below(self.process.pid)

    @contextlib.contextmanager
    def slowed(self) -> Iterator[None]:
        """Let the workers run for a fifth of the time, so that the training does not end before the test has looked."""
        over = threading.Event()

        def slow() -> None:
            while not over.is_set():
                workers = self.workers() if self.process.poll() is None else []
                for moment, seconds in (("suspend", 0.8), ("resume", 0.2)):
                    for worker in workers:
                        with contextlib.suppress(psutil.NoSuchProcess):
                            getattr(worker, moment)()
                    time.sleep(seconds)

        thread = threading.Thread(target=slow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def until(self, condition: Callable[[], bool], timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.text[-3000:]
            assert time.monotonic() < deadline, self.text[-3000:]
            time.sleep(0.2)


def workers_below(pid: int) -> list[psutil.Process]:
    """The training processes among all that a process has started, in the order of their start."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one of Ray's that ended since it was listed
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append((process.create_time(), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def prepare_data(root: str) -> str:
    """Prepare the digits without their test images; return their URI."""
    return prepare_experiment(
        preset(PRESET), "", storage_root_uri=root, source="", source_options={"labels": "auto", "num_test": 0}, options={}
    )


def train_undisturbed(folder: Path, data_uri: str, num_steps: int) -> dict[str, Any]:
    """Train with two processes and without Ray, S3 and MLflow, which take longer to start than the training takes.

    Returns:
        "run_uri" with a checkpoint at every interval, and the logged "losses" and "norms", as `outcome` returns them.
    """
    experiment = preset(PRESET, [*OVERRIDES, f"optim.num_steps={num_steps}"]).to_json()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(_TRAIN_RANK), experiment, data_uri, str(folder)]
    ranks = [subprocess.Popen(command, env={**env, "RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(600) for rank in ranks] == [0, 0]
    logged = {int(step): metrics for step, metrics in json.loads((folder / "logged.json").read_text()).items()}
    return {
        "run_uri": str(folder),
        "losses": [(step, metrics["loss"]) for step, metrics in logged.items()],
        "norms": [(step, metrics["grad_norm"]) for step, metrics in logged.items()],
    }


def run_uri_of(root: str) -> str:
    found = (re.fullmatch(r"(.*/runs/[^/]+)/experiment\.json", uri) for uri in storage.list_uris(f"{root}/runs"))  # not a checkpoint's
    return next(match[1] for match in found if match)


def latest_step(root: str) -> int:
    """The latest complete checkpoint, 0 where there is none."""
    found = (re.search(r"/checkpoints/step=(\d{8})/complete\.json$", uri) for uri in storage.list_uris(f"{root}/runs"))
    return max((int(match[1]) for match in found if match), default=0)


def has_checkpoint(root: str, step: int = INTERVAL) -> Callable[[], bool]:
    return lambda: latest_step(root) >= step


def has_later_checkpoint(root: str) -> Callable[[], bool]:
    return has_checkpoint(root, latest_step(root) + 1)


def tensors_of(run_uri: str, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint that training goes on from."""
    uri = checkpoint.checkpoint_uri(run_uri, step)
    return {
        f"{name}{path}": value
        for name in ("model", "ema_0.995", "optimizer", "timestep_sampler")
        for path, value in tensors(checkpoint.load(uri, f"{name}.pt"))
    }


def outcome(run: Run) -> dict[str, Any]:
    """The result of a finished run, and its logged metrics."""
    run_uri = run.lines[-1].strip()
    result = storage.read_json(f"{run_uri}/result.json")
    tracked = attach(result["tracking_run_id"])
    return {
        "run_uri": run_uri,
        "result": result,
        "losses": tracked.metric_history("train/loss"),
        "norms": tracked.metric_history("train/grad_norm"),
        "status": tracked._client.get_run(result["tracking_run_id"]).info.status,
    }


def status_of(run: Run) -> str:
    """The run's status in MLflow."""
    tracking_run_id = re.findall(r"#/experiments/\d+/runs/(\w+)", run.text)[0]
    return str(attach(tracking_run_id)._client.get_run(tracking_run_id).info.status)


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from tensors(item, f"{path}/{key}")
    if isinstance(value, torch.Tensor):
        yield path, value


def assert_the_same(run: Run, undisturbed: dict[str, Any], num_steps: int = NUM_STEPS) -> None:
    found = outcome(run)
    assert found["status"] == "FINISHED"
    assert found["losses"] == undisturbed["losses"][: num_steps // INTERVAL]
    assert found["norms"] == undisturbed["norms"][: num_steps // INTERVAL]
    assert [step for step, _ in found["losses"]] == list(range(INTERVAL, num_steps + 1, INTERVAL))
    left, right = tensors_of(undisturbed["run_uri"], num_steps), tensors_of(found["run_uri"], num_steps)
    assert left.keys() == right.keys()
    assert [path for path in left if not torch.equal(left[path], right[path])] == []


def rank_zero(run: Run) -> int:
    """The process of rank 0: it alone says how far the training is."""
    found = re.search(r"RayTrainWorker pid=(\d+)[^)]*\) (?:iddpm\| )?step ", run.text)
    assert found, run.text[-3000:]
    return int(found[1])

"""Faults that end a training run early, for real: two Ray workers, S3 and MLflow on loopback.

A run with faults is compared with an undisturbed one: the same weights to the bit, the same logged steps, once each. A start of Ray and of
its workers takes longer than the training, so one run goes through most of the faults.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from components.steps.reference import reference_for
from evaluation.monitoring.checkpoint_scorer import read_history
from pipelines.services import daemons
from pipelines.services import services as local_services
from training import storage
from training.checkpoints import checkpoint
from training.config.presets import preset
from training.data.splits import prepare_experiment
from training.tracking.runs import attach

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRIVER = Path(__file__).with_name("train_driver.py")
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


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
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
            [sys.executable, str(DRIVER), json.dumps(arguments)],
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

    def until(self, condition: Callable[[], bool], timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.text[-3000:]
            assert time.monotonic() < deadline, self.text[-3000:]
            time.sleep(0.2)


def workers_below(pid: int) -> list[psutil.Process]:
    """The training processes among all that a process has started, in the order of their start."""
    found = [p for p in psutil.Process(pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    return sorted(found, key=lambda p: p.create_time())


@pytest.fixture(scope="module")
def data_uri(services: local_services.Services) -> str:
    return prepare_experiment(
        preset(PRESET),
        "",
        storage_root_uri=f"{services.bucket_uri}/faults",
        source="",
        source_options={"labels": "auto", "num_test": 0},
        options={},
    )


@pytest.fixture(scope="module")
def reference_uri(services: local_services.Services, data_uri: str) -> str:
    return reference_for(preset(PRESET, OVERRIDES), data_uri, f"{services.bucket_uri}/faults")


@pytest.fixture(scope="module")
def undisturbed_root(services: local_services.Services) -> str:
    return f"{services.bucket_uri}/faults/undisturbed"


@pytest.fixture(scope="module")
def undisturbed(undisturbed_root: str, data_uri: str) -> dict[str, Any]:
    run = Run(undisturbed_root, data_uri)
    assert run.wait() == 0, run.text[-3000:]
    return outcome(run)


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


@pytest.mark.timeout(1800)
def test_a_run_through_most_faults_ends_as_if_nothing_had_happened(
    bucket_uri: str, data_uri: str, reference_uri: str, undisturbed: dict[str, Any], services: local_services.Services
) -> None:
    # A store that hangs and then refuses is waited for.
    run = Run(bucket_uri, data_uri, reference_uri=reference_uri)
    run.until(has_checkpoint(bucket_uri))
    store = next(service for service in local_services.status(services.home).services if service.name == "seaweedfs")
    assert store.pid is not None
    os.kill(store.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(store.pid, signal.SIGKILL)
    run.until(lambda: "trying again" in run.text)
    time.sleep(5)
    assert run.process.poll() is None, run.text[-3000:]
    local_services.up(services.home)
    run.until(has_later_checkpoint(bucket_uri))
    assert "resuming" not in run.text, "the workers waited and were not started again"

    # A worker is killed while MLflow is away.
    away = daemons.find(services.home, "mlflow")
    for process in away:
        process.suspend()
    try:
        run.workers()[0].kill()
        run.until(lambda: "resuming from step" in run.text)
        run.until(has_later_checkpoint(bucket_uri))
    finally:
        for process in away:
            process.resume()

    # SIGTERM saves a checkpoint at any step, also between two lines of the log.
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(200) == 143, run.text[-3000:]
    assert f"stopped on request: saved at step {latest_step(bucket_uri)}" in run.text
    run_uri = run_uri_of(bucket_uri)
    assert not storage.exists(f"{run_uri}/result.json")
    step = latest_step(bucket_uri)
    state = checkpoint.load(checkpoint.checkpoint_uri(run_uri, step), "state.json")
    assert ("unlogged" in state) == (step % INTERVAL > 0)
    assert status_of(run) == "KILLED"

    # The same command resumes. A rank that hangs is named; a driver that is killed leaves nothing running.
    run = Run(bucket_uri, data_uri, {"collective_timeout_seconds": 8}, reference_uri=reference_uri)
    run.until(has_later_checkpoint(bucket_uri))
    assert f"resuming from step {step}" in run.text
    stopped = next(p for p in run.workers() if p.pid != rank_zero(run))
    stopped.send_signal(signal.SIGSTOP)
    try:
        run.until(lambda: run.text.count("resuming from step") == 2)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            stopped.kill()
    assert re.search(r"rank 1 stands still in step \d+; rank 0 waited 8 s", run.text), run.text[-3000:]
    family = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    run.wait()

    # A damaged checkpoint is left behind.
    *_, before, latest = checkpoint.steps(run_uri)
    uri = f"{checkpoint.checkpoint_uri(run_uri, latest)}/optimizer.pt"
    storage.write_bytes(uri, storage.read_bytes(uri)[:-1])
    run = Run(bucket_uri, data_uri, reference_uri=reference_uri)
    assert run.wait() == 0, run.text[-3000:]
    assert f"resuming from step {before}" in run.text
    assert_the_same(run, undisturbed)
    scored = [score["step"] for score in read_history(run_uri)]
    assert scored == list(range(INTERVAL, NUM_STEPS + 1, INTERVAL)), "as of a run without interruption"
    assert not psutil.wait_procs(family, timeout=180)[1]  # Ray's agents take their time to notice


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGTERM, {143}), (signal.SIGINT, {143, 130, -signal.SIGINT})])
def test_signals_before_anything_is_trained_end_the_run_as_killed(
    bucket_uri: str, data_uri: str, number: signal.Signals, codes: set[int]
) -> None:
    run = Run(bucket_uri, data_uri)
    run.until(lambda: "followed at" in run.text)
    while run.process.poll() is None:
        run.process.send_signal(number)
        time.sleep(0.3)
    assert run.wait(200) in codes, run.text[-3000:]
    assert status_of(run) == "KILLED", run.text[-3000:]


def rank_zero(run: Run) -> int:
    """The process of rank 0: it alone says how far the training is."""
    found = re.search(r"RayTrainWorker pid=(\d+)[^)]*\) (?:iddpm\| )?step ", run.text)
    assert found, run.text[-3000:]
    return int(found[1])


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A Ray cluster of two machines with room for one worker each, and the second of them."""
    from ray.cluster_utils import Cluster

    # Ray reads its token once in a process, so an earlier test's session may have chosen it for us.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray takes 127.0.0.1 for "whatever address this machine has"; 127.0.0.2 is as much the loopback.
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")  # a lost machine is noticed after 5 s
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.2"})
    second = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    yield cluster, second
    cluster.shutdown()


def test_a_range_of_workers_outlives_the_loss_of_a_machine(
    bucket_uri: str, data_uri: str, undisturbed: dict[str, Any], two_machines: tuple[Any, Any]
) -> None:
    cluster, second = two_machines
    seconds = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}  # for which Ray waits for the lost machine's worker too
    few = [f"optim.num_steps={FEW_STEPS}"]
    run = Run(bucket_uri, data_uri, {"num_workers": 2, "min_workers": 1}, env=seconds, ray_address=cluster.address, overrides=few)
    run.until(has_checkpoint(bucket_uri))
    assert len(workers_below(os.getpid())) == 2
    cluster.remove_node(second, allow_graceful=False)
    assert run.wait() == 0, run.text[-3000:]
    assert "resuming from step" in run.text
    # Another number of workers rounds the losses otherwise, but logs each step once.
    losses, expected = outcome(run)["losses"], undisturbed["losses"][: FEW_STEPS // INTERVAL]
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in expected], rel=5e-3)


@pytest.mark.parametrize("small_disk", [24], indirect=True)
def test_a_disk_that_fills_up_is_named_and_with_room_again_the_run_ends_as_if_nothing_had_happened(
    bucket_uri: str, data_uri: str, undisturbed: dict[str, Any], small_disk: Path, tmp_path: Path
) -> None:
    resources = {"cache_dir": str(tmp_path / "cache"), "resident_data": True}
    run = Run(bucket_uri, data_uri, resources, env={"TMPDIR": str(small_disk)}, overrides=[f"optim.num_steps={FEW_STEPS}"])
    run.until(has_checkpoint(bucket_uri))
    message = rf"{small_disk}/\S+: the disk is full; free some space there, or point TMPDIR elsewhere"
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while run.process.poll() is None and not re.search(message, run.text):  # takes also what the run gives back
            try:
                ballast.write(bytes(65536))
            except OSError:
                time.sleep(0.01)
    assert run.process.poll() is None, run.text[-3000:]
    assert [path for path in small_disk.rglob("*.pt") if path.is_file()] == []
    assert any((tmp_path / "cache").iterdir())
    (small_disk / "ballast").unlink()
    assert run.wait() == 0, run.text[-3000:]
    assert "resuming from step" in run.text
    assert_the_same(run, undisturbed, FEW_STEPS)


def test_a_run_that_diverges_for_good_ends_with_what_was_tried_and_a_failed_run(bucket_uri: str, data_uri: str) -> None:
    run = Run(bucket_uri, data_uri, overrides=["optim.learning_rate=1e30"])
    assert run.wait() == 1, run.text[-3000:]
    assert run.text.count("going back to the last good checkpoint (2 of 2)") == 1, "other workers would fail in the same way"
    assert "the gradient was not finite for 10 updates in a row" in run.lines[-1]
    assert "did not help" in run.lines[-1]
    assert not storage.exists(f"{run_uri_of(bucket_uri)}/result.json")
    assert status_of(run) == "FAILED"


def test_a_finished_run_is_found_and_not_trained_again(undisturbed: dict[str, Any], undisturbed_root: str, data_uri: str) -> None:
    again = Run(undisturbed_root, data_uri)
    assert again.wait(200) == 0
    assert f"already trained to step {NUM_STEPS}" in again.text
    assert outcome(again)["result"] == undisturbed["result"]

"""Faults that need another set-up than those of `test_training_faults`: other signals, machines, disks and learning rates."""

from __future__ import annotations

import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_training import (
    FEW_STEPS,
    Run,
    assert_the_same,
    has_checkpoint,
    outcome,
    run_uri_of,
    status_of,
    train_undisturbed,
    workers_below,
)

from training import storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def undisturbed(data_uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train_undisturbed(tmp_path_factory.mktemp("undisturbed"), data_uri, FEW_STEPS)


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
    # Another number of workers rounds the losses otherwise, but logs each step once. In 24 updates that is up to 2e-3 (test_loop.py), and
    # it grows with the root of their number: 4e-3 in 100.
    losses, expected = outcome(run)["losses"], undisturbed["losses"]
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

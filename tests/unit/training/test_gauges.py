"""Memory and MFU of a training; system metrics by MLflow's collectors; heartbeats that name the rank that hangs."""

from __future__ import annotations

import queue
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from training.config.experiment import Resources
from training.config.presets import preset
from training.distributed import heartbeats as heartbeat
from training.distributed.heartbeats import Heartbeats
from training.loop.gauges import Gauge
from training.tracking import system_metrics
from training.tracking.system_metrics import SystemMetrics


def test_the_machine_is_measured_by_mlflows_collectors_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = SystemMetrics()
    assert metrics.read() == {}, "ten seconds have not passed"
    monkeypatch.setattr(system_metrics, "_SECONDS_BETWEEN_READINGS", 0.0)
    values = metrics.read()
    assert values.keys() >= {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes", "system/disk_usage_percentage"}
    assert all(isinstance(value, float) for value in values.values())


def test_a_machine_of_which_a_part_can_not_be_read_is_measured_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.net_io_counters", lambda: None)  # as on a machine without a network interface
    metrics = SystemMetrics()
    monkeypatch.setattr(system_metrics, "_SECONDS_BETWEEN_READINGS", 0.0)
    assert {"system/disk_usage_percentage", "system/cpu_utilization_percentage"} <= metrics.read().keys()

    def fail(path: str) -> None:
        raise PermissionError

    monkeypatch.setattr("psutil.disk_usage", fail)
    values = metrics.read()
    assert "system/cpu_utilization_percentage" in values
    assert not any(name.startswith(("system/disk", "system/network")) for name in values)


def test_a_training_on_the_processor_of_a_machine_with_a_gpu_has_the_processors_memory_and_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 0)
    experiment = preset("digits-tiny-hybrid-cosine")
    on_processor = Gauge(experiment, Resources(), 1).read(900.0)
    assert on_processor.keys() == {"memory_gib"}
    assert on_processor["memory_gib"] > 0
    assert Gauge(experiment, Resources(num_gpus_per_worker=1), 1).read(900.0).keys() == {"memory_gib", "mfu"}


def test_a_rank_that_makes_no_progress_says_who_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], queue.SimpleQueue[str]()

    def wait_for_two_pulses() -> None:
        (first,) = beats._read("pulse")  # it may have read the clock before it was moved; the next one has not
        while beats._read("pulse")[0] < first + 2:
            time.sleep(0.001)

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: wait_for_two_pulses())
    monkeypatch.setattr(heartbeat, "time", clock)
    monkeypatch.setattr(heartbeat, "say", said.put)
    monkeypatch.setattr(heartbeat, "_PULSE_SECONDS", 0.01)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        beats = Heartbeats(0, 1, alarm_seconds=60.0)
        now[0] += 3600.0
        wait_for_two_pulses()
        beats.beat(3, waiting=True)
        now[0] += 59.0
        wait_for_two_pulses()
        assert len(beats._threads) == 1, "before the first step, and before the time is over, no report begins"
        now[0] += 2.0
        assert "all ranks wait for each other in step 3" in said.get(timeout=300)
        now[0] += 3600.0
        wait_for_two_pulses()
        beats.end()
    finally:
        dist.destroy_process_group()
    assert said.empty(), "it is said once"


@pytest.mark.parametrize(
    ("pulses", "progress", "said"),
    [
        ([[3, 5], [4, 5]], [15, 14], "rank 1 stands still in step 7"),
        ([[3, 5], [4, 6]], [15, 14], "rank 1 is behind, in step 7"),
        ([[3, 5], [4, 6]], [14, 14], "no rank waits for another: all are at work in step 7"),
        ([[3, 5], [4, 6]], [15, 15], "all ranks wait for each other in step 7; the network between them is the likely cause"),
        ([[3, 5], [4, 5]], [1, -2], "rank 1 stands still before its first step"),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named(
    monkeypatch: pytest.MonkeyPatch, pulses: list[list[int]], progress: list[int], said: str
) -> None:
    beats, read = object.__new__(Heartbeats), iter([*pulses, progress])
    monkeypatch.setattr(heartbeat, "_OBSERVATION_SECONDS", 0.0)
    monkeypatch.setattr(beats, "_read", lambda key: next(read))
    assert beats.describe_stragglers() == said


def test_a_process_may_end_while_its_heart_beats(tmp_path: Path) -> None:
    code = (
        "import sys; import torch.distributed as dist; from training.distributed import heartbeats as heartbeat\n"
        "heartbeat._PULSE_SECONDS = 0.0  # it is in the store almost always, and so when Python ends\n"
        "dist.init_process_group('gloo', init_method=sys.argv[1], rank=0, world_size=1)\n"
        "beats = heartbeat.Heartbeats(0, 1)\n"
        "dist.destroy_process_group()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, f"file://{tmp_path}/store"], timeout=120, check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")

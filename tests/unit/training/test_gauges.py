"""Memory and MFU of a training; system metrics by MLflow's collectors; heartbeats that name the rank that hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

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


def test_a_training_on_the_processor_of_a_machine_with_a_gpu_has_the_processors_memory_and_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 0)
    experiment = preset("digits-tiny-hybrid-cosine")
    on_processor = Gauge(experiment, Resources(), 1).read(900.0)
    assert on_processor.keys() == {"memory_gib"}
    assert on_processor["memory_gib"] > 0
    assert Gauge(experiment, Resources(num_gpus_per_worker=1), 1).read(900.0).keys() == {"memory_gib", "mfu"}


def test_a_rank_that_makes_no_progress_says_who_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeat, "_PULSE_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "_OBSERVATION_SECONDS", 0.1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        beats = Heartbeats(0, 1, alarm_seconds=0.1)
        time.sleep(0.3)
        assert capsys.readouterr().out == "", "before the first step nothing is late"
        beats.beat(3, waiting=True)
        time.sleep(0.6)
        beats.end()
    finally:
        dist.destroy_process_group()
    assert capsys.readouterr().out.count("all ranks wait for each other in step 3") == 1


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

"""Faults that end a training run early, for real: two Ray workers, S3 and MLflow on loopback. `test_other_faults` has the rest.

A run with faults is compared with an undisturbed one: the same weights to the bit, the same logged steps, once each. A start of Ray and of
its workers takes longer than the training, so one run goes through most of the faults.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from faulty_training import (
    INTERVAL,
    NUM_STEPS,
    OVERRIDES,
    PRESET,
    Run,
    assert_the_same,
    has_checkpoint,
    has_later_checkpoint,
    latest_step,
    outcome,
    rank_zero,
    run_uri_of,
    status_of,
    train_undisturbed,
)

from components.steps.reference import reference_for
from evaluation.monitoring.checkpoint_scorer import read_history
from pipelines.services import daemons
from pipelines.services import services as local_services
from training import storage
from training.checkpoints import checkpoint
from training.config.presets import preset

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_a_run_through_most_faults_ends_as_if_nothing_had_happened(
    bucket_uri: str, data_uri: str, tmp_path: Path, services: local_services.Services
) -> None:
    reference_uri = reference_for(preset(PRESET, OVERRIDES), data_uri, f"{services.bucket_uri}/faults")
    # A store that hangs and then refuses is waited for.
    run = Run(bucket_uri, data_uri, reference_uri=reference_uri)
    run.until(has_checkpoint(bucket_uri))
    store = next(service for service in local_services.status(services.home).services if service.name == "seaweedfs")
    assert store.pid is not None
    with run.slowed():
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
    told = r"iddpm\| worker \d: its process was killed or crashed(; worker .*)?; starting the workers again \(1 of 3\)\n"
    assert re.search(told, run.text), run.text[-3000:]

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
    told = r"iddpm\| worker \d: .*rank 1 stands still in step \d+; rank 0 waited 8 s.*; starting the workers again \(1 of 3\)\n"
    assert re.search(told, run.text), run.text[-3000:]
    family, workers = psutil.Process(run.process.pid).children(recursive=True), run.workers()
    run.process.kill()
    run.wait()
    assert not psutil.wait_procs(workers, timeout=180)[1]  # until then they may write one more checkpoint

    # A damaged checkpoint is left behind.
    *_, before, latest = checkpoint.steps(run_uri)
    uri = f"{checkpoint.checkpoint_uri(run_uri, latest)}/optimizer.pt"
    storage.write_bytes(uri, storage.read_bytes(uri)[:-1])
    run = Run(bucket_uri, data_uri, reference_uri=reference_uri)
    assert run.wait() == 0, run.text[-3000:]
    assert f"resuming from step {before}" in run.text, run.text[-3000:]
    assert_the_same(run, train_undisturbed(tmp_path, data_uri, NUM_STEPS))
    scored = [score["step"] for score in read_history(run_uri)]
    assert scored == list(range(INTERVAL, NUM_STEPS + 1, INTERVAL)), "as of a run without interruption"
    assert not psutil.wait_procs(family, timeout=180)[1]  # Ray's agents take their time to notice

    # A finished run is found and not trained again.
    again = Run(bucket_uri, data_uri, reference_uri=reference_uri)
    assert again.wait(200) == 0
    assert f"already trained to step {NUM_STEPS}" in again.text
    assert outcome(again)["result"] == outcome(run)["result"]

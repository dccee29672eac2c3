"""A step handed to a standing Ray cluster through its dashboard: a real head on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from components.ray_jobs import RayJobsError, run_on_dashboard
from components.ray_modes import run_in_mode
from components.rayjob import Pace
from training.data.shards import read_manifest

pytestmark = pytest.mark.slow

_PACE = Pace(poll_seconds=0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    folder, port = Path(tempfile.mkdtemp(prefix="ray-")), _free_port()  # Ray's sockets need a short path
    bin_folder = str(Path(sys.executable).parent)
    command = [f"{bin_folder}/ray", "start", "--head", "--block", "--num-cpus=3", "--node-ip-address=127.0.0.1", f"--port={_free_port()}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={folder}"]
    # Jobs go to the agent, whose own default port may be another cluster's on this machine.
    command += [f"--dashboard-agent-listen-port={_free_port()}", f"--dashboard-agent-grpc-port={_free_port()}"]
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert head.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def _preprocess(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "experiment_preset": "digits-hybrid-cosine",
        "experiment_overrides": [],
        "data_uri": "",
        "storage_root_uri": str(root),
        "source": "",
        "source_options": {},
        "options": {},
        "other_sizes": [],
        "resources": {"num_workers": 2},
        **changes,
    }


def test_a_step_is_done_by_the_cluster_and_its_answer_and_lines_come_back(dashboard, tmp_path, capsys):
    uri = run_on_dashboard("preprocess", _preprocess(tmp_path), dashboard, pace=_PACE)
    assert read_manifest(f"{uri}/train").num_images > 1000
    made_at = Path(f"{uri}/train/manifest.json").stat().st_mtime_ns
    said = capsys.readouterr().out
    assert f"is handed to {dashboard}" in said
    assert "digits" in said.partition("is handed to")[2]
    again = run_in_mode("preprocess", _preprocess(tmp_path), ray_mode="address", ray_address=dashboard)
    assert again == uri
    assert Path(f"{uri}/train/manifest.json").stat().st_mtime_ns == made_at
    assert "is handed to" in capsys.readouterr().out  # what was found the last time is not taken for an answer


def test_a_step_that_fails_there_is_told_in_one_line(dashboard, tmp_path, capsys):
    arguments = _preprocess(tmp_path, experiment_preset="no-such-preset")
    with pytest.raises(RayJobsError, match=r"Ray job iddpm-preprocess-[\w-]+ ended as FAILED") as told:
        run_on_dashboard("preprocess", arguments, dashboard, pace=_PACE)
    assert "\n" not in str(told.value)
    assert "no-such-preset" in capsys.readouterr().out


def test_an_address_where_no_dashboard_is_says_so():
    with pytest.raises(RayJobsError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:"):
        run_on_dashboard("evaluate", {"run_uri": "x"}, f"http://127.0.0.1:{_free_port()}")


def test_sigterm_stops_the_job_that_it_follows(dashboard, tmp_path):
    program = f"""
import sys
from components import cluster_call, ray_jobs
cluster_call.Call.driver = property(lambda call: ("sleep", "600"))
ray_jobs.run_on_dashboard("preprocess", {_preprocess(tmp_path)!r}, {dashboard!r})
"""
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    line = launcher.stdout.readline()
    assert "is handed to" in line
    job = line.split("Ray job ")[1].split()[0]
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == 143
    client = JobSubmissionClient(dashboard)
    deadline = time.monotonic() + 30
    while client.get_job_status(job).value != "STOPPED":
        assert time.monotonic() < deadline
        time.sleep(0.2)

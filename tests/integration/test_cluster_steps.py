"""A step on a Ray cluster runs on a worker, which spreads it; its result or its error comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from step_arguments import preprocess_arguments

from components.launch.repeat import may_pass
from components.launch.step import Step, run_on_cluster
from components.steps.registry import PREPROCESS
from training.config.errors import UserError
from training.distributed.ray_session import StandstillError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_data_prepared_on_a_cluster_is_the_data_prepared_here(tmp_path):
    there = run_on_cluster(PREPROCESS, preprocess_arguments(tmp_path / "there"), "local")
    here = PREPROCESS(**preprocess_arguments(tmp_path / "here", resources={"num_workers": 1}))
    digests = [json.loads((Path(uri) / "train" / "manifest.json").read_text())["content_digest"] for uri in (there, here)]
    assert digests[0] == digests[1]


def test_an_error_of_a_step_on_a_cluster_is_raised_here(tmp_path):
    with pytest.raises(UserError, match="data: "):
        run_on_cluster(PREPROCESS, preprocess_arguments(tmp_path, experiment=json.dumps({"name": "no-such-experiment"})), "local")


def test_a_step_whose_worker_stands_still_is_killed_and_may_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("components.launch.step._LONGEST_SECONDS", 20.0)  # more than a process takes to start

    class Stopped(Step):
        def __call__(self, **arguments: Any) -> Any:
            Path(arguments["file"]).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)

    arguments = {"file": str(tmp_path / "pid"), "resources": {}}
    with pytest.raises(StandstillError, match=r"^step stopped has no result: none has come for 20 s: a process ") as caught:
        run_on_cluster(Stopped(name="stopped", function="", files_argument=""), arguments, "local")
    assert may_pass(caught.value)
    with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # a busy machine may not have begun it
        psutil.Process(int((tmp_path / "pid").read_text())).wait(timeout=60)  # Ray kills a stopped one after 5 s


def test_a_step_whose_worker_ray_kills_for_its_nodes_memory_may_be_tried_again_and_says_what_to_set(tmp_path):
    code = (
        "import json, sys; from components.launch.repeat import may_pass; from components.launch.step import run_on_cluster\n"
        "from components.steps.registry import PREPROCESS\n"
        "try:\n"
        "    run_on_cluster(PREPROCESS, json.loads(sys.argv[1]), 'local')\n"
        "except Exception as error:\n"
        "    print(may_pass(error), type(error).__name__, error)"
    )
    arguments = json.dumps(preprocess_arguments(tmp_path / "data"))
    settings = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100", "RAY_task_oom_retries": "0"}
    command = [sys.executable, "-c", code, arguments]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False, timeout=300)
    assert "True MemoryShortageError memory ran out (" in done.stdout.splitlines()[-1], done.stdout[-2000:] + done.stderr[-2000:]
    assert 'data_resources: {"memory": ...}' in done.stdout

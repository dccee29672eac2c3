"""A step on a Ray cluster runs on a worker, which spreads it; its result or its error comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from step_arguments import preprocess_arguments

from components.launch.step import run_on_cluster
from components.steps.registry import PREPROCESS
from training.config.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_data_prepared_on_a_cluster_is_the_data_prepared_here(tmp_path):
    there = run_on_cluster(PREPROCESS, preprocess_arguments(tmp_path / "there"), "local")
    here = PREPROCESS(**preprocess_arguments(tmp_path / "here", resources={"num_workers": 1}))
    digests = [json.loads((Path(uri) / "train" / "manifest.json").read_text())["content_digest"] for uri in (there, here)]
    assert digests[0] == digests[1]


def test_an_error_of_a_step_on_a_cluster_is_raised_here(tmp_path):
    with pytest.raises(UserError, match="data: "):
        run_on_cluster(PREPROCESS, preprocess_arguments(tmp_path, experiment=json.dumps({"name": "no-such-experiment"})), "local")


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

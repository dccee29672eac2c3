"""A step on a Ray cluster runs on a worker, which spreads it; its result or its error comes back."""

from __future__ import annotations

import json
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

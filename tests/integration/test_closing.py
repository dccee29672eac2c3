"""The end of a pipeline's run: what it left open in a real MLflow is closed as what became of it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from components.steps.close import close_runs, finish_training
from components.steps.train import PIPELINE_RUN_TAG, identify
from training import storage
from training.data.preparation.prepare import Options, prepare
from training.data.sources.source import digits
from training.tracking.runs import TrackedRun, open_run


@pytest.fixture
def experiment(services: Any) -> str:
    return f"closing-{uuid.uuid4().hex[:8]}"


def _left_open(experiment: str, key: str, pipeline_run_id: str, run_uri: str = "") -> TrackedRun:
    tags = {PIPELINE_RUN_TAG: pipeline_run_id, "iddpm.run_uri": run_uri}
    run = open_run(run_key=key, experiment_name=experiment, run_name=key, tags=tags, params={})
    assert run.flush()
    return run


def _status(run: TrackedRun) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient().get_run(run.run_id).info.status)


@pytest.mark.parametrize(
    ("state", "became"), [("FAILED", "FAILED"), ("RUNNING", "FAILED"), ("CANCELLED", "KILLED"), ("CANCELED", "KILLED")]
)
def test_a_run_whose_process_was_killed_is_closed_as_what_became_of_it(experiment, capsys, state, became):
    run = _left_open(experiment, "k-1", "pipeline-1")
    close_runs(state, "pipeline-1", experiment)
    assert _status(run) == became
    assert f"run k-1 was left open in MLflow; it is closed as {became}" in capsys.readouterr().out


def test_a_run_that_left_its_result_is_closed_as_finished(experiment, tmp_path):
    storage.write_json(str(tmp_path / "result.json"), {"step": 1})
    run = _left_open(experiment, "k-2", "pipeline-1", str(tmp_path))
    close_runs("FAILED", "pipeline-1", experiment)
    assert _status(run) == "FINISHED"


def test_runs_that_are_closed_or_that_another_pipeline_works_on_are_left_alone(experiment, capsys):
    other = _left_open(experiment, "k-3", "pipeline-2")
    closed = _left_open(experiment, "k-4", "pipeline-1")
    closed.finish("KILLED")
    close_runs("FAILED", "pipeline-1", experiment)
    assert (_status(other), _status(closed)) == ("RUNNING", "KILLED")
    assert "left open" not in capsys.readouterr().out
    other.finish("KILLED")


def test_an_experiment_that_was_never_made_has_nothing_to_close(experiment):
    close_runs("FAILED", "pipeline-1", experiment)


def test_the_train_pipelines_end_names_the_runs_directory_wherever_the_data_set_is(experiment, tmp_path: Path):
    root, elsewhere = str(tmp_path / "store"), str(tmp_path / "elsewhere")
    arguments = ("FAILED", "pipeline-1", "digits-hybrid-cosine", ["optim.num_steps=10"])
    assert finish_training(*arguments, "", root, experiment) == ""
    prepare(digits("train"), f"{elsewhere}/train", image_size=8, options=Options(resize="none"))
    found = finish_training(*arguments, elsewhere, root, experiment)
    assert found == identify("digits-hybrid-cosine", ["optim.num_steps=10"], elsewhere, root).uri

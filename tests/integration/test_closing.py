"""The last step of a pipeline: MLflow runs that were left open are closed, with the end that the recorded Workflow shows."""

from __future__ import annotations

import inspect
import json
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_kubernetes
import pytest
from recorded_workflows import workflow_states

from components.close_run import close_run
from components.plan_tuning import plan_tuning
from components.report_tuning import report_tuning
from components.settings import settings
from components.steps.close import FAILURES_VARIABLE, End, close_runs, end_of_run, finish_training
from components.steps.mlflow_sync import update_mlflow
from components.steps.runs import identify
from components.tabulate_ablation import tabulate_ablation
from evaluation.ablations.definitions.request import DEFAULT_PRESET, OWN_GRID
from evaluation.tuning.request import TuneRequest
from training import storage
from training.config.presets import preset
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.tracking import client as mlflow_client
from training.tracking.references import ABLATION_URI_TAG, TUNING_URI_TAG
from training.tracking.runs import ERROR_TAG, PIPELINE_RUN_TAG, TRIAL_TAG, TrackedRun, open_again, open_run, tags_of


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


@pytest.mark.parametrize(("state", "status"), [("FAILED", "FAILED"), ("RUNNING", "FAILED"), ("CANCELLED", "KILLED")])
def test_a_run_whose_process_was_killed_on_a_laptop_ends_as_kfp_says(experiment, capsys, state, status):
    pipeline = str(uuid.uuid4())
    run = _left_open(experiment, "k-1", pipeline)
    close_runs(end_of_run(state, pipeline), pipeline)
    assert _status(run) == status
    assert f"run k-1 was left open in MLflow; it is closed as {status}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recording", "state", "status", "error"),
    [
        ("rayjob-cancelled", "RUNNING", "KILLED", ""),
        ("plugin-env-collision-then-cancelled", "RUNNING", "KILLED", ""),
        # Its retry deadline ended it.
        ("worker-killed-then-step-pod-deleted", "RUNNING", "FAILED", "train: Max duration limit exceeded"),
        ("bad-source-failed", "FAILED", "FAILED", "preprocess: main: Error (exit code 1)"),
    ],
)
def test_on_a_cluster_the_workflow_tells_a_cancelled_run_from_a_failed_one(
    experiment, tmp_path, monkeypatch, recording, state, status, error
):
    pipeline = str(uuid.uuid4())
    run = _left_open(experiment, "k-1", pipeline)
    # The last step runs while the Workflow is still running.
    workflow = [each for each in workflow_states(recording, pipeline_run_id=pipeline) if each["status"].get("phase") == "Running"][-1]
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.setenv("KFP_POD_NAME", "close-run")
        fake.workflows[workflow["metadata"]["name"]] = workflow
        close_runs(end_of_run(state, pipeline), pipeline)
    assert _status(run) == status
    assert tags_of(run.run_id).get(ERROR_TAG, "") == error
    close_runs(End(succeeded=True), pipeline)
    if error:
        assert tags_of(run.run_id)[ERROR_TAG] == error  # only a run that finished loses the error of an earlier try


def test_a_training_that_finished_before_a_later_step_failed_has_that_steps_error_until_the_run_succeeds(experiment):
    pipeline = str(uuid.uuid4())
    run = _left_open(experiment, "k-1", pipeline)
    run.finish("FINISHED")
    close_runs(End(succeeded=False, errors={"evaluate": "UserError: no card"}), pipeline)
    assert tags_of(run.run_id)[ERROR_TAG] == "evaluate: UserError: no card"
    close_runs(End(succeeded=True), pipeline)
    assert tags_of(run.run_id)[ERROR_TAG] == ""


def test_where_the_workflow_may_not_be_read_the_run_is_closed_as_failed_and_the_log_says_why(experiment, tmp_path, monkeypatch, capsys):
    pipeline = str(uuid.uuid4())
    run = _left_open(experiment, "k-1", pipeline)
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.setenv("KFP_POD_NAME", "close-run")
        fake.faults["GET"] = [403]
        close_runs(end_of_run("RUNNING", pipeline), pipeline)
    assert _status(run) == "FAILED"
    assert "may not list Workflows" in capsys.readouterr().out


def test_where_mlflow_is_away_the_last_step_ends_well_and_says_who_closes_the_runs(experiment, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(mlflow_client, "RETRY_SECONDS", 0.0)
    close_runs(End(succeeded=False), "pipeline-1")
    assert "the reaper closes" in capsys.readouterr().out


def test_a_run_that_left_its_result_is_closed_as_finished(experiment, tmp_path):
    storage.write_json(str(tmp_path / "result.json"), {"step": 1})
    run = _left_open(experiment, "k-2", "pipeline-1", str(tmp_path))
    close_runs(End(succeeded=False), "pipeline-1")
    assert _status(run) == "FINISHED"


def test_a_trained_run_that_was_deleted_in_mlflow_is_said_to_get_nothing_there(experiment, tmp_path, capsys):
    run, run_uri = _left_open(experiment, "k-2", "pipeline-1"), f"{tmp_path}/runs/k-2"
    storage.write_json(f"{run_uri}/result.json", {"tracking_run_id": run.run_id})
    mlflow_client.connect().delete_run(run.run_id)
    assert update_mlflow(run_uri)
    assert f"MLflow gets nothing of {run_uri}: its run {run.run_id} was deleted there" in capsys.readouterr().out


@pytest.mark.parametrize(("end", "status"), [(End(False), "FAILED"), (End(False, cancelled=True), "KILLED"), (End(True), "FINISHED")])
def test_a_trained_run_that_a_killed_evaluation_left_open_ends_as_the_pipeline_does(experiment, tmp_path, end, status):
    storage.write_json(str(tmp_path / "result.json"), {"step": 1})
    run = _left_open(experiment, "k-5", "pipeline-1", str(tmp_path))
    open_again(run.run_id, "evaluate", "pipeline-5")
    close_runs(end, "pipeline-5")
    assert _status(run) == status


@pytest.mark.parametrize(("end", "status"), [(End(False), "FAILED"), (End(False, cancelled=True), "KILLED"), (End(True), "FINISHED")])
def test_a_tuning_a_sweep_and_a_trial_whose_end_mlflow_did_not_hear_end_as_the_pipeline_does(experiment, tmp_path, end, status):
    pipeline = str(uuid.uuid4())
    runs = []
    for key, tag in (("k-7", TUNING_URI_TAG), ("k-8", ABLATION_URI_TAG), ("k-9", TRIAL_TAG)):
        tags = {PIPELINE_RUN_TAG: pipeline, tag: f"{tmp_path}/{key}"}
        runs.append(open_run(run_key=key, experiment_name=experiment, run_name=key, tags=tags, params={}))
        assert runs[-1].flush()
    training = _left_open(experiment, "k-10", pipeline, f"{tmp_path}/runs/k-10")  # it has no result
    close_runs(end, pipeline)
    assert [_status(run) for run in runs] == [status] * 3
    assert _status(training) == ("KILLED" if end.cancelled else "FAILED")


def test_the_errors_of_a_laptops_run_are_told_without_secrets(tmp_path, monkeypatch):
    path = tmp_path / "failures.json"
    path.write_text(json.dumps({"preprocess": "HTTPError: 403 for https://b.s3.amazonaws.com/x.zip?X-Amz-Signature=0123456789abcdef"}))
    monkeypatch.setenv(FAILURES_VARIABLE, str(path))
    assert end_of_run("FAILED", "p").errors == {"preprocess": "HTTPError: 403 for https://b.s3.amazonaws.com/x.zip?X-Amz-Signature=***"}


def test_runs_that_are_closed_or_that_another_pipeline_works_on_are_left_alone(experiment, capsys):
    other = _left_open(experiment, "k-3", "pipeline-2")
    closed = _left_open(experiment, "k-4", "pipeline-1")
    closed.finish("KILLED")
    close_runs(End(succeeded=False), "pipeline-1")
    assert (_status(other), _status(closed)) == ("RUNNING", "KILLED")
    assert "left open" not in capsys.readouterr().out
    other.finish("KILLED")


def test_the_train_pipelines_end_names_the_runs_directory_wherever_the_data_set_is(experiment, tmp_path: Path):
    root, elsewhere = str(tmp_path / "store"), str(tmp_path / "elsewhere")
    arguments = ("FAILED", "pipeline-1", preset("digits-hybrid-cosine", ["optim.num_steps=10"]))
    assert finish_training(*arguments, "", root) == ""
    prepare(digits("train"), f"{elsewhere}/train", image_size=8, options=Options(resize="none"))
    found = finish_training(*arguments, elsewhere, root)
    assert found == identify(arguments[2], elsewhere, root).uri
    other = preset("digits-hybrid-cosine", ["data.num_classes=5", "optim.num_steps=10"])
    assert finish_training("FAILED", "pipeline-1", other, elsewhere, root) == ""  # its first step has failed of this data set


@pytest.mark.parametrize(
    "later", [b'base = "digits-hybrid-cosine"\n[optim]\nnum_steps = 20\n', b"no TOML", None], ids=["edited", "broken", "gone"]
)
def test_the_last_step_tells_of_the_experiment_as_the_first_one_read_it(experiment, bucket_uri, tmp_path: Path, monkeypatch, later):
    """A training takes days, and its file is the user's."""
    file, root, pipeline = f"{bucket_uri}/my.toml", str(tmp_path / "store"), str(uuid.uuid4())
    storage.write_bytes(file, b'base = "digits-hybrid-cosine"\n[optim]\nnum_steps = 10\n')
    form = {"experiment_preset": "", "experiment_overrides": [], "experiment_file": file}
    tuning = {**form, "tune_search": ["optim.learning_rate=0.1..0.2"], "tune_trials": 2, "tune_options": {}}
    settings.python_func(root, pipeline, **form)
    plan_tuning.python_func(**tuning, storage_root_uri=root, pipeline_run_id=pipeline)
    if later is None:
        storage.delete(file)
    else:
        storage.write_bytes(file, later)
    prepare(digits("train"), f"{tmp_path}/data/train", image_size=8, options=Options(resize="none"))
    own = preset("digits-hybrid-cosine", ["optim.num_steps=10"])
    end = {
        "status": SimpleNamespace(state="COMPLETE"),
        "pipeline_run_id": pipeline,
        "storage_root_uri": root,
        "data_uri": f"{tmp_path}/data",
    }
    assert close_run.python_func(**end, **form, seed=-1) == identify(own, f"{tmp_path}/data", root).uri
    requests: list[TuneRequest] = []
    monkeypatch.setattr("components.tuning.report.finish_tuning", lambda state, run, request, *_, **__: requests.append(request))
    report_tuning.python_func(**end, **tuning, page=SimpleNamespace(path=""))
    assert [request.experiment() for request in requests] == [own]


def test_a_run_whose_experiment_file_was_never_there_is_closed_all_the_same(experiment, bucket_uri, tmp_path: Path):
    pipeline = str(uuid.uuid4())
    run = _left_open(experiment, "k-6", pipeline)
    form = {"experiment_preset": "", "experiment_overrides": [], "experiment_file": f"{bucket_uri}/none.toml", "seed": -1}
    end = {"status": SimpleNamespace(state="FAILED"), "pipeline_run_id": pipeline, "storage_root_uri": str(tmp_path), "data_uri": ""}
    assert close_run.python_func(**end, **form) == ""
    assert _status(run) == "FAILED"


@pytest.mark.parametrize("component", [close_run, tabulate_ablation, report_tuning], ids=lambda each: str(each.name))
def test_an_error_in_the_form_does_not_fail_the_last_step_too(experiment, tmp_path: Path, component):
    """The settings step has failed of it and shown it; a second red step would say nothing new, and nobody would be told."""
    pipeline = str(uuid.uuid4())
    run = _left_open(experiment, f"k-{component.name}", pipeline)
    wrong = {
        "experiment_preset": "no-such-preset",
        "experiment_overrides": [],
        "experiment_file": "",
        "seed": -1,
        "experiment_objective": "",
        "ablation_name": "no-such-ablation",
        "ablation_scale": "tiny",
        "ablation_grid": {},
        "ablation_options": "",
        "tune_search": [],
        "tune_trials": 2,
        "tune_options": "",
        "data_uri": "",
        "page": SimpleNamespace(path=str(tmp_path / "page.html")),
    }
    names = inspect.signature(component.python_func).parameters
    given = {name: value for name, value in wrong.items() if name in names}
    status = SimpleNamespace(state="FAILED")
    assert component.python_func(status=status, pipeline_run_id=pipeline, storage_root_uri=str(tmp_path), **given) == ""
    assert _status(run) == "FAILED"


@pytest.mark.parametrize(
    "wrong",
    [
        {"ablation_name": "width", "experiment_preset": DEFAULT_PRESET, "experiment_overrides": ["optim.nosuch=1"]},
        {"ablation_name": OWN_GRID, "ablation_grid": {"seed": [1, 2]}, "experiment_preset": DEFAULT_PRESET},
    ],
    ids=["override", "grid"],
)
def test_a_trial_that_the_first_step_refused_does_not_fail_the_table_too(experiment, tmp_path: Path, wrong):
    pipeline = str(uuid.uuid4())
    run = _left_open(experiment, "k-table", pipeline)
    form = {"ablation_scale": "tiny", "ablation_grid": {}, "ablation_options": {}, "experiment_objective": "as named"}
    given = {"experiment_overrides": [], "page": SimpleNamespace(path=str(tmp_path / "page.html")), **form, **wrong}
    status = SimpleNamespace(state="FAILED")
    tabulate = tabulate_ablation.python_func
    assert tabulate(status=status, pipeline_run_id=pipeline, storage_root_uri=str(tmp_path), **given) == ""
    assert _status(run) == "FAILED"

"""The last step of a sweep's pipeline: the report is made and trials are closed, also where MLflow was away."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from components.ablations.close import finish_ablation, update_ablation
from components.ablations.directory import PLAN, Plan, ablation_uri
from components.ablations.steps import measure_joint, train_trial
from components.ablations.tracking import finish_trial, open_parent, open_trial
from components.reaper.mlflow_runs import send_what_mlflow_lacks
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials.record import AblationTrial, record_uri
from pipelines.local.ablate import _end_if_stopped
from training import storage
from training.config.errors import UserError
from training.data.preparation.prepare import Options, prepare
from training.data.sources.published import digits
from training.tracking import client as mlflow_client
from training.tracking.runs import PIPELINE_RUN_TAG, FoundRun, TrackedRun, attach, close_open_run, open_run, open_runs

_GRID = AblationRequest(name="own-grid", scale="tiny", preset="digits-tiny-hybrid-cosine", grid={"diffusion.vlb_weight": [0.001, 0.01]})


def _planned(root: str, request: AblationRequest = _GRID, **data: str) -> Plan:
    uri = ablation_uri(request, root)
    experiment = f"sweeps-{uuid.uuid4().hex[:8]}"
    parent = open_parent(request, experiment, uri, "pipeline-1")
    assert parent.flush()
    values = {trial.label: dict(trial.values) for trial in request.trials()}
    items = [{"label": trial.label, "ablation_uri": uri, **data} for trial in request.trials()]
    plan = Plan(request=request, items=items, parent_run_id=parent.run_id, parent_url=parent.url, tracking=experiment, values=values)
    storage.write_json(f"{uri}/{PLAN}", plan.to_dict())
    return plan


def _status(run_id: str) -> str:
    return str(mlflow_client.connect().get_run(run_id).info.status)


def _measured(plan: Plan, uri: str, run_id: str, *, number: int = 0, score: float = 2.5) -> AblationTrial:
    """Store the record of a trial, the first one."""
    trial = plan.request.trials()[number]
    known: dict[str, Any] = {"label": trial.label, "values": trial.values, "preset": trial.preset, "own": trial.own}
    points = [{"step": step, "scores": {"ema_0.99": value}} for step, value in ((10, score), (20, 1.0))]
    record = AblationTrial(**known, measures={"history": {"points": points}}, tracking_run_id=run_id)
    storage.write_json(record_uri(uri, trial.label), record.to_dict())
    return record


def test_a_trial_whose_record_mlflow_missed_is_sent_and_one_without_a_record_is_closed_as_failed(services: Any, tmp_path: Path) -> None:
    root, pipeline = str(tmp_path), str(uuid.uuid4())
    plan = _planned(root)
    uri = ablation_uri(plan.request, root)
    measured, killed = (open_trial(plan, trial.label, trial, pipeline) for trial in plan.request.trials())
    _measured(plan, uri, measured.run_id)
    page_uri = finish_ablation("FAILED", pipeline, plan.request, root, str(tmp_path / "page.html"))
    assert storage.exists(page_uri)
    assert (_status(measured.run_id), _status(killed.run_id), _status(plan.parent_run_id)) == ("FINISHED", "FAILED", "FAILED")
    assert mlflow_client.connect().get_metric_history(measured.run_id, "score/ema_0.99")[0].value == 2.5


def test_the_report_and_the_records_that_mlflow_was_away_for_are_sent_by_the_reaper(
    services: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _planned(str(tmp_path))
    plan_uri, trial = ablation_uri(plan.request, str(tmp_path)), plan.request.trials()[0]
    measured = open_trial(plan, trial.label, trial, "pipeline-1")
    measured.finish("FINISHED")  # as the reaper closes a run whose Workflow has succeeded
    _measured(plan, plan_uri, measured.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(mlflow_client, "RETRY_SECONDS", 0.0)
    page_uri = finish_ablation("FAILED", "pipeline-1", plan.request, str(tmp_path), str(tmp_path / "page.html"))
    assert plan.parent_url.replace("&", "&amp;") in storage.read_bytes(page_uri).decode()
    assert f"{plan_uri} has everything, and MLflow gets it from the reaper" in capsys.readouterr().out
    monkeypatch.undo()
    send_what_mlflow_lacks([FoundRun(plan.parent_run_id, plan.request.key(), {"iddpm.ablation_uri": plan_uri})])
    assert mlflow_client.connect().get_metric_history(measured.run_id, "score/ema_0.99")[0].value == 2.5
    assert (_status(measured.run_id), _status(plan.parent_run_id)) == ("FINISHED", "FAILED")
    assert [file.path for file in mlflow_client.connect().list_artifacts(plan.parent_run_id)] == ["report.html", "table.csv", "table.json"]
    assert storage.list_uris(f"{tmp_path}/mlflow_behind") == []


def test_a_sweep_that_was_cancelled_is_not_shown_as_failed(services: Any, tmp_path: Path) -> None:
    root, pipeline = str(tmp_path), str(uuid.uuid4())
    plan = _planned(root)
    killed = open_trial(plan, plan.request.trials()[0].label, plan.request.trials()[0], pipeline)
    finish_ablation("CANCELLED", pipeline, plan.request, root, str(tmp_path / "page.html"))
    assert (_status(killed.run_id), _status(plan.parent_run_id)) == ("KILLED", "KILLED")


def test_an_ablation_here_that_is_stopped_leaves_no_run_open_even_if_its_processes_died(services: Any, tmp_path: Path) -> None:
    plan = _planned(str(tmp_path))
    trial = plan.request.trials()[0]
    died = open_trial(plan, trial.label, trial, "")
    training = open_run(
        run_key=uuid.uuid4().hex, experiment_name=plan.tracking, run_name="training", tags={}, params={}, parent_run_id=died.run_id
    )
    assert training.flush()
    runs = (training.run_id, died.run_id, plan.parent_run_id)
    _end_if_stopped(plan.parent_run_id, "FINISHED")
    assert [_status(run_id) for run_id in runs] == ["RUNNING"] * 3, "a report has ended them as they ended"
    _end_if_stopped(plan.parent_run_id, "KILLED")
    assert [_status(run_id) for run_id in runs] == ["KILLED"] * 3


def test_a_report_beside_an_ablation_at_work_does_not_end_its_run(services: Any, tmp_path: Path) -> None:
    plan = _planned(str(tmp_path))
    assert update_ablation(ablation_uri(plan.request, str(tmp_path)), at_work=True)
    assert _status(plan.parent_run_id) == "RUNNING"
    assert dict(mlflow_client.connect().get_run(plan.parent_run_id).data.metrics) == {"num_finished": 0.0, "num_failed": 2.0}
    assert update_ablation(ablation_uri(plan.request, str(tmp_path)))
    assert _status(plan.parent_run_id) == "FAILED"


def test_a_sweep_that_failed_before_it_was_planned_has_no_report_and_no_second_error(services: Any, tmp_path: Path) -> None:
    request = AblationRequest(name="own-grid", scale="tiny", preset="digits-tiny-hybrid-cosine", grid={"diffusion.vlb_weight": [0.1, 1.0]})
    assert finish_ablation("FAILED", str(uuid.uuid4()), request, str(tmp_path), str(tmp_path / "page.html")) == ""


def test_after_failed_trials_have_run_again_mlflow_has_the_new_numbers(services: Any, tmp_path: Path) -> None:
    plan = _planned(str(tmp_path))
    uri, trials = ablation_uri(plan.request, str(tmp_path)), plan.request.trials()

    def metrics(run_id: str) -> dict[str, float]:
        return dict(mlflow_client.connect().get_run(run_id).data.metrics)

    def measure(number: int, score: float) -> TrackedRun:
        tracked = open_trial(plan, trials[number].label, trials[number], "pipeline-1")
        assert finish_trial(tracked, _measured(plan, uri, tracked.run_id, number=number, score=score))
        return tracked

    first = measure(0, 9.0)
    assert update_ablation(uri)
    assert metrics(plan.parent_run_id) == {"num_finished": 1.0, "num_failed": 1.0}
    assert measure(0, 2.5).run_id == first.run_id, "its data set has other images now"
    measure(1, 3.0)
    assert update_ablation(uri)
    assert metrics(plan.parent_run_id) == {"num_finished": 2.0, "num_failed": 0.0}
    assert attach(first.run_id).metric_history("score/ema_0.99") == [(10, 2.5), (20, 1.0)]
    assert metrics(first.run_id) == {"score/ema_0.99": 1.0}, "the value of the last step"


def test_a_trial_whose_run_was_deleted_is_trained_and_measured_again(services: Any, tmp_path: Path) -> None:
    plan, pipeline = _planned(str(tmp_path)), str(uuid.uuid4())
    uri, trial = ablation_uri(plan.request, str(tmp_path)), plan.request.trials()[0]
    old = AblationTrial(label=trial.label, run_uri=f"{tmp_path}/runs/gone", measures={"history": {"points": []}})
    storage.write_json(record_uri(uri, trial.label), old.to_dict())
    trained = train_trial({**plan.items[0], "run_uri": ""}, lambda _: f"{tmp_path}/runs/new", pipeline_run_id=pipeline)
    assert trained == f"{tmp_path}/runs/new"
    assert not storage.exists(record_uri(uri, trial.label)), "the old record would pass for that of the new training"


def test_the_joint_measurement_belongs_to_the_pipelines_run_that_planned_it(services: Any, tmp_path: Path) -> None:
    """So that its end, or the reaper, closes the run in MLflow where its pod was killed. Here it fails: the checkpoints are gone."""
    request, data_uri = AblationRequest(name="ensemble", scale="tiny"), f"{tmp_path}/data"
    manifest = prepare(digits("test"), f"{data_uri}/train", image_size=8, options=Options(resize="none"))
    _planned(str(tmp_path), request, data_uri=data_uri, reference_uri="")
    uri = ablation_uri(request, str(tmp_path))
    for trial in request.trials():
        known: dict[str, Any] = {"label": trial.label, "role": trial.role, "data": {"digest": manifest.content_digest}}
        checkpoint = f"{tmp_path}/runs/gone/checkpoints/step=00000010"
        storage.write_json(record_uri(uri, trial.label), AblationTrial(**known, checkpoint_uri=checkpoint).to_dict())
    with pytest.raises(UserError, match="runs/gone"):
        measure_joint(uri, {})
    (run,) = (run for run in open_runs(PIPELINE_RUN_TAG, "pipeline-1", status="FAILED") if run.key == f"{request.key()}/ensemble")
    assert run.tags["iddpm.ablation_key"] == request.key()
    for run in open_runs(PIPELINE_RUN_TAG, "pipeline-1"):  # the reaper would look at them in other tests too
        close_open_run(run, PIPELINE_RUN_TAG, "KILLED")

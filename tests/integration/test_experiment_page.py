"""The runs that a researcher sees in MLflow's experiment: trainings, and sweeps with their trials inside. A real MLflow."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from components.ablations.close import finish_ablation
from components.ablations.directory import PLAN, Plan, ablation_uri
from components.ablations.steps import train_trial
from components.ablations.tracking import finish_trial, open_parent, open_trial
from components.steps.close import End, close_runs
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials.record import AblationTrial, record_uri
from training import storage
from training.tracking.client import connect
from training.tracking.runs import PIPELINE_RUN_TAG, open_run
from training.tracking.tracked_run import PARENT_TAG


def _train(experiment: str, root: str, pipeline: str, trial_run_id: str = "") -> str:
    """Open the MLflow run of a training as the train step does, and leave it open as a step that was killed after its result."""
    key = f"digits-{uuid.uuid4().hex[:8]}"
    uri = f"{root}/runs/{key}"
    tags = {PIPELINE_RUN_TAG: pipeline, "iddpm.run_uri": uri}
    run = open_run(run_key=key, experiment_name=experiment, run_name=key, tags=tags, params={}, parent_run_id=trial_run_id)
    assert run.flush()
    storage.write_json(f"{uri}/result.json", {"tracking_run_id": run.run_id, "best_checkpoint_uri": "s3://x", "best_weights": "ema_0.99"})
    return uri


def _sweep(experiment: str, root: str, pipeline: str) -> None:
    request = AblationRequest(
        name="own-grid", scale="tiny", preset="digits-tiny-hybrid-cosine", grid={"diffusion.vlb_weight": [0.001, 0.01]}
    )
    uri = ablation_uri(request, root)
    parent = open_parent(request, experiment, uri, pipeline)
    assert parent.flush()
    values = {trial.label: dict(trial.values) for trial in request.trials()}
    plan = Plan(request=request, items=[], parent_run_id=parent.run_id, parent_url=parent.url, tracking=experiment, values=values)
    storage.write_json(f"{uri}/{PLAN}", plan.to_dict())
    for trial in request.trials():
        item = {"label": trial.label, "ablation_uri": uri, "run_uri": "", "data_uri": ""}
        run_uri = train_trial(item, lambda trial_run_id: _train(experiment, root, pipeline, trial_run_id), pipeline_run_id=pipeline)
        points = [{"step": 10, "scores": {"ema_0.99": 2.5}}]
        record = AblationTrial(
            label=trial.label,
            values=trial.values,
            preset=trial.preset,
            own=trial.own,
            run_uri=run_uri,
            measures={"history": {"points": points}},
        )
        storage.write_json(record_uri(uri, trial.label), record.to_dict())
        finish_trial(open_trial(plan, trial.label, trial, pipeline), record)
    finish_ablation("COMPLETE", pipeline, request, root, f"{root}/page.html")


def test_two_trainings_and_a_sweep_are_three_rows_and_the_rest_is_inside_the_sweep(services: Any, tmp_path: Path) -> None:
    experiment, root = f"page-{uuid.uuid4().hex[:8]}", str(tmp_path)
    for pipeline in ("p-1", "p-2"):
        _train(experiment, root, f"{experiment}-{pipeline}")
        close_runs(End(succeeded=True), f"{experiment}-{pipeline}")
    _sweep(experiment, root, f"{experiment}-p-3")
    client = connect()
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = {run.info.run_id: run for run in client.search_runs([found.experiment_id])}
    parents = {run_id: run.data.tags.get(PARENT_TAG, "") for run_id, run in runs.items()}
    roles = {run_id: run.data.tags.get("iddpm.role", "training") for run_id, run in runs.items()}
    places = sorted((roles[run_id], roles.get(parent, "top")) for run_id, parent in parents.items())
    assert places == [
        ("ablation", "top"),
        ("training", "top"),
        ("training", "top"),
        ("training", "trial"),
        ("training", "trial"),
        ("trial", "ablation"),
        ("trial", "ablation"),
    ]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}

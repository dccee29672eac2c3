"""A tuning by its pipeline, with a trial that is pruned while it trains: real kfp.local, Ray, S3 and MLflow, on the digits."""

import dataclasses
import uuid
from pathlib import Path

import pytest

from components.retention.survey import Policy, survey
from components.tuning.directory import from_form, tuning_uri
from components.tuning.steps import tune
from evaluation.tuning.record import read_records
from pipelines.compile import load
from pipelines.local.run import run_pipeline
from pipelines.services.services import Services
from training import storage
from training.checkpoints import checkpoint
from training.config.files import read_experiment_file
from training.data.splits import prepare_experiment
from training.loop.interfaces import TrainingError
from training.tracking.client import connect
from training.tracking.references import read_records as read_mlflow
from training.tracking.trainings import LatestTrainings

pytestmark = pytest.mark.slow

_FORM = {
    "experiment_preset": "digits-tiny-hybrid-cosine",
    "experiment_overrides": [
        "optim.num_steps=40",
        "optim.checkpoint_interval=40",
        "optim.global_batch_size=16",
        "optim.ema_decays=0.5",
        "evaluation.scoring_num_samples=60",
        "evaluation.scoring_sampling.spacing=ddim5",
    ],
    "tune_search": ["optim.learning_rate=[0.002,1e-6]", "optim.num_steps=[40,3000]"],
    "tune_trials": 2,
    "tune_options": {"seed": 9},  # its second trial learns too slowly, for too long
}


def test_the_tune_pipeline_prunes_a_bad_trial_reports_and_is_found_done(
    services: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    root = f"{services.bucket_uri}/{name}"
    arguments = {**_FORM, "storage_root_uri": root, "tracking_experiment": name}
    outputs = run_pipeline(load("tune"), arguments, dataclasses.replace(services, home=tmp_path), show=lambda line: None)
    uri = outputs["Output"].removesuffix("/report.html")
    good, bad = read_records(uri)
    assert (good.state, good.params) == ("complete", {"optim.learning_rate": "0.002", "optim.num_steps": "40"})
    assert (bad.state, bad.params) == ("pruned", {"optim.learning_rate": "1e-06", "optim.num_steps": "3000"})
    assert storage.exists(f"{good.run_uri}/result.json")
    assert not storage.exists(f"{bad.run_uri}/result.json")  # it looks like a run that was stopped
    assert 40 <= max(checkpoint.steps(bad.run_uri)) < 3000
    assert "is not among the best 1/3 of the trials there" in storage.read_bytes(f"{uri}/table.json").decode()
    best = read_experiment_file(storage.read_bytes(f"{uri}/best.toml").decode())
    assert (best.optim.learning_rate, best.optim.num_steps) == (0.002, 40)

    client = connect()
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = {run.data.tags["iddpm.run_key"]: run for run in client.search_runs([experiment.experiment_id])}
    parent, first, second = (runs.pop(each.rpartition("/")[2]) for each in (uri, good.run_uri, bad.run_uri))
    assert not runs
    assert [run.info.status for run in (parent, first, second)] == ["FINISHED", "FINISHED", "KILLED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in (first, second)} == {parent.info.run_id}
    assert "iddpm.pruned" not in first.data.tags  # a page of MLflow shows the name of an empty tag too
    assert second.data.tags["iddpm.pruned"] == bad.reason
    assert [metric.value for metric in client.get_metric_history(parent.info.run_id, "trial_score")] == [good.score, bad.score]
    shown = {each.key: each for each in LatestTrainings().read(20)}
    assert (shown[good.key].state, shown[bad.key].state) == ("finished", "pruned")
    assert shown[bad.key].trial == "1: learning_rate=1e-06 num_steps=3000"
    kept = survey(
        root, storage.list_objects(root), read_mlflow(), Policy(days=0, grace_hours=0), now=2e9, read=lambda uris: [""] * len(uris)
    )
    assert {each.name: each.state for each in kept if each.state != "kept" and not each.name.startswith("pipelines/")} == {
        each.removeprefix(f"{root}/"): "referenced" for each in (uri, good.run_uri, bad.run_uri)
    }

    request = from_form(**{name.partition("_")[2]: value for name, value in {**_FORM, "experiment_file": ""}.items()})
    data_uri = f"{root}/data/digits-8x8x1-none"
    capsys.readouterr()
    again = tune(request.to_dict(), data_uri, "", root, name, {})
    assert again == uri
    assert "trial " not in capsys.readouterr().out  # nothing is trained, and Ray is not started
    assert read_records(uri) == [good, bad]
    tune({**request.to_dict(), "trials": 3, "options": {"seed": 9, "hours": 1e-9}}, data_uri, "", root, name, {})
    assert "the time is over: 2 of 3 trials are done" in capsys.readouterr().out


def test_a_trial_whose_values_do_not_fit_together_fails_and_the_page_says_why(bucket_uri: str) -> None:
    small = ("evaluation.sampling.spacing=5", "evaluation.scoring_sampling.spacing=ddim5", "evaluation.likelihood_steps=5")
    search = ["diffusion.schedule=[linear,cosine]", "diffusion.num_timesteps=[10,15]"]  # the linear schedule needs more than 20
    request = from_form("digits-tiny-hybrid-cosine", small, "", search, 1, {"seed": 2})
    data_uri = prepare_experiment(request.experiment(), f"{bucket_uri}/data")
    with pytest.raises(TrainingError, match=r"no trial has finished: diffusion\.num_timesteps: the linear schedule"):
        tune(request.to_dict(), data_uri, "", bucket_uri, "tuning", {})
    uri = tuning_uri(request, data_uri, bucket_uri)
    assert [record.state for record in read_records(uri)] == ["failed"]
    assert "Trial 0 failed.</strong> diffusion.num_timesteps" in storage.read_bytes(f"{uri}/report.html").decode()

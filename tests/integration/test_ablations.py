"""Real ablations by the pipeline and by the command, with trials that fail, are killed or are reused."""

import contextlib
import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from components.ablations.directory import Plan, ablation_uri, experiment_of, loop_item, read_plan
from components.ablations.tracking import ORDER_METRIC, open_parent, open_trial
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials.record import record_uri
from pipelines.cli.paper.reproduce import beside_the_paper
from pipelines.compile import load
from pipelines.local.ablate import run_ablation
from pipelines.local.run import PipelineError, run_pipeline
from pipelines.services.services import Services
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment, Resources
from training.config.presets import preset
from training.config.run_keys import run_key
from training.data.format.manifest import read_manifest
from training.data.splits import default_data_uri, prepare_experiment
from training.models.unet import make_model
from training.storage.logs import list_logs, read_part
from training.tracking.client import connect

pytestmark = pytest.mark.slow

_FAST = (
    "optim.num_steps=4",
    "optim.checkpoint_interval=4",
    "evaluation.scoring_num_samples=60",
    "evaluation.scoring_sampling.spacing=ddim5",
    "evaluation.num_samples=80",
    "evaluation.sampling.spacing=5",
    "evaluation.likelihood_num_images=20",
    "evaluation.likelihood_steps=5",
)


def _request(name: str, *overrides: str, **arguments: Any) -> AblationRequest:
    return AblationRequest(name=name, scale="tiny", overrides=(*_FAST, *overrides), **arguments)


def _victim(request: AblationRequest, root: str, index: int) -> tuple[str, str]:
    """Label of a trial, and the directory of its run."""
    trial = request.trials()[index]
    data_uri = default_data_uri(trial.experiment.data, root)
    prepare_experiment(trial.experiment, data_uri)
    digest = read_manifest(f"{data_uri}/train").content_digest
    return trial.label, f"{root}/runs/{run_key(trial.experiment, digest)}"


@pytest.mark.timeout(1800)  # two runs of a whole pipeline
def test_in_the_pipeline_a_failed_trial_is_named_takes_no_other_down_and_alone_runs_again(services: Services, tmp_path: Path) -> None:
    home = dataclasses.replace(services, home=tmp_path)
    name = f"test-{uuid.uuid4().hex[:8]}"
    root = f"{services.bucket_uri}/{name}"
    grid = {"diffusion.vlb_weight": [0.001, 0.01]}
    arguments = {
        "ablation_name": "own-grid",
        "ablation_grid": grid,
        "experiment_preset": "digits-tiny-hybrid-cosine",
        "experiment_overrides": list(_FAST),
        "storage_root_uri": root,
        "tracking_experiment": name,
    }
    request = _request("own-grid", preset="digits-tiny-hybrid-cosine", grid=grid)
    uri = ablation_uri(request, root)
    label, run_uri = _victim(request, root, 1)
    damaged = f"{run_uri}/evaluations/final.json"
    storage.write_bytes(damaged, b"not JSON")

    with pytest.raises(PipelineError, match="measure-trial"):
        run_pipeline(load("ablation"), arguments, home, show=lambda line: None)
    told = storage.read_json(f"{uri}/table.json")
    assert told["failed"] == [label]
    assert len([row for row in told["rows"] if row["distance"]]) == 1
    page = storage.read_bytes(f"{uri}/report.html").decode()
    assert f"Failed: {label}." in page
    assert "is not JSON" in page

    storage.delete(damaged)
    lines: list[str] = []
    outputs = run_pipeline(load("ablation"), arguments, home, show=lines.append)
    assert sum("was trained and measured before" in line for line in lines) == 1
    assert sum("is already trained" in line for line in lines) == 1
    assert outputs["Output"] == f"{uri}/report.html"
    told = storage.read_json(f"{uri}/table.json")
    assert told["failed"] == []
    assert [row["distance"] > 0 for row in told["rows"]] == [True, True]
    for item, trial in zip(read_plan(uri).items, request.trials(), strict=True):
        assert experiment_of(loop_item(item)) == trial.experiment
        assert not any(override in str(loop_item(item)) for override in _FAST), "Argo would store them with each step"
    _check_the_trials_in_mlflow(name, request)


def _check_the_trials_in_mlflow(experiment_name: str, request: AblationRequest) -> None:
    """Check the parent run and a child run for each trial: each has all tags, and only the parameters that differ."""
    client = connect()
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`iddpm.role` = 'ablation'")
    assert parent.info.status == "FINISHED"
    for filtered in (
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
        f"tags.`iddpm.ablation` = '{request.name}' AND tags.`iddpm.role` = 'trial'",
        f"tags.`iddpm.ablation_key` = '{request.key()}' AND tags.`iddpm.role` = 'trial'",
        "tags.`iddpm.scale` = 'tiny' AND tags.`iddpm.data` = 'digits' AND tags.`iddpm.role` = 'trial'",
    ):
        runs = client.search_runs([experiment.experiment_id], filtered, order_by=[f"metrics.`{ORDER_METRIC}` ASC"])
        assert len(runs) == 2, filtered
    assert {frozenset(run.data.params) for run in runs} == {frozenset({"vlb_weight"})}
    everything = client.search_runs([experiment.experiment_id])
    tops = [run for run in everything if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in tops] == [parent.info.run_id]
    trainings = {run.data.tags["mlflow.parentRunId"] for run in everything if "iddpm.role" not in run.data.tags}
    assert trainings == {run.info.run_id for run in runs}
    pipelines = {run.info.run_id: run.data.tags["kfp.pipeline_run_id"] for run in runs}
    for training in (run.data.tags for run in everything if "iddpm.role" not in run.data.tags):  # the one that measured it last
        assert training["kfp.pipeline_run_id"] == pipelines[training["mlflow.parentRunId"]]
    assert len(set(pipelines.values())) == 2
    assert all(run.info.status == "FINISHED" and run.data.metrics[ORDER_METRIC] > 0 for run in runs)
    assert re.search(r"searchFilter=.*orderByKey=.*compareRunsMode=CHART", parent.data.tags["iddpm.compare_url"])


@pytest.mark.usefixtures("services")
def test_mlflow_groups_the_seeds_of_a_setting_by_a_tag() -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    request = _request("own-grid", "seed=7", preset="digits-tiny-hybrid-cosine", grid={"diffusion.vlb_weight": [0.001, 0.01]}, seeds=2)
    parent = open_parent(request, name, "s3://bucket/ablation")
    values = {trial.label: dict(trial.values) for trial in request.trials()}
    plan = Plan(request=request, items=[], parent_run_id=parent.run_id, parent_url=parent.url, tracking=name, values=values)
    for trial in request.trials():
        assert open_trial(plan, trial.label, trial, "", seed=trial.seed).finish("FINISHED")
    client = connect()
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`iddpm.role` = 'trial'")
    found = sorted((run.data.tags["iddpm.setting"], run.data.params["seed"]) for run in runs)
    assert found == [("vlb_weight=0.001", "7"), ("vlb_weight=0.001", "8"), ("vlb_weight=0.01", "7"), ("vlb_weight=0.01", "8")]


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_ablation_goes_on_with_the_missing_trials_alone(services: Services, capsys: pytest.CaptureFixture[str]) -> None:
    seed = f"seed={uuid.uuid4().int % 2**31}"
    request = _request("hybrid-weight", seed)
    uri = ablation_uri(request, services.bucket_uri)
    labels = [trial.label for trial in request.trials()]
    command = [str(Path(sys.executable).with_name("iddpm")), "ablate", "hybrid-weight"]
    command += [word for item in request.overrides for word in ("--set", item)]
    environment = {**os.environ, "IDDPM_HOME": str(services.home)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:  # as long as it takes, and pytest's timeout at most
        while not storage.exists(record_uri(uri, labels[0])):
            assert process.poll() is None
            time.sleep(0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done = [label for label in labels if storage.exists(record_uri(uri, label))]
    assert 0 < len(done) < 4
    before = {label: storage.read_bytes(record_uri(uri, label)) for label in done}

    label, run_uri = _victim(request, services.bucket_uri, 3)  # not begun, while a killed trial may go on for a moment
    other = request.trials()[3].experiment.override(["optim.learning_rate=0.5"])
    checkpoint.save(run_uri, 2, {"experiment.json": other.to_dict()})
    result = run_ablation(request, services)
    assert list(result.failed) == [label]
    assert "is a checkpoint of another experiment" in result.failed[label]

    checkpoint.remove(run_uri, [2])
    capsys.readouterr()
    slower = {"train": Resources(microbatch_size=8, num_threads=1), "evaluate": Resources(num_workers=2)}  # no part of a run's key
    assert run_ablation(request, services, resources=slower).failed == {}
    output = capsys.readouterr().out
    assert output.count("was trained and measured before") == 3
    assert f"{label}: trial 4 of 4" in output
    assert f"{label} is done" in output
    assert {label: storage.read_bytes(record_uri(uri, label)) for label in done} == before
    folder = services.home / "ablations" / request.folder()
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == labels
    assert all(float(row["distance"]) > 0 and row["distance_difference"] == "" for row in rows)
    assert [float(row["distance_paper"]) for row in rows] == [28.04, 27.36, 30.89, 34.35]
    beside = beside_the_paper(folder)  # as `iddpm reproduce` prints a table
    assert [line.split()[-3] for line in beside[1:]] == ["28.04", "27.36", "30.89", "34.35"]
    page = (folder / "report.html").read_text()
    assert "handwritten digits" in page
    assert not re.search(r'(src|href)="(?!#|data:|http://127)', page), "the page loads something from elsewhere"
    assert f"{folder.name}/report.html" in (services.home / "ablations" / "index.html").read_text()


@pytest.mark.parametrize(
    ("sent", "shell", "code"),
    [
        (signal.SIGINT, [], 130),
        (signal.SIGTERM, ["sh", "-c", 'trap "" INT; exec "$@"', "sh"], 143),  # as a shell starts a program in the background
    ],
)
def test_an_ablation_that_is_stopped_saves_what_every_trial_has_trained(
    services: Services, sent: signal.Signals, shell: list[str], code: int
) -> None:
    changes = (f"seed={uuid.uuid4().int % 2**31}", "optim.num_steps=100000", "optim.checkpoint_interval=50000")
    request = AblationRequest(name="hybrid-weight", scale="tiny", overrides=changes)
    labels = [trial.label for trial in request.trials()[:2]]
    command = [*shell, str(Path(sys.executable).with_name("iddpm")), "ablate", "hybrid-weight", "--parallel-trials", "2"]
    command += [word for item in changes for word in ("--set", item)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "IDDPM_HOME": str(services.home)},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        while not all(f"{label}: step " in text for label in labels):
            line = process.stdout.readline()
            assert line, text
            text += line
        process.send_signal(sent)
        text += process.communicate()[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, text
    for index, label in enumerate(labels):
        _, run_uri = _victim(request, services.bucket_uri, index)
        (step,) = checkpoint.steps(run_uri)
        assert f"[hybrid-weight] {label}: stopped on request: saved at step {step:,}" in text
        (log,) = list_logs(run_uri, "train")
        assert f"iddpm| {label}: stopped on request" in "\n".join(read_part(log.parts[-1].uri))
        assert not storage.exists(record_uri(ablation_uri(request, services.bucket_uri), label))
    plan = read_plan(ablation_uri(request, services.bucket_uri))
    client = connect()
    found = client.search_runs([client.get_run(plan.parent_run_id).info.experiment_id], f"tags.`iddpm.ablation_key` = '{request.key()}'")
    assert {run.info.status for run in found} == {"KILLED"}, "the ablation's run too, not only those of its trials"


def _write_run(run_uri: str, experiment: Experiment) -> str:
    """A run's last checkpoint, of a network whose last layers are random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(run_uri))
        state = {key: value + 0.02 * torch.randn(value.shape) for key, value in make_model(experiment).state_dict().items()}
    files: dict[str, Any] = {"experiment.json": experiment.to_dict(), "model.pt": state}
    files |= {f"ema_{decay}.pt": state for decay in experiment.optim.ema_decays}
    checkpoint.save(run_uri, 100, files)
    return run_uri


@pytest.fixture(scope="module")
def runs(services: Services) -> dict[str, str]:
    """Runs that look trained, one for each role of the evaluation."""
    root = f"{services.bucket_uri}/runs-of-{uuid.uuid4().hex[:8]}"
    kinds = {"hybrid": "hybrid-cosine", "vlb": "vlb-cosine", "hybrid-linear": "hybrid-linear", "simple": "simple-cosine"}
    small = [item for item in _FAST if not item.startswith("optim.")]
    return {
        role: _write_run(
            f"{root}/{role}", preset(f"digits-tiny-{kind}", [*small, "diffusion.num_timesteps=40", "evaluation.num_samples=40"])
        )
        for role, kind in kinds.items()
    }


@pytest.mark.parametrize(
    ("name", "roles", "shown"),
    [
        ("sampling-steps", ("hybrid", "hybrid-linear", "simple"), "Distance by number of sampling steps"),
        ("likelihood-steps", ("hybrid", "vlb"), "Negative log-likelihood by number of evaluation steps"),
        ("vlb-ratio", ("hybrid", "vlb"), "Ratio of the terms of the bound"),
        ("ensemble", ("hybrid", "vlb"), "ensemble"),
        ("same-noise", ("hybrid", "vlb"), "The same noise in each column"),
    ],
)
@pytest.mark.usefixtures("ray_cluster")
def test_an_evaluation_takes_runs_and_trains_nothing(
    services: Services, runs: dict[str, str], name: str, roles: tuple[str, ...], shown: str
) -> None:
    request = AblationRequest(name=name, scale="tiny", runs={role: runs[role] for role in roles})
    done = run_ablation(request, services)
    assert done.failed == {}
    assert {item["run_uri"] for item in read_plan(done.uri).items} == {runs[role] for role in roles}
    page = (done.folder / "report.html").read_text()
    assert shown in page
    assert "<svg" in page or name == "same-noise"
    assert "data:image/png;base64" in page or name in ("vlb-ratio", "likelihood-steps")
    told = storage.read_json(f"{done.uri}/table.json")
    assert told["findings"]
    assert not [uri for uri in storage.list_uris(f"{runs[roles[0]]}/checkpoints") if "step=00000100" not in uri]


def test_an_evaluation_of_a_run_that_is_not_there_says_how_to_get_it(services: Services) -> None:
    request = _request("vlb-ratio", f"seed={uuid.uuid4().int % 2**31}")
    with pytest.raises(UserError, match=r"`iddpm ablate objective-schedule --scale tiny .*` trains it, or name a run .* --run hybrid=URI"):
        run_ablation(request, services)

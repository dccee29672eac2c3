"""The train and nightly pipelines for real: kfp.local, Ray, S3 and MLflow, on the digits at tiny settings."""

import contextlib
import copy
import dataclasses
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from webhook_receiver import receive

from evaluation.monitoring.detector import NUM_REDRAWN
from evaluation.monitoring.nightly import read_history
from evaluation.selection.resolve import resolve_model
from pipelines.client.stored_logs import find_directories
from pipelines.compile import load
from pipelines.local.run import PipelineError, run_pipeline
from pipelines.services.services import Services
from training import storage
from training.checkpoints import checkpoint
from training.storage.logs import list_logs, read_part
from training.tracking.client import connect
from training.tracking.registry import resolve
from training.tracking.runs import TrackingError, attach

pytestmark = pytest.mark.slow

_PRESET = "digits-tiny-hybrid-cosine"
_FAST = (
    "evaluation.scoring_num_samples=100",
    "evaluation.num_samples=200",
    "evaluation.sampling.spacing=10",
    "evaluation.scoring_sampling.spacing=ddim5",
    "evaluation.rescore_best=1",
    "evaluation.likelihood_num_images=20",
    "evaluation.likelihood_steps=10",
)
_TRAINED = ["optim.num_steps=150", "optim.checkpoint_interval=50", *_FAST]


class _Here:
    """A place of its own in S3 and MLflow, and the runner for it."""

    def __init__(self, services: Services, home: Path) -> None:
        self.services = dataclasses.replace(services, home=home)
        self.home = home
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.root_uri = f"{services.bucket_uri}/{self.name}"

    def with_env(self, **variables: str) -> "_Here":
        """The same place, with more in the environment of the steps."""
        other = copy.copy(self)
        other.services = dataclasses.replace(self.services, env={**self.services.env, **variables})
        return other

    def run(self, pipeline: str, **arguments: Any) -> tuple[dict[str, Any], list[str]]:
        lines: list[str] = []
        everywhere = {"storage_root_uri": self.root_uri}
        if pipeline != "nightly-fid":
            everywhere["tracking_experiment"] = self.name
        outputs = run_pipeline(load(pipeline), {**everywhere, **arguments}, self.services, show=lines.append)
        return outputs, lines


@pytest.fixture(scope="module")
def here(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Here]:
    """Run in a folder of somebody who has modules of the same names as ours."""
    theirs = tmp_path_factory.mktemp("theirs")
    for name in ("training", "evaluation", "components", "pipelines"):
        (theirs / f"{name}.py").write_text("raise RuntimeError('a file of the working directory was imported')")
    with contextlib.chdir(theirs):
        yield _Here(services, tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def run_uri(here: _Here) -> str:
    outputs, lines = here.run("train", experiment_preset=_PRESET, experiment_overrides=_TRAINED)
    assert [line for line in lines if "done in" in line][-1].startswith("[7/7 close run]")
    return str(outputs["Output"])


def test_the_train_pipeline_leaves_a_scored_reported_and_registered_model(here: _Here, run_uri: str) -> None:
    trained = storage.read_json(f"{run_uri}/result.json")
    final = storage.read_json(f"{run_uri}/evaluations/final.json")
    assert trained["step"] == 150
    assert final["distance_name"] == "FD(digits-classifier)"
    assert final["distance"] < 60  # of noise it is above 80
    assert b"FD(digits-classifier)" in storage.read_bytes(f"{run_uri}/evaluations/report.html")
    tracked = attach(trained["tracking_run_id"])
    assert tracked.metric_history("final/distance") == [(final["step"], final["distance"])]
    assert [step for step, _ in tracked.metric_history("score/best")] == [50, 100, 150]
    params = connect().get_run(trained["tracking_run_id"]).data.params
    assert (params["optim.num_steps"], params["evaluation.memorisation"]) == ("150", "True")
    logs = {(log.step, log.source): read_part(log.parts[-1].uri) for log in list_logs(run_uri)}
    assert logs.keys() >= {("train", "step"), ("train", "rank-0.out"), ("evaluate", "step")}
    assert any("step 150/150" in line for line in logs["train", "rank-0.out"])
    assert any("step 150/150" in line for line in logs["train", "step"])
    pipeline_uri, found = find_directories(run_uri.rpartition("/")[2], by_pipeline=False)
    assert found == run_uri
    logs = {(log.step, log.source): read_part(log.parts[-1].uri) for log in list_logs(pipeline_uri)}
    assert logs.keys() == {("settings", "step")}  # the closing of a run that went well prints nothing
    assert any("train: 1 worker(s)" in line for line in logs["settings", "step"])
    key = run_uri.rpartition("/")[2]
    assert {resolve_model(name) for name in (run_uri, key, key[-10:], f"runs:/{key}")} == {resolve_model(f"runs:/{tracked.run_id}")}
    with pytest.raises(TrackingError, match="MLflow knows no training 0123456789; `iddpm runs` lists them"):
        resolve_model("0123456789")
    champion = resolve(_PRESET)
    assert storage.exists(f"{champion.checkpoint_uri}/complete.json")
    pages = list(here.home.glob("pipelines/*/report/page"))
    assert pages
    assert "<html" in pages[0].read_text()


def test_the_same_pipeline_again_reuses_what_is_there_and_says_so(here: _Here, run_uri: str) -> None:
    outputs, lines = here.run("train", experiment_preset=_PRESET, experiment_overrides=_TRAINED)
    said = "\n".join(lines)
    assert outputs["Output"] == run_uri
    assert "are there already" in said
    assert "is already trained to step 150" in said
    assert "was evaluated by this protocol before" in said
    assert not re.search(r"\] step [\d,]+/", said)  # a progress line of training


def test_the_nightly_check_passes_a_healthy_model_and_fails_a_damaged_one_and_says_by_how_much(here: _Here, run_uri: str) -> None:
    outputs, _ = here.run("nightly-fid", model=run_uri)
    assert "(mean of 1 healthy score); the baseline has 2 of 20 nights" in outputs["Output"]  # the first one is the run's own
    tracking_run_id = storage.read_json(f"{run_uri}/result.json")["tracking_run_id"]
    here.run("nightly-fid", model=f"runs:/{tracking_run_id}")
    steps = [{log.step for log in list_logs(directory)} for directory in _pipeline_directories(here)]
    assert len([each for each in steps if each >= {"settings", "score-model"}]) == 2
    history = read_history(run_uri)
    assert history is not None
    scores = [night.distance for night in history.nights]
    assert attach(tracking_run_id).metric_history("nightly/score") == list(enumerate(scores))
    assert len(scores) == 3

    best = storage.read_json(f"{run_uri}/evaluations/choice.json")
    _damage(run_uri, int(best["step"]))
    with (
        receive() as receiver,
        pytest.raises(PipelineError, match=r"FD\(digits-classifier\) has regressed: \S+ against \S+ \(mean of 3") as caught,
    ):
        here.with_env(IDDPM_WEBHOOK_URL=receiver.url).run("nightly-fid", model=run_uri)
    assert re.search(r"worse by \S+ ± \S+ \(95%\), \S+ standard errors, since \S+ \(1 night\); a jump", str(caught.value))
    damaged = read_history(run_uri)
    assert damaged is not None
    assert len(damaged.nights[-1].redrawn) == NUM_REDRAWN
    (message,) = receiver.messages
    assert message["event"] == "regression"
    assert message["numbers"]["change"] > 0
    assert message["numbers"]["reason"] in message["text"]
    assert "/artifacts/nightly.html" in message["links"]["The night in MLflow"]


def _pipeline_directories(here: _Here) -> set[str]:
    uris = storage.list_uris(f"{here.root_uri}/pipelines")
    return {uri.partition("/logs/")[0] for uri in uris}


def _damage(run_uri: str, step: int) -> None:
    """Adds noise to every weight of a checkpoint."""
    uri = checkpoint.checkpoint_uri(run_uri, step)
    files: dict[str, Any] = {}
    for name in checkpoint.file_names(uri):
        if not name.endswith(".pt"):
            files[name] = checkpoint.load_bytes(uri, name)
            continue
        state = checkpoint.load(uri, name)
        generator = torch.Generator().manual_seed(0)
        files[name] = {
            key: value + 0.5 * torch.randn(value.shape, generator=generator) if name.startswith(("ema", "model")) else value
            for key, value in state.items()
        }
    checkpoint.save(run_uri, step, files)

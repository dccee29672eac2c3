"""A training in this process, without Ray: it ends, stops and resumes like one under Ray Train."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Resources
from training.config.presets import preset
from training.data.preparation.prepare import Options, prepare
from training.data.sources.published import digits
from training.distributed.signals import StopFlag
from training.launch import in_process, ray_train
from training.loop.interfaces import STOP_REQUESTED, Job, TrainingError
from training.tracking.metrics_file import METRICS

EXPERIMENT = preset(
    "digits-tiny-hybrid-cosine",
    ["optim.num_steps=30", "optim.checkpoint_interval=10", "optim.global_batch_size=8"],
)


@dataclasses.dataclass
class Scores:
    """A scorer that notes what it is asked, and at a step fails or stops the training.

    Attributes:
        stop: The flag that is set at step 10.
    """

    failing: Collection[int] = ()
    stop: StopFlag | None = None
    seen: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def score(self, checkpoint_uri: str) -> Mapping[str, Any]:
        step = checkpoint.step_of(checkpoint_uri)
        self.seen.append((step, torch.get_num_threads()))
        if step in self.failing:
            raise ValueError("no such images")
        if self.stop is not None:
            self.stop.stop_with(RuntimeError("asked to stop"))
        return {"step": step, "value": 1.0}

    def history(self, run_uri: str) -> Sequence[Mapping[str, Any]]:
        return []

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        return None

    def metrics(self, score: Mapping[str, Any]) -> Mapping[str, float]:
        return {"score": 1.0}

    def image(self, score: Mapping[str, Any]) -> None:
        return None

    def keep(self, history: Sequence[Mapping[str, Any]]) -> Collection[int]:
        return {int(score["step"]) for score in history}


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    prepare(digits("test"), str(folder / "train"), image_size=8, options=Options(resize="none"))
    return str(folder)


def _job(run: Path, data_uri: str, scorer: Scores | None = None, **resources: Any) -> Job:
    resources = {"num_threads": 1, **resources}
    return Job(experiment=EXPERIMENT, resources=Resources(**resources), data_uri=data_uri, run_uri=str(run), scorer=scorer)


def _weights(run: Path) -> bytes:
    return storage.read_bytes(f"{checkpoint.checkpoint_uri(str(run), 30)}/model.pt")


def test_every_checkpoint_is_scored_with_the_same_threads_and_a_failed_score_ends_nothing(
    tmp_path: Path, data_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer, threads = Scores(failing=(10,)), torch.get_num_threads()
    assert in_process.train(_job(tmp_path, data_uri, scorer)).step == 30
    assert {step for step, _ in scorer.seen} == {10, 20, 30}
    assert {number for _, number in scorer.seen} == {1}
    assert torch.get_num_threads() == threads
    assert "the score of step 10 failed: no such images" in capsys.readouterr().out
    assert not ray.is_initialized()


def test_a_request_to_stop_saves_a_checkpoint_and_the_same_call_goes_on_to_the_same_weights(
    tmp_path: Path, data_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = StopFlag()
    stopped = in_process.train(_job(tmp_path / "stopped", data_uri, Scores(stop=flag)), stop=flag)
    assert stopped.stop_reason == STOP_REQUESTED
    assert 10 < stopped.step < 30
    assert max(checkpoint.steps(str(tmp_path / "stopped"))) == stopped.step
    assert in_process.train(_job(tmp_path / "stopped", data_uri)).step == 30
    assert f"resuming from step {stopped.step}" in capsys.readouterr().out
    in_process.train(_job(tmp_path / "whole", data_uri))
    assert _weights(tmp_path / "stopped") == _weights(tmp_path / "whole")


def test_a_flag_that_is_set_before_it_begins_ends_it_with_nothing_written(tmp_path: Path, data_uri: str) -> None:
    flag = StopFlag()
    flag.stop_with(RuntimeError("asked to stop"))
    with pytest.raises(RuntimeError, match="asked to stop"):
        in_process.train(_job(tmp_path / "run", data_uri), stop=flag)
    assert not (tmp_path / "run").exists()


def test_a_damaged_record_of_metrics_is_refused_before_the_first_update(
    tmp_path: Path, data_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is written before each checkpoint, so that none could be."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody listens
    storage.write_bytes(f"{tmp_path}/{METRICS}", b'{"step": 1, "time": 3, "values": {"a": 1.0}}\n{"step": 2, "ti')
    with pytest.raises(storage.StorageError, match=f"{METRICS}: line 2 is no step with its values"):
        in_process.train(dataclasses.replace(_job(tmp_path, data_uri), tracking_run_id="1"))
    assert "is left out" not in capsys.readouterr().out


def test_a_training_that_fails_reads_no_data_ahead_any_more(tmp_path: Path) -> None:
    prepare(digits("test"), str(tmp_path / "data/train"), image_size=8, options=Options(resize="none", rows_per_shard=5))
    for shard in (tmp_path / "data/train").glob("*.parquet"):
        shard.unlink()
    streamed = EXPERIMENT.override(["data.disk_budget_bytes=16000"])
    job = dataclasses.replace(_job(tmp_path / "run", str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")), experiment=streamed)
    with pytest.raises(UserError, match="the shard is missing") as caught:
        in_process.train(job)
    deadline = time.monotonic() + 10
    while (reading := [each.name for each in threading.enumerate() if "iddpm-stream" in each.name]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reading == [], f"its thread lives on with {caught.value}, whose frames hold the loader"


def test_what_one_process_can_not_train_is_refused(tmp_path: Path, data_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"one process trains with resources\.num_workers 1, got 2"):
        in_process.train(_job(tmp_path, data_uri, num_workers=2))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(TrainingError, match="this machine shows 0 GPUs"):
        in_process.train(_job(tmp_path, data_uri, num_gpus_per_worker=1))


@pytest.mark.slow
def test_it_gives_the_weights_of_ray_train_to_the_bit(tmp_path: Path, data_uri: str) -> None:
    in_process.train(_job(tmp_path / "here", data_uri))
    ray_train.train(_job(tmp_path / "ray", data_uri))
    assert _weights(tmp_path / "here") == _weights(tmp_path / "ray")

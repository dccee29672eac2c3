"""What can't be trained is refused in one line before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.checkpoints import checkpoint
from training.config.experiment import Resources
from training.config.presets import preset
from training.launch.ray_train import train
from training.loop.interfaces import TrainingError
from training.loop.job import Job

EXPERIMENT = preset("digits-hybrid-cosine")


def job(run_uri: Path, **resources: int) -> Job:
    return Job(experiment=EXPERIMENT, resources=Resources(**resources), data_uri="none", run_uri=str(run_uri))


@pytest.fixture(autouse=True)
def ray_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.launch.ray_train.ray_session", lambda *args, **kwargs: pytest.fail("Ray is started"))


def test_more_workers_than_images(tmp_path: Path) -> None:
    size = EXPERIMENT.optim.global_batch_size
    with pytest.raises(TrainingError, match=f"optim.global_batch_size {size} is smaller than the {size + 1} workers"):
        train(job(tmp_path, num_workers=size + 1))


def test_more_workers_than_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(TrainingError, match="for at least 2 workers, but this machine shows 1 GPUs; use fewer workers"):
        train(job(tmp_path, num_workers=4, min_workers=2, num_gpus_per_worker=1))


def test_a_checkpoint_of_another_experiment(tmp_path: Path) -> None:
    other = EXPERIMENT.override(["optim.learning_rate=0.5", "seed=7"])
    checkpoint.save(str(tmp_path), 10, {"experiment.json": other.to_json().encode()})
    with pytest.raises(TrainingError, match=r"step=00000010 is a checkpoint of another experiment \(optim.learning_rate is 0.5 there and"):
        train(job(tmp_path))

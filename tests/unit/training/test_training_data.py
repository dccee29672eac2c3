"""Training on a prepared data set, however its images reach the device: the same run, or one that is the same again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config.experiment import (
    DataConfig,
    DiffusionConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    OptimConfig,
    Resources,
    SamplingConfig,
)
from training.data.loading.loader import Loader
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.loop.interfaces import Hooks
from training.loop.trainer import Trainer

NUM_BYTES = 1497 * 8 * 8
EXPERIMENT = Experiment(
    name="tiny",
    data=DataConfig(name="digits", image_size=8, image_channels=1, num_classes=10, resize="none"),
    model=ModelConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), class_conditional=True),
    diffusion=DiffusionConfig(num_timesteps=10),
    evaluation=EvaluationConfig(sampling=SamplingConfig(), scoring_sampling=SamplingConfig(), likelihood_steps=10),
    optim=OptimConfig(global_batch_size=100, learning_rate=1e-3, num_steps=20, checkpoint_interval=10, ema_decays=(0.9,)),
)


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "train")
    prepare(digits("train"), uri, image_size=8, options=Options(resize="none", rows_per_shard=32))
    return uri


def trained(loader: Loader, *, start: Mapping[int, Any] | None = None) -> dict[int, Mapping[str, Any]]:
    """The checkpoints of a run, or of its second half from the given ones."""
    torch.set_num_threads(1)
    saved: dict[int, Mapping[str, Any]] = {}
    hooks = Hooks(save=lambda step, files: saved.update({step: copy.deepcopy(dict(files))}))
    trainer = Trainer(EXPERIMENT, Resources(), loader, hooks=hooks)
    if start is not None:
        trainer.restore(lambda name: copy.deepcopy(start[10][name]))
    trainer.train()
    return saved


def weights(saved: Mapping[int, Mapping[str, Any]]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in saved[20]["model.pt"].values()])


def loader(uri: str, cache: Path, **options: Any) -> Loader:
    return Loader(uri, seed=0, global_batch_size=EXPERIMENT.optim.global_batch_size, cache_dir=cache, **options)


def test_data_in_the_devices_memory_train_the_same_model(data_uri: str, tmp_path: Path) -> None:
    staged = trained(loader(data_uri, tmp_path))
    assert any(tmp_path.iterdir())
    assert torch.equal(weights(staged), weights(trained(loader(data_uri, tmp_path, device="cpu"))))
    assert torch.equal(weights(staged), weights(trained(loader(data_uri, tmp_path, disk_budget_bytes=NUM_BYTES))))


def test_data_larger_than_the_disk_budget_train_another_model_and_always_that_one(data_uri: str, tmp_path: Path) -> None:
    budget = NUM_BYTES - 1
    streamed = trained(loader(data_uri, tmp_path / "a", disk_budget_bytes=budget))
    assert not torch.equal(weights(streamed), weights(trained(loader(data_uri, tmp_path / "b"))))
    resumed = trained(loader(data_uri, tmp_path / "c", disk_budget_bytes=budget), start=streamed)
    assert list(resumed) == [20]
    assert torch.equal(weights(streamed), weights(resumed))

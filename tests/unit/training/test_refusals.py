"""Refusals in one line, before Ray starts, of what can't be trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from components.steps.train import train_run
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Resources
from training.config.presets import preset
from training.data.preparation.prepare import Options, prepare
from training.data.sources.published import digits
from training.distributed import arithmetic
from training.distributed.arithmetic import require_fast
from training.launch.ray_train import train
from training.loop.interfaces import Job, TrainingError

EXPERIMENT = preset("digits-hybrid-cosine")


def job(run_uri: Path, **resources: Any) -> Job:
    return Job(experiment=EXPERIMENT, resources=Resources(**resources), data_uri="none", run_uri=str(run_uri))


@pytest.fixture(autouse=True)
def ray_does_not_start() -> Iterator[None]:
    yield
    assert not ray.is_initialized()


def test_more_workers_than_images(tmp_path: Path) -> None:
    size = EXPERIMENT.optim.global_batch_size
    with pytest.raises(TrainingError, match=f"optim.global_batch_size {size} is smaller than the {size + 1} workers"):
        train(job(tmp_path, num_workers=size + 1))


def test_a_final_evaluation_that_is_guided_by_a_checkpoint_that_will_not_exist(tmp_path: Path) -> None:
    guided = EXPERIMENT.override(["evaluation.sampling.guidance_scale=2", "evaluation.sampling.guidance_step=300"])
    with pytest.raises(UserError, match="no checkpoint of step 300"):
        train(dataclasses.replace(job(tmp_path), experiment=guided))


def test_more_workers_than_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(TrainingError, match="for at least 2 workers, but this machine shows 1 GPUs; use fewer workers"):
        train(job(tmp_path, num_workers=4, min_workers=2, num_gpus_per_worker=1))


@pytest.mark.parametrize("capabilities", [{"architecture": "x86_64", "cpu_name": "Xeon E5"}, {"architecture": "Xeon E5"}])
def test_bf16_on_a_processor_that_is_slower_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any]) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    monkeypatch.setattr(arithmetic, "convolution_seconds", lambda: (0.0101, 0.02))
    require_fast("fp32", "cpu")
    require_fast("bf16", "cuda")
    message = r"bf16 is slower than fp32 on this processor \(Xeon E5\): a convolution took 20\.0 ms in bf16 and 10\.1 ms in fp32; use fp32"
    with pytest.raises(UserError, match=message):
        train(job(tmp_path, precision="bf16"))


def test_bf16_on_a_processor_that_is_faster_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "convolution_seconds", lambda: (0.02, 0.0101))
    require_fast("bf16", "cpu")


def test_a_convolution_is_timed_once_in_each_precision() -> None:
    state = torch.random.get_rng_state()
    arithmetic.convolution_seconds.cache_clear()
    fp32, bf16 = arithmetic.convolution_seconds()
    assert (fp32, bf16) == arithmetic.convolution_seconds()
    # Products and sums of 4 images are 1.2e9 operations: no processor does more than 1e14 of them a second.
    assert min(fp32, bf16) > 1e-5
    assert torch.equal(torch.random.get_rng_state(), state), "the timing draws from the numbers that a training draws from"


def test_a_checkpoint_of_another_experiment(tmp_path: Path) -> None:
    other = EXPERIMENT.override(["optim.learning_rate=0.5", "seed=7"])
    checkpoint.save(str(tmp_path), 10, {"experiment.json": other.to_json().encode()})
    with pytest.raises(TrainingError, match=r"step=00000010 is a checkpoint of another experiment \(optim.learning_rate is 0.5 there and"):
        train(job(tmp_path))


def test_a_checkpoint_of_an_experiment_that_has_the_default_of_a_later_field(tmp_path: Path) -> None:
    checkpoint.save(str(tmp_path), 10, {"experiment.json": EXPERIMENT.to_json().encode()})
    mine = dataclasses.replace(job(tmp_path), experiment=EXPERIMENT.override(["model.norm_groups=8"]))
    with pytest.raises(TrainingError, match=r"another experiment \(model.norm_groups is 32 there and 8 here\); train in another directory"):
        train(mine)


def test_a_checkpoint_of_a_later_version(tmp_path: Path) -> None:
    later = EXPERIMENT.to_dict() | {"later": 1}
    checkpoint.save(str(tmp_path), 10, {"experiment.json": later})
    with pytest.raises(TrainingError, match=r"step=00000010/experiment\.json: .*later.*; it is damaged or of another version, so check"):
        train(job(tmp_path))


def test_a_data_set_in_memory_that_the_experiment_streams(tmp_path: Path) -> None:
    prepare(digits("test"), str(tmp_path / "data" / "train"), image_size=8, options=Options(resize="none"))
    streamed = dataclasses.replace(
        job(tmp_path / "run", resident_data=True),
        data_uri=str(tmp_path / "data"),
        experiment=EXPERIMENT.override(["data.disk_budget_bytes=1000"]),
    )
    with pytest.raises(TrainingError, match=r"resident_data keeps the whole data set of 18\.8 KiB in memory, .* raise the budget"):
        train(streamed)


def test_rank_0_retries_storage_for_less_time_than_the_others_wait_for_it() -> None:
    for seconds in (1, 8, 600, 10_000):
        assert job(Path(), collective_timeout_seconds=seconds).retry_seconds == min(seconds / 2, 600)


def test_a_pipeline_whose_evaluation_would_find_no_test_images(tmp_path: Path) -> None:
    prepare(digits("train"), str(tmp_path / "data" / "train"), image_size=8, options=Options(resize="none"))
    with pytest.raises(UserError, match=r"has no test images, and the evaluation computes bits/dim of them\..*num_test"):
        train_run(EXPERIMENT.to_json(), str(tmp_path / "data"), "", str(tmp_path / "root"), "iddpm", {}, pipeline_run_id="a-run")
    assert not (tmp_path / "root").exists()

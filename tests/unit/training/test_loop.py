"""The loop computes the same numbers for any number of workers, any microbatch and any interruption."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rounding import U32
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from training.checkpoints import checkpoint
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
from training.diffusion.losses import LossTerms
from training.diffusion.pixels import Batch, to_model_range
from training.diffusion.process import Denoiser
from training.diffusion.samplers.sampler import make_sampler, make_sampling_process, sample_loop
from training.distributed.ranks import broadcast_object, shard_bounds
from training.launch.torchrun import RandomImages
from training.loop import trainer as loop
from training.loop.interfaces import DivergedError, Hooks, TrainingError
from training.loop.meter import Meter
from training.loop.train_state import learning_rate_at
from training.loop.trainer import MAX_CONSECUTIVE_SKIPS, Trainer, is_log_boundary
from training.models.unet import make_model

CURVE = Path(__file__).parents[2] / "golden" / "training_curve.json"


def tiny(**optim: Any) -> Experiment:
    return Experiment(
        name="tiny",
        data=DataConfig(name="random", image_size=8, image_channels=1, num_classes=3, random_flip=True),
        model=ModelConfig(
            model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), class_conditional=True, dropout=0.1
        ),
        diffusion=DiffusionConfig(num_timesteps=10, timestep_sampler="loss_second_moment"),
        evaluation=EvaluationConfig(sampling=SamplingConfig(), scoring_sampling=SamplingConfig(), likelihood_steps=10),
        optim=OptimConfig(
            **{
                "global_batch_size": 7,
                "learning_rate": 1e-3,
                "num_steps": 24,
                "checkpoint_interval": 4,
                "ema_decays": (0.5, 0.9),
                "ema_snapshot_stds": (0.05, 0.1),
                **optim,
            }
        ),
    )


class Record:
    """Hooks that record their arguments."""

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}
        self.saved: dict[int, Mapping[str, Any]] = {}

    def hooks(self, stop_at: int | None = None) -> Hooks:
        return Hooks(
            log=lambda step, metrics: self.logged.update({step: dict(metrics)}),
            save=lambda step, files: self.saved.update({step: copy.deepcopy(dict(files))}),
            should_stop=lambda step: "enough" if stop_at is not None and step >= stop_at else None,
        )


def trainer(experiment: Experiment, record: Record | None = None, resources: Resources | None = None, **kwargs: Any) -> Trainer:
    torch.set_num_threads(1)
    hooks = kwargs.pop("hooks", (record or Record()).hooks())
    return Trainer(experiment, resources or Resources(), RandomImages(experiment, torch.device("cpu")), hooks=hooks, **kwargs)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{path}/{key}").items()}
    return {path: value}


def assert_identical(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    left, right = flat(a), flat(b)
    assert left.keys() == right.keys()
    for path, value in left.items():
        same = torch.equal(value, right[path]) if isinstance(value, torch.Tensor) else value == right[path]
        assert same, path


def steady(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics without those that a clock measured."""
    return {name: value for name, value in metrics.items() if name not in ("seconds", "images_per_second")}


def test_an_interrupted_and_resumed_run_is_bitwise_the_undisturbed_one() -> None:
    whole, first, second = Record(), Record(), Record()
    trainer(tiny(), whole).train()
    trainer(tiny(), first).train(12)
    resumed = trainer(tiny(), second)
    resumed.restore(lambda name: first.saved[12][name])
    outcome = resumed.train()
    assert outcome.step == 24
    assert_identical(whole.saved[24], second.saved[24])
    for step in (16, 20, 24):
        assert steady(whole.logged[step]) == steady(second.logged[step])


def in_channels_last(value: Any) -> Any:
    """Return a copy whose tensors of four axes lie in memory as those of a compiled network on a GPU do."""
    if isinstance(value, torch.Tensor):
        return value.clone(memory_format=torch.channels_last) if value.ndim == 4 else value
    if isinstance(value, Mapping):
        return {key: in_channels_last(item) for key, item in value.items()}
    return [in_channels_last(item) for item in value] if isinstance(value, list) else value


def test_a_checkpoint_with_another_memory_order_resumes_bitwise_the_same() -> None:
    whole, first, second = Record(), Record(), Record()
    trainer(tiny(), whole).train(16)
    trainer(tiny(), first).train(12)
    resumed = trainer(tiny(), second)
    resumed.restore(lambda name: in_channels_last(first.saved[12][name]))
    resumed.train(16)
    assert_identical(whole.saved[16], second.saved[16])


@pytest.mark.slow
@pytest.mark.parametrize("option", ["model.time_embedding=sin_cos", "model.downsample_padding=right_bottom", "model.norm_eps=1e-6"])
def test_a_network_with_an_option_of_the_earlier_code_trains_resumes_and_samples(tmp_path: Path, option: str) -> None:
    """Each alone: with all three, one that does nothing would hide behind the others."""
    experiment = tiny(num_steps=8).override([option])
    whole, first, second, usual = Record(), Record(), Record(), Record()
    trainer(experiment, whole).train()
    assert 0 < whole.logged[8]["loss"] < whole.logged[4]["loss"]  # the batch is the same at each step; NaN compares false
    trainer(tiny(num_steps=4), usual).train()
    trainer(experiment, first).train(4)
    assert any(not torch.equal(tensor, usual.saved[4]["model.pt"][name]) for name, tensor in first.saved[4]["model.pt"].items())

    checkpoint.save(str(tmp_path), 4, first.saved[4])
    uri = checkpoint.latest(str(tmp_path))
    assert uri is not None
    resumed = trainer(checkpoint.load_experiment(uri), second)
    resumed.restore(lambda name: first.saved[4][name] if name == "state.json" else checkpoint.load(uri, name))
    resumed.train()
    assert_identical(whole.saved[8], second.saved[8])

    checkpoint.save(str(tmp_path), 8, second.saved[8])
    uri = checkpoint.latest(str(tmp_path))
    assert uri is not None
    model = make_model(checkpoint.load_experiment(uri)).eval()
    model.load_state_dict(checkpoint.load_model_state(uri, checkpoint.MODEL))
    generator = torch.Generator().manual_seed(0)
    x_t, noise = torch.randn(2, 1, 8, 8, generator=generator), torch.randn(9, 2, 1, 8, 8, generator=generator)
    process = make_sampling_process(experiment.diffusion, experiment.evaluation.sampling)
    with torch.no_grad():
        denoiser = Denoiser(process, model, conditioning={"y": torch.tensor([0, 2])})
        samples = sample_loop(denoiser, make_sampler(experiment.evaluation.sampling), x_t, noise=lambda k: noise[k - 1])
    assert samples.isfinite().all()
    assert float(samples.std()) > 0.1


def interrupted(record: Record, step: int, **kwargs: Any) -> Trainer:
    """A run that is interrupted after that update."""
    hooks = replace(record.hooks(), interruption=lambda: "a signal" if run.step >= step else None)
    run = trainer(tiny(), hooks=hooks, **kwargs)
    return run


def with_one_update_skipped(run: Trainer) -> Trainer:
    """The sixth update's gradient is not finite."""
    return with_updates_skipped(run, range(5, 6))


def with_updates_skipped(run: Trainer, steps: range) -> Trainer:
    """The gradient is not finite in the updates after those steps."""

    def spoil(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan") if run.step in steps else output

    run.state.model.register_forward_hook(spoil)
    return run


@pytest.mark.parametrize("step", [6, 7, 9])
def test_a_run_interrupted_between_two_lines_of_its_log_goes_on_to_the_bit(step: int) -> None:
    whole, first, second = Record(), Record(), Record()
    with_one_update_skipped(trainer(tiny(), whole)).train()
    outcome = with_one_update_skipped(interrupted(first, step)).train()
    assert (outcome.step, outcome.stop_reason) == (step, "a signal")
    files = first.saved[step]
    state = json.loads(json.dumps(files["state.json"]))
    resumed = with_one_update_skipped(trainer(tiny(), second))
    resumed.restore(lambda name: state if name == "state.json" else files[name])
    resumed.train()
    assert_identical(whole.saved[24], second.saved[24])
    assert {n: steady(m) for n, m in whole.logged.items()} == {n: steady(m) for n, m in (first.logged | second.logged).items()}
    between = step - step % 4 + 4
    assert second.logged[between]["seconds"] > files["state.json"]["unlogged"]["seconds"]


@pytest.mark.parametrize("microbatch_size", [1, 2, 3])
def test_microbatches_give_the_gradient_of_the_whole_batch(microbatch_size: int) -> None:
    runs = []
    for resources in (Resources(), Resources(microbatch_size=microbatch_size)):
        run = trainer(tiny(), resources=resources)
        with torch.no_grad():  # at initialisation most gradients are 0, as the last convolutions are
            for index, parameter in enumerate(run.state.parameters):
                parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()) + index).view_as(parameter))
        run._update(next(run.batches.batches(0, 1)))
        runs.append([p.grad for p in run.state.parameters])
    largest = max(float(gradient.abs().max()) for gradient in runs[0])
    for whole, parts in zip(*runs, strict=True):
        # Summation in another order rounds otherwise, some 160 times in a row; a bias in front of a GroupNorm has no gradient but rounding.
        torch.testing.assert_close(whole, parts, rtol=0, atol=160 * U32 * largest)


def one_of_two_ranks(rank: int, folder: str) -> None:
    world_size = 2
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=world_size)
    record = Record()
    trainer(tiny(), record, rank=rank, world_size=world_size).train()
    first, second = Record(), Record()
    stopped = interrupted(first, 5, rank=rank, world_size=world_size).train()
    assert (stopped.step, stopped.stop_reason) == (6, "a signal"), "all ranks stop one update later"
    files = broadcast_object(first.saved.get(6), world_size)
    resumed = trainer(tiny(), second, rank=rank, world_size=world_size)
    resumed.restore(lambda name: copy.deepcopy(files[name]))  # the optimiser changes the tensors in place
    resumed.train()
    if rank == 0:
        assert_identical(record.saved[24], second.saved[24])
        assert {n: steady(m) for n, m in record.logged.items()} == {n: steady(m) for n, m in (first.logged | second.logged).items()}
        torch.save({"logged": record.logged, "model": record.saved[24]["model.pt"], "interrupted": files}, f"{folder}/rank0.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_train_what_one_worker_trains_interrupted_or_not(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # pytest adds the folders of tests
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    two = torch.load(tmp_path / "rank0.pt")
    one = Record()
    trainer(tiny(), one).train()
    # The 24 steps of 1e-3 are up to 1e-2 of a weight where gradients are rounding; most are not: 2e-3 of a loss.
    for step, metrics in one.logged.items():
        for name in ("loss", "l_simple", "l_vlb", "grad_norm"):
            assert two["logged"][step][name] == pytest.approx(metrics[name], rel=2e-3), (step, name)
    for name, value in one.saved[24]["model.pt"].items():
        # Adam divides by the square root of tiny second moments, which turns rounding into steps of up to the learning rate.
        assert (two["model"][name] - value).abs().max() < 5e-3, name
    alone = Record()
    resumed = trainer(tiny(), alone)
    resumed.restore(lambda name: two["interrupted"][name])
    resumed.train()
    for step, metrics in alone.logged.items():
        for name in ("loss", "l_simple", "l_vlb", "grad_norm", "loss_q0", "loss_q3"):
            assert two["logged"][step][name] == pytest.approx(metrics[name], rel=2e-3), (step, name)


def test_gradient_checkpointing_computes_activations_twice_and_changes_no_number() -> None:
    records, calls = [], []
    for resources in (Resources(), Resources(gradient_checkpointing=True)):
        record, count = Record(), [0]
        run = trainer(tiny(num_steps=2), record, resources=resources)
        block = next(module for module in run.state.model.modules() if type(module).__name__ == "ResBlock")
        block.in_layers[0].register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        run.train()
        records.append(steady(record.logged[2]))
        calls.append(count[0])
    assert calls[1] == 2 * calls[0]
    assert records[0] == records[1]


def test_an_update_with_a_gradient_that_is_not_finite_is_skipped_and_counted() -> None:
    record = Record()
    run = trainer(tiny(), record)
    run.train(4)
    before = [p.clone() for p in run.state.parameters]
    averages = {decay: {name: average.clone() for name, average in run.state.ema.state_dict(decay).items()} for decay in (0.5, 0.9)}
    calls = []

    def spoil(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * float("nan") if len(calls) == 1 else output

    handle = run.state.model.register_forward_hook(spoil)
    run._update(next(run.batches.batches(4, 1)))
    assert all(torch.equal(p, q) for p, q in zip(before, run.state.parameters, strict=True))
    for decay, average in averages.items():  # they move towards the weights that stayed
        moved = {name: tensor.lerp(run.state.model.state_dict()[name], 1 - decay) for name, tensor in average.items()}
        assert_identical(run.state.ema.state_dict(decay), moved)
    run.step += 1
    run.train(8)
    handle.remove()
    assert record.logged[8]["skipped_updates"] == 1
    assert not any(torch.equal(p, q) for p, q in zip(before, run.state.parameters, strict=True))
    assert all(value == value for value in record.logged[8].values())


def test_an_image_whose_loss_is_not_finite_is_left_out_of_every_mean() -> None:
    inf, nan = float("inf"), float("nan")
    meter = Meter(torch.device("cpu"))
    terms = LossTerms(
        loss=torch.tensor([1.0, inf, 3.0, nan]), l_simple=torch.tensor([0.5, 9.0, 1.5, 9.0]), l_vlb=torch.tensor([2.0, inf, 4.0, nan])
    )
    meter.add_losses(torch.tensor([0, 0, 3, 3]), torch.ones(4), terms, 4)
    metrics = meter.reduce(1)
    assert [metrics[name] for name in ("loss", "l_simple", "l_vlb", "loss_q0", "loss_q3")] == [2.0, 1.0, 3.0, 1.0, 3.0]


def test_a_mean_of_nothing_is_not_a_number() -> None:
    meter, nan = Meter(torch.device("cpu")), torch.full((4,), float("nan"))
    meter.add_losses(torch.tensor([0, 1, 2, 3]), torch.ones(4), LossTerms(loss=nan, l_simple=nan, l_vlb=nan), 4)
    meter.add_gradient(torch.tensor(float("nan")), torch.tensor(1.0))
    metrics = meter.reduce(1)
    assert {name for name, value in metrics.items() if math.isnan(value)} == {"loss", "l_simple", "l_vlb", "grad_norm"}
    assert metrics["skipped"] == metrics["consecutive_skips"] == 1


def test_a_run_that_stays_not_finite_ends_with_one_clear_error() -> None:
    run = trainer(tiny())
    run.state.model.register_forward_hook(lambda module, arguments, output: output * float("nan"))
    with pytest.raises(DivergedError, match=rf"{MAX_CONSECUTIVE_SKIPS} updates in a row"):
        run.train()


def test_updates_that_are_skipped_between_two_lines_of_the_log_end_a_training_too() -> None:
    run = with_updates_skipped(trainer(tiny(checkpoint_interval=24)), range(3, 3 + MAX_CONSECUTIVE_SKIPS))
    with pytest.raises(DivergedError, match=rf"{MAX_CONSECUTIVE_SKIPS} updates in a row before step 24;"):
        run.train()
    one_less = with_updates_skipped(trainer(tiny(checkpoint_interval=24)), range(3, 2 + MAX_CONSECUTIVE_SKIPS))
    assert one_less.train().step == 24


def test_a_checkpoint_that_is_due_after_a_skipped_update_is_saved_at_the_next_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "MAX_UPDATES_BETWEEN_LOGS", 2)
    record = Record()
    with_updates_skipped(trainer(tiny(checkpoint_interval=8), record), range(7, 10)).train()
    assert sorted(record.saved) == [12, 16, 24], "step 10 was skipped as well"
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "iddpm| the latest updates were skipped, as their gradients were not finite; step 8 has no checkpoint and no score, "
        "and one is saved after the next update that is not skipped"
    )
    assert second == "iddpm| the checkpoint that was due at step 8 is saved now, at step 12, without a score"


def test_the_checkpoint_that_guides_the_evaluation_is_saved_after_a_skipped_update_too(capsys: pytest.CaptureFixture[str]) -> None:
    record = Record()
    guided = replace(tiny().evaluation, sampling=SamplingConfig(guidance_scale=2.0, guidance_step=8))
    run = trainer(replace(tiny(checkpoint_interval=8), evaluation=guided), record)
    with_updates_skipped(run, range(7, 8)).train()
    assert sorted(record.saved) == [8, 16, 24]
    assert "the checkpoint of step 8 is saved all the same, because it guides the final evaluation\n" in capsys.readouterr().out


def failing_after(waited: float, error: Exception) -> Trainer:
    """A run of two ranks whose network fails when this one has waited so many seconds for the other."""

    def fail(num_steps: int | None) -> None:
        raise error

    run = trainer(tiny(), resources=Resources(collective_timeout_seconds=100))
    run._heartbeats = SimpleNamespace(waited_seconds=lambda: waited, describe_stragglers=lambda: "rank 1 stands still", end=lambda: None)
    run._train = fail
    return run


def test_a_rank_is_blamed_only_after_a_wait_as_long_as_that_for_a_rank_that_hangs() -> None:
    hung = torch.distributed.DistBackendError("Timed out waiting for recv")
    with pytest.raises(TrainingError, match=r"^rank 1 stands still; rank 0 waited 99 s\. See that worker's machine") as told:
        failing_after(99.0, hung).train()
    assert told.value.__cause__ is hung
    reset = torch.distributed.DistBackendError("Connection reset by peer")
    with pytest.raises(torch.distributed.DistBackendError, match="Connection reset by peer"):
        failing_after(1.0, reset).train()
    with pytest.raises(RuntimeError, match="the shapes differ"):
        failing_after(99.0, RuntimeError("the shapes differ")).train()


def test_training_stops_on_request_and_leaves_a_checkpoint() -> None:
    record = Record()
    outcome = trainer(tiny(), hooks=record.hooks(stop_at=8)).train()
    assert (outcome.step, outcome.stop_reason) == (8, "enough")
    assert max(record.saved) == 8


def test_a_run_that_stopped_early_and_is_started_again_trains_no_further() -> None:
    record = Record()
    trainer(tiny(), hooks=record.hooks(stop_at=8)).train()
    again = trainer(tiny(), hooks=record.hooks(stop_at=8))
    again.restore(lambda name: record.saved[8][name])
    assert (outcome := again.train()).step == 8
    assert outcome.stop_reason == "enough"
    assert max(record.saved) == max(record.logged) == 8


def test_after_going_back_the_draws_differ() -> None:
    losses = []
    for rollbacks in (0, 1):
        record = Record()
        run = trainer(tiny(), record)
        run.rollbacks = rollbacks
        run.train(4)
        losses.append(record.logged[4]["loss"])
    assert losses[0] != losses[1]


def test_an_upsampler_is_given_the_area_average_of_each_training_image() -> None:
    experiment = replace(tiny(), model=replace(tiny().model, low_res_size=4))
    record = Record()
    run = trainer(experiment, record)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    run.state.model.register_forward_pre_hook(lambda module, arguments, kwargs: seen.append(kwargs["low_res"]), with_kwargs=True)
    run.train(4)
    assert record.logged[4]["loss"] > 0
    images = to_model_range(next(run.batches.batches(0, 1)).images)
    average = images.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean(dim=(3, 5))
    matches = (seen[0] - average).abs().amax(dim=(1, 2, 3)) < 1e-6
    mirrored = (seen[0] - average.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert bool((matches | mirrored).all())
    assert bool(mirrored.any()), "the experiment flips half of the images, and the small one with each"


def test_label_dropout_replaces_its_share_of_the_labels_by_one_that_no_image_has() -> None:
    experiment = replace(tiny(global_batch_size=400), model=replace(tiny().model, label_dropout=0.25))
    run = trainer(experiment)
    seen: list[torch.Tensor] = []
    run.state.model.register_forward_pre_hook(lambda module, arguments, kwargs: seen.append(kwargs["y"]), with_kwargs=True)
    run.train(1)
    labels = next(run.batches.batches(0, 1)).labels
    dropped = seen[0] == 3
    # 400 draws: the standard deviation of the share is sqrt(0.25 * 0.75 / 400) = 0.022; the draws are fixed.
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.09)
    assert torch.equal(seen[0][~dropped], labels[~dropped])


def test_the_learning_rate_anneals_to_zero_and_its_first_update_is_whole() -> None:
    assert learning_rate_at(0, 1e-4, 100) == 1e-4
    assert learning_rate_at(50, 1e-4, 100) == 5e-5
    assert learning_rate_at(100, 1e-4, 100) == learning_rate_at(500, 1e-4, 100) == 0.0
    assert learning_rate_at(10**9, 1e-4, 0) == 1e-4


@pytest.mark.parametrize(("checkpoint_interval", "parts"), [(10_000, 200), (200, 4), (7, 1), (53, 2), (60, 2), (9_973, 200)])
def test_metrics_are_logged_at_each_checkpoint_and_at_most_fifty_updates_apart(checkpoint_interval: int, parts: int) -> None:
    boundaries = [step for step in range(1, 2 * checkpoint_interval + 1) if is_log_boundary(step, checkpoint_interval)]
    assert {checkpoint_interval, 2 * checkpoint_interval} <= set(boundaries)
    distances = {after - before for before, after in itertools.pairwise([0, *boundaries])}
    assert len(boundaries) == 2 * parts, "also where the interval is prime: reading the metrics makes the host wait for the device"
    assert max(distances) <= 50
    assert max(distances) - min(distances) <= 1


@pytest.mark.slow
def test_no_step_waits_for_a_value_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(grad_clip_norm=1.0)
    experiment = replace(experiment, model=replace(experiment.model, class_conditional=False))
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors without values: to look at one is an error
        run = Trainer(experiment, Resources(microbatch_size=3), RandomImages(experiment, torch.device("cpu")))
        run._update(Batch(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), None, torch.arange(7)))
        with pytest.raises(DataDependentOutputException):
            run._log()


@pytest.mark.parametrize(("batch_size", "world_size"), [(7, 1), (7, 3), (8, 3), (3, 3), (9, 2)])
def test_the_shares_of_all_workers_are_the_batch(batch_size: int, world_size: int) -> None:
    bounds = [shard_bounds(batch_size, rank, world_size) for rank in range(world_size)]
    assert [place for start, stop in bounds for place in range(start, stop)] == list(range(batch_size))
    sizes = [stop - start for start, stop in bounds]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_a_batch_smaller_than_the_workers_is_refused() -> None:
    with pytest.raises(TrainingError, match="global_batch_size 7 is smaller than the 8 workers"):
        trainer(tiny(), world_size=8)


def test_the_first_steps_of_training_follow_the_golden_curve() -> None:
    record = Record()
    trainer(tiny(), record).train()
    golden = {int(step): values for step, values in json.loads(CURVE.read_text()).items()}
    assert golden.keys() == record.logged.keys()
    # Another processor adds in another order, and Adam makes steps of up to 1e-3 of it: see above. Here only one worker differs.
    for step, values in golden.items():
        for name, value in values.items():
            assert record.logged[step][name] == pytest.approx(value, rel=1e-3), (step, name)


if __name__ == "__main__":
    one_of_two_ranks(int(sys.argv[1]), sys.argv[2])

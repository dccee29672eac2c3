"""The device of evaluation, and smaller batches when its memory is too small."""

import dataclasses
from pathlib import Path

import pytest
import torch
from rounding import NETWORK
from torch import Tensor

from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import preflight
from evaluation.likelihood.bits_per_dim import merge
from evaluation.likelihood.estimate import likelihood_parts
from evaluation.records.devices import choose_device, default_batch_size, full_precision, sampling_batch_size
from evaluation.sampling.draw import DrawRequest, draw_images
from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.learned_steps import learn_and_store, learn_steps
from evaluation.sampling.reverse_variance import estimate, estimate_and_store
from evaluation.sampling.sample_set import plan_samples
from evaluation.sampling.trained_model import ModelSpec, TrainedModel, load_model
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import DiffusionConfig, LikelihoodForm, SamplingConfig
from training.config.presets import preset

_SAMPLING = SamplingConfig(method="ddim", spacing="5")


class _SmallDevice:
    """A network on a device that has room for a few images: it raises as torch does where there are more."""

    def __init__(self, network: object, room: int) -> None:
        self.network, self.room, self.refused = network, room, 0

    def __call__(self, x_t: Tensor, timesteps: Tensor, **kwargs: Tensor) -> Tensor:
        if len(x_t) > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
        return self.network(x_t, timesteps, **kwargs)  # type: ignore[operator, no-any-return]


@pytest.fixture(scope="module")
def model(kept_run_uri: str) -> TrainedModel:
    return load_model(checkpoint.checkpoint_uri(kept_run_uri, 200))


def _on_small_device(model: TrainedModel, room: int) -> TrainedModel:
    return TrainedModel(
        **{name: getattr(model, name) for name in model.__dataclass_fields__ if name != "network"},
        network=_SmallDevice(model.network, room),
    )


def test_auto_is_the_cpu_without_a_gpu() -> None:
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("name", "message"), [("cuda:99", "there is no device 'cuda:99' here"), ("gpu", "'gpu' is not a device"), ("mps", "'mps' is not")]
)
def test_a_missing_device_is_refused_with_its_name(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_device(name)


def test_large_images_have_small_default_batches() -> None:
    assert [default_batch_size(size) for size in (8, 32, 64, 256, 4096)] == [250, 250, 250, 16, 1]


@pytest.mark.parametrize(
    ("preset_name", "on_cpu", "on_gpu"),
    [("digits-hybrid-cosine", 250, 250), ("fashion-mnist-hybrid-cosine", 41, 250), ("imagenet64-hybrid-cosine", 2, 250)],
)
def test_a_cpu_draws_as_many_images_at_a_time_as_have_small_activations(preset_name: str, on_cpu: int, on_gpu: int) -> None:
    experiment = preset(preset_name)
    assert sampling_batch_size(experiment, "cpu") == on_cpu
    assert sampling_batch_size(experiment, "cuda") == on_gpu


def test_images_are_the_same_in_the_smaller_batches_of_a_small_device(model: TrainedModel) -> None:
    whole = concatenated(generate(model, num_images=12, seed=1, sampling=_SAMPLING, batch_size=12))[0].int()
    small = _on_small_device(model, room=4)
    indices = []
    parts = []
    for index, images, _ in generate(small, num_images=12, seed=1, sampling=_SAMPLING, batch_size=12):
        indices += index.tolist()
        parts.append(images)
    assert indices == list(range(12))
    assert max(len(part) for part in parts) <= 4
    assert int((torch.cat(parts).int() - whole).abs().max()) <= 1


def test_a_device_without_memory_for_one_image_is_refused(model: TrainedModel, digits_uri: str) -> None:
    small = _on_small_device(model, room=0)
    for work in (
        lambda: next(generate(small, num_images=3, seed=1, sampling=_SAMPLING)),
        lambda: learn_steps(small, 4, num_images=3),
        lambda: estimate(small, digits_uri, num_images=3),
    ):
        with pytest.raises(UserError, match="no memory for a single image"):
            work()


def test_learned_steps_and_variances_are_the_same_in_the_smaller_batches_of_a_small_device(model: TrainedModel, digits_uri: str) -> None:
    """The memory ends in the middle of a batch; float32 networks round otherwise in other batches, by some 1e-6 of a value each time."""
    refused = []

    def late(x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        if len(x_t) > 3 and timesteps[0] > 0:
            refused.append(len(x_t))
            raise torch.OutOfMemoryError("no room")
        return model.network(x_t, timesteps, **conditioning)

    model = dataclasses.replace(model, experiment=model.experiment.override(["diffusion.num_timesteps=10"]))
    small = dataclasses.replace(model, network=late)
    steps, same_steps = (learn_steps(each, 4, num_images=8) for each in (model, small))
    assert refused == [8, 4]
    assert same_steps.timesteps == steps.timesteps
    assert (same_steps.error, same_steps.even_error) == pytest.approx((steps.error, steps.even_error), rel=10 * NETWORK)  # ten calls
    variance, same_variance = (estimate(each, digits_uri, num_images=10) for each in (model, small))
    assert refused[2:] == [10, 5]
    for name in ("optimal", "analytic"):
        assert same_variance.errors_of(name) == pytest.approx(variance.errors_of(name), rel=2 * NETWORK)  # squares of one call


def test_steps_and_variances_of_a_draw_are_found_in_batches_of_its_size(run_uri: str, digits_uri: str) -> None:
    sizes = set()

    def network(x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        sizes.add(len(x_t))
        return torch.cat([torch.zeros_like(x_t)] * 2, 1)

    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 200))
    model = spec.load()
    model = dataclasses.replace(model, network=network, experiment=model.experiment.override(["diffusion.num_timesteps=10"]))
    storage.write_json(f"{run_uri}/result.json", {"data_uri": digits_uri})
    sampling = SamplingConfig(spacing="learned:3", variance="optimal")
    next(generate(model, num_images=2, seed=0, sampling=sampling, batch_size=20))
    assert max(sizes) == 20
    for directory in ("learned_steps", "reverse_variance"):
        storage.delete_prefix(f"{run_uri}/{directory}")
    plan_samples(
        spec, model, num_images=2, seed=0, sampling=sampling, labels="balanced", class_counts=(), data_uri=digits_uri, batch_size=30
    )
    assert max(sizes) == 30


def test_the_likelihood_is_the_same_in_the_halved_batches_of_a_small_device(model: TrainedModel) -> None:
    diffusion: DiffusionConfig = model.experiment.diffusion
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = (torch.arange(5), images, torch.arange(5))
    whole = merge(list(likelihood_parts(diffusion, model.network, [batch], form="stratified", num_steps=5)))
    small = _SmallDevice(model.network, room=2)
    halves = merge(list(likelihood_parts(diffusion, small, [batch], form="stratified", num_steps=5)))
    assert small.refused > 0
    assert halves.indices.tolist() == [0, 1, 2, 3, 4]
    # A term is a square of what the network says, less what it should say, which is about as large.
    torch.testing.assert_close(halves.per_image, whole.per_image, rtol=4 * NETWORK, atol=0)
    with pytest.raises(UserError, match="no memory for the likelihood of a single image"):
        list(likelihood_parts(diffusion, _SmallDevice(model.network, room=0), [batch], form="stratified", num_steps=5))


@pytest.mark.parametrize(
    ("sampling", "form", "device"),
    [
        (SamplingConfig(spacing="learned:3"), "stratified", "cpu:0"),
        (SamplingConfig(spacing="3", variance="optimal"), "stratified", "cpu:0"),
        (SamplingConfig(spacing="3"), "learned", "cpu:0"),
        (SamplingConfig(spacing="3"), "stratified", "cpu"),
    ],
)
def test_what_a_plan_has_to_estimate_is_estimated_on_the_device_of_the_process(
    sampling: SamplingConfig,
    form: LikelihoodForm,
    device: str,
    run_uri: str,
    digits_uri: str,
    reference_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also "cpu:0" names the processor, so that it stands for a GPU here."""
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 200))
    learn_and_store(spec.load(), 3, num_images=2)  # quicker than the usual numbers of images, which a plan would take
    estimate_and_store(spec.load(), digits_uri, num_images=2)
    loaded, load = [], ModelSpec.load

    def noted(self: ModelSpec, device: str = "cpu") -> TrainedModel:
        loaded.append(device)
        return load(self, device)

    monkeypatch.setattr(ModelSpec, "load", noted)
    options = EvaluationOptions(sampling=sampling, likelihood_form=form, likelihood_num_images=2, device="cpu:0")
    preflight(spec, digits_uri, reference_uri, options)
    assert loaded == [device]
    if form != "learned":
        request = DrawRequest(model=spec, num_images=2, seed=0, sampling=sampling)
        draw_images(request, str(tmp_path / "set"), tmp_path / "grid.png", device="cpu:0")
        assert loaded[1:] == [device, "cpu:0"], "for the plan, and for the draw"


def test_full_precision_restores_the_earlier_settings() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with full_precision("cpu"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == before

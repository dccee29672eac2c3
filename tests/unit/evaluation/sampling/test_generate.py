"""Generation: image i of a seed does not depend on the batch, and it has the requested label."""

import dataclasses

import pytest
import torch
from torch import Tensor

from evaluation.sampling.generate import concatenated, generate, labels_for
from evaluation.sampling.trained_model import TrainedModel, ensemble, load_model
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import SamplingConfig
from training.models.unet import make_model

_DDIM = SamplingConfig(method="ddim", spacing="5")
_ANCESTRAL = SamplingConfig(spacing="5")


@pytest.fixture(scope="module")
def model(kept_run_uri: str) -> TrainedModel:
    return load_model(checkpoint.checkpoint_uri(kept_run_uri, 200))


def _images(model: TrainedModel, num_images: int, sampling: SamplingConfig = _ANCESTRAL, **kwargs: object) -> Tensor:
    return concatenated(generate(model, num_images=num_images, seed=3, sampling=sampling, **kwargs))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [_DDIM, _ANCESTRAL, SamplingConfig(method="dpm_solver_pp", spacing="5")])
def test_an_image_does_not_depend_on_its_batch(model: TrainedModel, sampling: SamplingConfig) -> None:
    together = _images(model, 24, sampling, batch_size=24).int()
    apart = _images(model, 24, sampling, batch_size=7).int()
    later = _images(model, 4, sampling, start=20).int()
    assert together.float().std() > 10, "the images must differ"
    assert int((together - apart).abs().max()) <= 1
    assert int((together[20:] - later).abs().max()) <= 1


def test_the_same_batches_give_the_same_bytes(model: TrainedModel) -> None:
    assert torch.equal(_images(model, 8), _images(model, 8))


def test_another_seed_gives_other_images(model: TrainedModel) -> None:
    other = concatenated(generate(model, num_images=8, seed=4, sampling=_ANCESTRAL))[0]
    assert not torch.equal(_images(model, 8), other)


def test_other_weights_of_a_checkpoint_draw_other_images(kept_run_uri: str, model: TrainedModel) -> None:
    other = load_model(checkpoint.checkpoint_uri(kept_run_uri, 200), "model")
    assert not torch.equal(_images(other, 4), _images(model, 4))


@pytest.mark.parametrize("argument", ["weights", "device"])
def test_an_argument_that_a_loaded_model_would_ignore_is_refused(model: TrainedModel, argument: str) -> None:
    with pytest.raises(TypeError, match=argument):
        generate(model, num_images=1, seed=0, sampling=_ANCESTRAL, **{argument: "cpu"})  # type: ignore[arg-type]


def test_loading_a_model_leaves_torchs_generator_alone(kept_run_uri: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model(checkpoint.checkpoint_uri(kept_run_uri, 200))
    assert torch.equal(torch.rand(3), expected)


def test_balanced_labels_give_every_class_the_same_number() -> None:
    labels = labels_for(torch.arange(50), 10, "balanced", seed=0)
    assert labels is not None
    assert torch.bincount(labels).tolist() == [5] * 10


def test_labels_as_in_the_data_follow_its_counts_and_not_the_batch() -> None:
    counts = [100, 0, 300]
    labels = labels_for(torch.arange(8000), 3, "data", seed=1, class_counts=counts)
    assert labels is not None
    shares = torch.bincount(labels, minlength=3) / 8000
    # Four standard deviations of sqrt(0.25 x 0.75 / 8000) = 0.0048.
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.0, 0.75]), atol=0.0194, rtol=0)
    part = labels_for(torch.arange(5000, 5010), 3, "data", seed=1, class_counts=counts)
    assert part is not None
    assert torch.equal(part, labels[5000:5010])


def test_listed_labels_are_repeated_in_turn() -> None:
    labels = labels_for(torch.arange(5), 10, (3, 7), seed=0)
    assert labels is not None
    assert labels.tolist() == [3, 7, 3, 7, 3]


def test_labels_outside_the_models_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"not all in 0\.\.9"):
        labels_for(torch.arange(2), 10, (3, 10), seed=0)
    with pytest.raises(UserError, match="takes no labels"):
        labels_for(torch.arange(2), 0, (3,), seed=0)
    with pytest.raises(UserError, match="need the counts of 10 classes"):
        labels_for(torch.arange(2), 10, "data", seed=0)


def test_only_an_upsampler_takes_small_images(model: TrainedModel) -> None:
    with pytest.raises(UserError, match="is not an upsampler"):
        next(generate(model, num_images=1, seed=0, sampling=_DDIM, low_res=lambda indices: (torch.zeros(1, 1, 4, 4), None)))


def test_an_ensemble_of_a_model_with_itself_draws_what_the_model_draws(model: TrainedModel) -> None:
    both = ensemble(model, model, width=10)
    assert torch.equal(_images(both, 4), _images(model, 4))
    assert "first and last 10 of 40 timesteps" in both.description


def test_an_ensemble_uses_both_models(kept_run_uri: str, model: TrainedModel) -> None:
    other = load_model(checkpoint.checkpoint_uri(kept_run_uri, 100))
    drawn = _images(ensemble(other, model, width=10), 4)
    assert not torch.equal(drawn, _images(model, 4))
    assert not torch.equal(drawn, _images(other, 4))


def test_an_ensemble_of_incompatible_models_is_refused(model: TrainedModel) -> None:
    with pytest.raises(UserError, match="do not fit into 40"):
        ensemble(model, model, width=21)
    upsampler = dataclasses.replace(model, experiment=model.experiment.override(["model.low_res_size=4"]))
    with pytest.raises(
        UserError, match=r"with 10 labels and .* with 10 labels, enlarged from 4 x 4 pixels: give two models of one data set"
    ):
        ensemble(upsampler, model, width=10)


def _conditional(model: TrainedModel) -> TrainedModel:
    """A model that was trained with label dropout: eleven labels, whose embeddings matter."""
    experiment = model.experiment.override(["model.label_dropout=0.1"])
    torch.manual_seed(0)
    network = make_model(experiment).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return dataclasses.replace(model, experiment=experiment, network=network)


def test_guidance_leads_from_the_images_without_label_past_those_with_it(model: TrainedModel) -> None:
    """With a scale of 0 the label does not matter, with 1 there is no guidance, and with 2 labels differ more than with 1."""
    conditional = _conditional(model)

    def difference(scale: float) -> float:
        sampling = SamplingConfig(method="ddim", spacing="5", guidance_scale=scale)
        one, other = (_images(conditional, 4, sampling, labels=(label,)).float() for label in (3, 7))
        return float((one - other).square().mean())

    assert difference(0.0) == 0.0
    assert 0.0 < difference(1.0) < difference(2.0)


@pytest.mark.parametrize("without", ["middle", "ends"])
def test_each_member_of_an_ensemble_has_to_know_images_without_a_label(model: TrainedModel, without: str) -> None:
    with_it, uri = _conditional(model), f"{model.checkpoint_uri}-{without}"
    never = dataclasses.replace(model, checkpoint_uri=uri)
    both = ensemble(never, with_it, width=10) if without == "ends" else ensemble(with_it, never, width=10)
    _images(both, 1)
    with pytest.raises(UserError, match=rf"{uri} was trained with every label and cannot guide itself"):
        _images(both, 1, SamplingConfig(method="ddim", spacing="5", guidance_scale=2.0))


def test_an_earlier_checkpoint_of_the_middle_guides_an_ensemble_of_models_that_saw_every_label(model: TrainedModel) -> None:
    guided = SamplingConfig(method="ddim", spacing="5", guidance_scale=2.0, guidance_step=100)
    assert torch.equal(_images(ensemble(model, model, width=10), 2, guided), _images(model, 2, guided))


def test_an_earlier_checkpoint_guides(model: TrainedModel, kept_run_uri: str) -> None:
    earlier = load_model(checkpoint.checkpoint_uri(kept_run_uri, 100), model.weights)
    by_it = SamplingConfig(method="ddim", spacing="5", guidance_scale=0.0, guidance_step=100)
    assert torch.equal(_images(model, 4, by_it), _images(earlier, 4, _DDIM))


def test_the_checkpoint_that_guides_is_read_once_for_all_chunks_and_again_for_a_model_that_is_loaded_again(
    run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def noted(uri: str, *args: object, **kwargs: object) -> TrainedModel:
        loaded.append(checkpoint.step_of(uri))
        return load_model(uri, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("evaluation.sampling.generate.load_model", noted)
    guided = SamplingConfig(method="ddim", spacing="2", guidance_scale=2.0, guidance_step=100)
    for _ in range(2):
        model = load_model(checkpoint.checkpoint_uri(run_uri, 200))
        for start in range(3):
            _images(model, 1, guided, start=start)
    assert loaded == [100, 100]


def test_a_model_that_saw_every_label_cannot_guide_itself(model: TrainedModel) -> None:
    with pytest.raises(UserError, match=r"model\.label_dropout=0\.1, or give the guidance_step"):
        _images(model, 1, SamplingConfig(guidance_scale=2.0))


@pytest.mark.parametrize("step", [200, 300])
def test_neither_the_model_itself_nor_a_later_checkpoint_guides(model: TrainedModel, step: int) -> None:
    with pytest.raises(UserError, match=rf"no checkpoint of step {step} .* could guide the one of step 200; earlier ones: 100"):
        _images(model, 1, SamplingConfig(guidance_scale=2.0, guidance_step=step))


def test_an_upsampler_without_small_images_is_told_what_it_needs(model: TrainedModel) -> None:
    experiment = model.experiment.override(["model.low_res_size=4"])
    with pytest.raises(UserError, match="is an upsampler: give it the images to enlarge as low_res"):
        next(generate(dataclasses.replace(model, experiment=experiment), num_images=1, seed=0, sampling=_DDIM))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused_instead_of_drawn_black(model: TrainedModel, value: float) -> None:
    def damaged(x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        output = model.network(x_t, timesteps, **conditioning)
        output[0] += value
        return output

    sampling = dataclasses.replace(_DDIM, clip_denoised=False)
    with pytest.raises(
        UserError, match=r"step=00000200 \(ema_0.99\): 1 of 4 images are not finite: its weights are damaged or the sampler"
    ):
        _images(dataclasses.replace(model, network=damaged), 4, sampling)

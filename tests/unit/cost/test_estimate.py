"""Operations and memory against the released networks' known numbers."""

from __future__ import annotations

import json

import pytest
import torch

from training.config import presets
from training.config.errors import UserError
from training.cost.estimate import activation_bytes, count_forward_passes, count_macs, estimate
from training.cost.peak import LiveBytes, scoring_bytes, training_bytes
from training.models.unet import make_model


@pytest.mark.parametrize(
    ("name", "overrides", "gmacs"),
    [
        ("imagenet64-hybrid-cosine-width64", [], 10.04),
        ("imagenet64-hybrid-cosine-width96", [], 22.43),
        ("imagenet64-hybrid-cosine", [], 39.736),
        ("imagenet64-simple-cosine", [], 39.72),
        ("imagenet64-cond-hybrid-cosine-small", [], 39.74),
        ("imagenet64-cond-hybrid-cosine-large", [], 89.09),
        ("cifar10-hybrid-cosine", [], 8.387),
        ("lsun-bedroom-hybrid-linear-bs64-released", [], 248.7),
        ("imagenet256-upsampler-hybrid-linear", [], 560.0),
        ("imagenet256-cond-hybrid-linear", [], 249.1),
    ],
)
def test_forward_passes_take_the_released_networks_macs(name: str, overrides: list[str], gmacs: float) -> None:
    macs = count_macs(presets.preset(name, overrides))
    assert sum(macs.values()) / 1e9 == pytest.approx(gmacs, rel=5e-4)  # half of the last digit of 10.04


def test_the_papers_39_billion_are_macs_of_which_attention_is_a_hundredth() -> None:
    macs = count_macs(presets.preset("imagenet64-hybrid-cosine"))
    assert macs["attention"] == pytest.approx(0.386e9, abs=0.0005e9)  # of the last digit, here and below
    assert int(sum(macs.values()) / 1e9) == 39


def test_the_papers_sizes() -> None:
    cost = estimate(presets.preset("imagenet64-hybrid-cosine"))
    assert (cost.parameters, cost.tensors) == (121_063_942, 450)
    assert cost.forward_flops == 2 * cost.forward_macs == 2 * sum(cost.macs_by_kind.values())
    assert cost.phases["training"].flops == pytest.approx(6.1e18, abs=0.05e18)
    cifar = estimate(presets.preset("cifar10-hybrid-cosine"))
    assert (cifar.parameters, cifar.tensors) == (52_546_438, 446)
    assert cifar.phases["training"].flops == pytest.approx(3.2e18, abs=0.05e18)
    assert cifar.phases["training"].card_hours == pytest.approx(3.0, abs=0.05)


def test_evaluation_is_counted_as_the_experiment_says() -> None:
    experiment = presets.preset("cifar10-hybrid-cosine", ["evaluation.sampling.spacing=", "evaluation.likelihood_form=full"])
    passes = count_forward_passes(experiment)
    assert passes["sampling"] == 50_000 * 4000
    assert passes["likelihood"] == 10_000 * 4000
    assert passes["training"] == 3 * 500_000 * 128
    assert passes["scoring"] == 50 * 10_000 * 20
    spaced = presets.preset("cifar10-hybrid-cosine", ["evaluation.likelihood_form=spaced", "evaluation.likelihood_num_images=100"])
    assert count_forward_passes(spaced)["likelihood"] == 100 * 139
    unknown = presets.preset("cifar10-hybrid-cosine", ["data.name=my-images"])
    assert "likelihood" not in count_forward_passes(unknown)


@pytest.mark.parametrize(
    ("overrides", "candidates"),
    [
        ([], 3),  # of 50 checkpoints
        (["evaluation.rescore_best=1"], 0),  # a single one is not scored again
        (["optim.num_steps=20000"], 2),
        (["optim.num_steps=10000"], 0),
        (["optim.num_steps=40000", "evaluation.sampling.guidance_scale=2", "evaluation.sampling.guidance_step=20000"], 2),
    ],
)
def test_each_checkpoint_that_is_scored_again_costs_what_the_reported_samples_cost(overrides: list[str], candidates: int) -> None:
    experiment = presets.preset("cifar10-hybrid-cosine", overrides)
    passes = count_forward_passes(experiment)
    assert passes.get("choice", 0) == candidates * passes["sampling"]
    found = estimate(experiment, with_memory=False)
    assert found.card_hours == sum(phase.card_hours for phase in found.phases.values())
    assert found.phases.keys() == passes.keys()


def test_activation_memory_is_what_autograd_keeps() -> None:
    experiment = presets.preset("digits-hybrid-cosine")
    model = make_model(experiment).train()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.zeros(16, 1, 8, 8), torch.zeros(16), y=torch.zeros(16, dtype=torch.int64))
    measured = sum(storage.nbytes() for storage in kept.values())
    assert output.shape[0] == 16
    assert activation_bytes(experiment, 16, bf16=False) == pytest.approx(measured, rel=0, abs=1024)  # a tensor of a number for each image


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("num_classes", [0, 10, 200_000])
def test_the_predicted_peak_is_what_a_real_pass_has_alive(trains: bool, num_classes: int) -> None:
    """With 200,000 labels, their embedding and its gradient are larger than the activations."""
    words = [f"data.num_classes={num_classes}", f"model.class_conditional={'true' if num_classes else 'false'}"]
    experiment = presets.preset("digits-hybrid-cosine", words)
    labels = torch.zeros(16, dtype=torch.int64) if num_classes else None
    with LiveBytes() as live, torch.set_grad_enabled(trains):
        model = make_model(experiment).train(trains)
        output = model(torch.zeros(16, 1, 8, 8), torch.zeros(16), y=labels)
        if trains:
            output.square().mean().backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state = (2 + len(experiment.optim.ema_decays)) * 4 * parameters  # Adam's moments and the averages
    predicted = training_bytes(experiment, 16, bf16=False) - state if trains else scoring_bytes(experiment, 16)
    # As above. The gradient of a large embedding is made beside those of two [16, 128] float32 tensors, of the labels and the times.
    tolerance = 1024 + (2 * 16 * 128 * 4 if num_classes > 10 else 0)
    assert predicted == pytest.approx(live.peak, rel=0, abs=tolerance)
    assert live.peak > 4 * parameters * (2 if trains else 1)


def test_a_convolution_copies_what_it_reads_and_writes() -> None:
    images, weight = torch.ones(2, 3, 8, 8, requires_grad=True), torch.ones(5, 3, 1, 1)
    with LiveBytes() as live:
        live.add(images)
        live.add(weight)
        alive = live.now
        output = torch.nn.functional.conv2d(images, weight)
        assert live.now == alive + output.nbytes
        assert live.peak == live.now + images.nbytes + output.nbytes
        live.peak = 0
        (gradient,) = torch.autograd.grad(output, images, torch.ones_like(output))
    assert live.peak == alive + 2 * output.nbytes + gradient.nbytes + output.nbytes + images.nbytes


def test_an_estimate_leaves_nothing_behind_in_the_network_that_the_next_one_shares() -> None:
    experiment = presets.preset("digits-hybrid-cosine")
    trained, scored = training_bytes(experiment, 4, bf16=True), scoring_bytes(experiment, 4)
    assert (training_bytes(experiment, 4, bf16=True), scoring_bytes(experiment, 4)) == (trained, scored)


def test_in_float32_only_what_grows_with_the_images_is_kept_and_under_autocast_copies_of_weights_too() -> None:
    experiment = presets.preset("digits-hybrid-cosine")
    one, two = ({bf16: activation_bytes(experiment, images, bf16=bf16) for bf16 in (False, True)} for images in (1, 2))
    assert two[False] == 2 * one[False]
    assert one[True] < two[True] < 2 * one[True]


def test_memory_grows_with_averages_and_fits_a_larger_microbatch_on_a_larger_card() -> None:
    experiment = presets.preset("digits-hybrid-cosine")
    one, three = (estimate(experiment.override([f"optim.ema_decays={decays}"])) for decays in ("0.9", "0.9,0.99,0.999"))
    assert three.memory.state - one.memory.state == 2 * 4 * one.parameters
    small, large = (estimate(experiment, card).memory.largest_microbatch_bf16 for card in ("L4", "H200"))
    assert 0 < small < large


@pytest.mark.parametrize("guidance", [[], ["evaluation.sampling.guidance_scale=2"], ["evaluation.scoring_sampling.guidance_scale=2"]])
def test_a_network_that_learns_to_guide_itself_has_a_cost(guidance: list[str]) -> None:
    """Activations are those of the network without labels, which can have neither label dropout nor guidance."""
    plain = presets.preset("digits-hybrid-cosine")
    guided = plain.override(["model.label_dropout=0.1", *guidance])
    assert scoring_bytes(guided, 4) == scoring_bytes(plain, 4) + 4 * 4 * 32, "the label 'none' is a row of the embedding"
    assert activation_bytes(guided, 4, bf16=False) == activation_bytes(plain, 4, bf16=False)


def test_a_cost_is_plain_data() -> None:
    cost = json.loads(json.dumps(estimate(presets.preset("digits-hybrid-cosine"), "a100").to_dict()))
    assert cost["card"] == "A100"
    assert cost["phases"]["sampling"]["forward_passes"] == 1000 * 50


@pytest.mark.parametrize(("card", "utilisation", "message"), [("H900", 0.3, "the cards are H100"), ("H100", 1.5, "at most 1, got 1.5")])
def test_an_unknown_card_or_utilisation_is_answered_with_what_is_allowed(card: str, utilisation: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        estimate(presets.preset("digits-hybrid-cosine"), card, utilisation=utilisation)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(price: float) -> None:
    with pytest.raises(UserError, match="the price of an hour must be a finite number of at least 0"):
        estimate(presets.preset("digits-hybrid-cosine"), price_per_hour=price)

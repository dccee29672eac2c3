"""Bits per dimension: properties that the three forms share, and independence of batches and workers."""

from __future__ import annotations

import io
import itertools
import json
import math
from typing import Any

import pytest
import torch
from oracles import DiscreteOracle, GaussianOracle, discrete_images
from rounding import U32, U64, rounded
from torch import Tensor

from evaluation.likelihood.bits_per_dim import Likelihood, merge
from evaluation.likelihood.estimate import likelihood_parts, stratum_bounds
from training.config.errors import UserError
from training.config.experiment import DiffusionConfig, LikelihoodForm
from training.config.spacing import likelihood_spacing
from training.diffusion.losses import bound_terms
from training.diffusion.process import Denoiser, Model, make_process

LEVELS, PROBABILITIES = [100, 105, 110, 160], [0.3, 0.3, 0.2, 0.2]
SMALL = DiffusionConfig(num_timesteps=100)
SUMS = 2 * (100 + 12) * U64
"""Between two sums of up to 100 terms of 12 images, in float64."""
FORMS: list[LikelihoodForm] = ["full", "spaced", "stratified"]


def oracle(config: DiffusionConfig = SMALL, timesteps: tuple[int, ...] | None = None) -> DiscreteOracle:
    return DiscreteOracle(make_process(config, timesteps), LEVELS, PROBABILITIES)


def model_for(form: LikelihoodForm) -> Model:
    return oracle(timesteps=likelihood_spacing(100, 10) if form == "spaced" else None)


def batches(images: Tensor, size: int, order: list[int] | None = None) -> list[tuple[Tensor, Tensor, None]]:
    chosen = torch.tensor(order) if order is not None else torch.arange(len(images))
    return [(part, images[part], None) for part in chosen.split(size)]


def evaluate_likelihood(*args: Any, **kwargs: Any) -> Likelihood:
    return merge(likelihood_parts(*args, **kwargs))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return discrete_images(LEVELS, PROBABILITIES, 12)[0]


@pytest.mark.parametrize("form", FORMS)
def test_an_images_likelihood_depends_on_neither_its_batch_nor_its_worker(form: LikelihoodForm, images: Tensor) -> None:
    whole = evaluate_likelihood(SMALL, model_for(form), batches(images, 12), form=form, num_steps=10)
    order = [7, 0, 11, 3, 2, 1, 9, 10, 4, 8, 6, 5]
    workers = [
        evaluate_likelihood(SMALL, model_for(form), batches(images, size, part), form=form, num_steps=10)
        for size, part in ((1, order[:3]), (5, order[3:]))
    ]
    merged = merge(workers)
    # Another batch may sum in another order and use other vector instructions: each of up to 100 float32 terms is rounded twice.
    rounding = 100 * 2 * U32
    torch.testing.assert_close(merged.per_image, whole.per_image, rtol=rounding, atol=rounding)
    assert torch.equal(merged.indices, torch.arange(12))
    assert merged.num_images == 12
    assert merged.bits_per_dim == pytest.approx(whole.bits_per_dim, rel=rounding)
    assert merged.standard_error == pytest.approx(whole.standard_error, rel=10 * rounding)  # a difference of images: 10 times smaller
    torch.testing.assert_close(merged.per_t, whole.per_t, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("form", ["full", "spaced"])
def test_the_parts_of_the_bound_add_up(form: LikelihoodForm, images: Tensor) -> None:
    result = evaluate_likelihood(SMALL, model_for(form), batches(images, 5), form=form, num_steps=10)
    assert result.bits_per_dim == pytest.approx(result.prior + float(result.per_t.sum()), rel=SUMS)
    assert result.decoder == pytest.approx(float(result.per_t[0]), rel=SUMS)
    assert len(result.per_t) == result.num_evaluations_per_image == len(result.timesteps)
    assert result.timesteps == (tuple(range(100)) if form == "full" else likelihood_spacing(100, 10))
    assert result.standard_error == rounded(float(result.per_image.std()) / math.sqrt(12), 2)


def test_the_full_form_is_a_plain_sum_of_the_bounds_terms(images: Tensor) -> None:
    process, model = make_process(SMALL), oracle()
    x_0, indices = images.float() / 127.5 - 1, torch.arange(12)
    by_hand = process.prior_bits_per_dim(x_0).double()
    for k in range(100):
        by_hand += bound_terms(Denoiser(process, model), x_0, torch.full((12,), k), indices=indices, seed=3)
    result = evaluate_likelihood(SMALL, model, batches(images, 12), seed=3)
    torch.testing.assert_close(result.per_image, by_hand, rtol=SUMS, atol=0)


def test_forms_share_their_noise(images: Tensor) -> None:
    """The decoder term of the full and of the stratified form is the same draw, and so is the whole with K = T."""
    full = evaluate_likelihood(SMALL, oracle(), batches(images, 12), seed=3)
    some = evaluate_likelihood(SMALL, oracle(), batches(images, 12), form="stratified", num_steps=10, seed=3)
    every = evaluate_likelihood(SMALL, oracle(), batches(images, 12), form="stratified", num_steps=100, seed=3)
    assert torch.equal(some.decoder_per_image, full.decoder_per_image)
    torch.testing.assert_close(every.per_image, full.per_image, rtol=SUMS, atol=0)


def test_the_stratified_form_is_each_drawn_term_times_its_stratums_width(images: Tensor) -> None:
    process, good = make_process(SMALL), oracle()
    drawn: list[Tensor] = []

    def spy(x_t: Tensor, timesteps: Tensor) -> Tensor:
        drawn.append((timesteps / 10).round().long())
        return good(x_t, timesteps)

    result = evaluate_likelihood(SMALL, spy, batches(images, 12), form="stratified", num_steps=6, seed=3)
    x_0, indices = images.float() / 127.5 - 1, torch.arange(12)
    by_hand = process.prior_bits_per_dim(x_0).double()
    for t, (start, stop) in zip(drawn, itertools.pairwise(stratum_bounds(100, 6)), strict=True):
        assert ((start <= t) & (t < stop)).all()
        by_hand += (stop - start) * bound_terms(Denoiser(process, good), x_0, t, indices=indices, seed=3)
    # A width times a float32 term is rounded here and not there: 6 positive terms, 2 u each.
    torch.testing.assert_close(result.per_image, by_hand, rtol=6 * 2 * U32, atol=0)


@pytest.mark.slow
def test_the_stratified_estimate_is_unbiased_for_the_full_bound(images: Tensor) -> None:
    """Averaged over 1,000 draws (of noise and timesteps) of one image, it lies within three standard errors of the full bound."""
    copies, model = images[:1].expand(1000, -1, -1, -1), oracle()
    full = evaluate_likelihood(SMALL, model, batches(copies[:400], 200), seed=1)
    for num_steps, seed in ((4, 2), (12, 3), (30, 4)):
        estimate = evaluate_likelihood(SMALL, model, batches(copies, 500), form="stratified", num_steps=num_steps, seed=seed)
        error = math.hypot(estimate.standard_error, full.standard_error)
        assert abs(estimate.bits_per_dim - full.bits_per_dim) < 3 * error
        assert error < 0.03 * full.bits_per_dim


@pytest.mark.slow
def test_the_standard_error_equals_the_spread_over_repetitions(images: Tensor) -> None:
    """The spread of the mean of 12 images over 100 seeds is the one that each evaluation states, up to how the images differ."""
    model = oracle()
    results = [
        evaluate_likelihood(SMALL, model, batches(images[:1].expand(12, -1, -1, -1), 12), form="stratified", num_steps=8, seed=seed)
        for seed in range(100)
    ]
    spread = float(torch.tensor([result.bits_per_dim for result in results]).std())
    stated = math.sqrt(sum(result.standard_error**2 for result in results) / len(results))
    # 100 numbers tell a standard deviation to 1 / sqrt(2 x 99) = 7%: three and a half of these.
    assert spread == pytest.approx(stated, rel=0.25)


def test_timesteps_are_uniform_within_each_stratum(images: Tensor) -> None:
    """Every timestep of a stratum is asked equally often, and none outside it; one exact timestep always."""
    bounds = stratum_bounds(100, 6)
    seen: list[Tensor] = []

    def spy(x_t: Tensor, timesteps: Tensor) -> Tensor:
        seen.append((timesteps / 10).round().long())
        return torch.cat([x_t, x_t], 1)

    pixel = torch.zeros(10_000, 1, 1, 1, dtype=torch.uint8)
    evaluate_likelihood(SMALL, spy, batches(pixel, 10_000), form="stratified", num_steps=6)
    assert len(seen) == 6
    for stratum, t in enumerate(seen):
        width = bounds[stratum + 1] - bounds[stratum]
        counts = torch.bincount(t, minlength=100)
        assert int(counts[bounds[stratum] : bounds[stratum + 1]].sum()) == 10_000
        expected = 10_000 / width
        chi_square = float(((counts[bounds[stratum] : bounds[stratum + 1]] - expected) ** 2 / expected).sum())
        assert chi_square < width - 1 + 5 * math.sqrt(2 * width)


@pytest.mark.parametrize(("num_timesteps", "num_steps"), [(4000, 100), (4000, 40), (1000, 50), (100, 100), (100, 99), (100, 2), (2, 2)])
def test_the_requested_number_of_strata_covers_every_timestep_once(num_timesteps: int, num_steps: int) -> None:
    bounds = stratum_bounds(num_timesteps, num_steps)
    assert bounds[0] == 0
    assert bounds[1] == 1
    assert bounds[-1] == num_timesteps
    assert len(bounds) == num_steps + 1
    assert all(a < b for a, b in itertools.pairwise(bounds))


def test_low_timesteps_are_exact_and_strata_widen_and_narrow_again() -> None:
    bounds = stratum_bounds(4000, 100)
    widths = [b - a for a, b in itertools.pairwise(bounds)]
    assert widths[:10] == [1] * 10
    assert widths[-1] <= 4
    assert max(widths) < 4000 / 15
    peak = widths.index(max(widths))
    assert all(b >= a - 1 for a, b in itertools.pairwise(widths[: peak + 1]))


@pytest.mark.slow
def test_the_strata_have_less_variance_than_equal_ones_at_the_same_cost(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DiffusionConfig(num_timesteps=400)
    copies, model = batches(images[:1].expand(400, -1, -1, -1), 200), oracle(config)
    ours = evaluate_likelihood(config, model, copies, form="stratified", num_steps=20)
    monkeypatch.setattr(
        "evaluation.likelihood.estimate.stratum_bounds", lambda total, k: (0, *(1 + (total - 1) * i // (k - 1) for i in range(k)))
    )
    equal = evaluate_likelihood(config, model, copies, form="stratified", num_steps=20)
    assert ours.num_evaluations_per_image == equal.num_evaluations_per_image == 20
    assert ours.standard_error < 0.5 * equal.standard_error


def test_labels_reach_the_network_and_other_inputs_can_be_made(images: Tensor) -> None:
    seen: list[dict[str, list[float]]] = []
    good = oracle()

    def spy(x_t: Tensor, timesteps: Tensor, **kwargs: Tensor) -> Tensor:
        seen.append({name: value.flatten().tolist() for name, value in kwargs.items()})
        return good(x_t, timesteps)

    labelled = [(torch.arange(2), images[:2], torch.tensor([4, 9]))]
    evaluate_likelihood(SMALL, spy, labelled, form="spaced", num_steps=1, timesteps=(0, 50))
    assert seen == [{"y": [4, 9]}] * 2
    seen.clear()
    evaluate_likelihood(SMALL, spy, labelled, form="spaced", timesteps=(0, 50), make_conditioning=lambda x_0, labels: {})
    assert seen == [{}] * 2


def test_the_network_runs_in_float32_under_autocast_and_settings_are_restored(images: Tensor) -> None:
    network = torch.nn.Conv2d(3, 6, 1)
    seen: list[torch.dtype] = []

    def spy(x_t: Tensor, timesteps: Tensor) -> Tensor:
        output: Tensor = network(x_t)
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert not torch.backends.cuda.matmul.allow_tf32
        seen.append(output.dtype)
        return output

    before = torch.backends.cudnn.conv.fp32_precision
    with torch.autocast("cpu", torch.bfloat16):
        evaluate_likelihood(SMALL, spy, batches(images[:1], 1), form="spaced", num_steps=2)
    assert set(seen) == {torch.float32}
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_parts_survive_storage(images: Tensor) -> None:
    parts = list(likelihood_parts(SMALL, model_for("spaced"), batches(images, 5), form="spaced", num_steps=10))
    assert [part.num_images for part in parts] == [5, 5, 2]
    stored = []
    for part in parts:
        file = io.BytesIO()
        torch.save(part.state_dict(), file)
        file.seek(0)
        stored.append(Likelihood.from_state_dict(torch.load(file, weights_only=True)))
    assert torch.equal(merge(stored).per_image, merge(parts).per_image)
    summary = json.loads(json.dumps(merge(stored).to_dict(), allow_nan=False))
    assert summary["num_images"] == 12
    assert summary["num_evaluations_per_image"] == len(summary["per_t"]) == len(likelihood_spacing(100, 10))


def test_one_image_has_a_likelihood_and_no_standard_error(images: Tensor) -> None:
    result = evaluate_likelihood(SMALL, model_for("spaced"), batches(images[:1], 1), form="spaced", num_steps=10)
    assert math.isnan(result.standard_error)
    assert result.to_dict()["standard_error"] is None


def test_an_image_in_two_parts_is_refused(images: Tensor) -> None:
    parts = list(likelihood_parts(SMALL, model_for("spaced"), batches(images, 5), form="spaced", num_steps=10))
    with pytest.raises(UserError, match="image 5 is in two parts"):
        merge([*parts, parts[1]])
    with pytest.raises(UserError, match="no images"):
        merge([])
    other = evaluate_likelihood(SMALL, oracle(), batches(images, 12), form="stratified", num_steps=10)
    with pytest.raises(UserError, match=r"evaluated differently: 'spaced' with .* and 'stratified' with 10"):
        merge([parts[0], other])


def test_invalid_arguments_of_a_likelihood_are_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"stored uint8 images; the batch's are torch.float32"):
        evaluate_likelihood(SMALL, oracle(), [(torch.arange(2), images[:2].float(), None)])
    with pytest.raises(UserError, match="takes 2 to 100 steps, got 1"):
        evaluate_likelihood(SMALL, oracle(), batches(images, 4), form="stratified", num_steps=1)
    with pytest.raises(UserError, match="takes 1 to 100 steps, got 101"):
        evaluate_likelihood(SMALL, oracle(), batches(images, 4), form="spaced", num_steps=101)
    with pytest.raises(UserError, match="only the 'spaced' and 'learned' forms take timesteps; this one is 'full'"):
        evaluate_likelihood(SMALL, oracle(), batches(images, 4), timesteps=(0, 50))


def test_the_prior_is_negligible_for_the_cosine_schedule(images: Tensor) -> None:
    process = make_process(DiffusionConfig())
    model = GaussianOracle(process, std=0.3)
    result = evaluate_likelihood(DiffusionConfig(), model, batches(images, 12), form="stratified", num_steps=2)
    assert 0 < result.prior < 1e-9

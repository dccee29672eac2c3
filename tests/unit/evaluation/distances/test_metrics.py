"""Metrics besides the Frechet distance against their formulas, in which order they put models, and what they may be named."""

import dataclasses
import math
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from golden import train_digit_classifier
from rounding import U32, U64, rounded
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from evaluation.distances import metrics
from evaluation.distances.frechet import BlockedMoments, FeatureStatistics, Moments, frechet_distance, leave_one_out_distances
from evaluation.distances.frechet_infinity import frechet_infinity
from evaluation.distances.gaussian_mmd import gaussian_mmd
from evaluation.distances.metric_value import MetricValue, share_of_images
from evaluation.distances.metrics import (
    METRICS,
    MetricInputs,
    MetricReference,
    compute_metrics,
    extract_features,
    inception_score,
    kernel_distance,
    kernel_distance_of_parts,
    max_images,
    parse_metrics,
    precision_recall,
    require_extractor,
)
from evaluation.distances.neighbours import density_coverage, expected_coverage, recall_of_halves, share_near_others
from evaluation.distances.reference_statistics import ReferenceStatistics
from evaluation.distances.sample_scorer import SampleScorer
from evaluation.distances.sliced_wasserstein import random_directions, sliced_wasserstein
from evaluation.features.extractors import DigitsExtractor, ExtractorId, extractor_id
from evaluation.records.intervals import SPLITS, balanced_halves, jackknife_bias, jackknife_error, student_factor
from evaluation.records.score_card import distance_score
from training.config.errors import UserError
from training.config.experiment import MetricName

_INCEPTION = extractor_id("inception")


def _features(num: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


def test_kernel_distance_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    x, y = _features(60, 8, 0), _features(60, 8, 1, shift=0.5)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    def within(z: Tensor) -> Tensor:
        return (kernel(z, z).sum() - kernel(z, z).trace()) / (len(z) * (len(z) - 1))

    expected = float(within(x) + within(y) - 2 * kernel(x, y).mean())
    # Float32 sums of 8 products, cubed: 3 x 8 x 2 u of each mean, which then almost cancel.
    rounding = 24 * 2 * U32 * float(within(x) + within(y) + 2 * kernel(x, y).mean()) / expected
    # One subset holds all 60 of each, so that every subset gives the same number.
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=rounding)
    parts, own_pair = kernel_distance_of_parts(x, y)

    def of_part(z: Tensor) -> float:
        return float(within(z) - 2 * kernel(z, y).mean())

    assert parts.without_blocks[0] == pytest.approx(of_part(x[6:]), rel=10 * rounding), "the first block is 6 of 60"
    in_first_half = torch.tensor([letter == "A" for letter in SPLITS[1]]).repeat_interleave(6)
    halves = [of_part(x[in_first_half]), of_part(x[~in_first_half])]
    assert parts.of_halves[1] == pytest.approx(halves, rel=10 * rounding)
    assert own_pair == pytest.approx(60 * float(kernel(x, x).mean() - within(x)), rel=10 * rounding)
    assert abs(kernel_distance(_features(500, 8, 2), _features(500, 8, 3)).value) < expected / 10


@pytest.mark.parametrize("seed", range(10))
def test_the_interval_of_a_kernel_distance_of_small_subsets_has_two_sides_of_its_errors_size(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(metrics, "_SUBSET_SIZE", 20)
    found = kernel_distance(_features(500, 4, 2 * seed + 1), _features(500, 4, 2 * seed + 2))
    assert found.interval is not None
    assert found.standard_error is not None
    low, high = (abs(end - found.value) / (student_factor(9) * found.standard_error) for end in found.interval)
    assert 0.5 < low <= 1 <= high < 2, "a perfect model's number may be negative, by more than pairs of all 500 with themselves add"


def test_the_inception_score_of_certain_and_balanced_classes_is_their_number() -> None:
    classes = torch.arange(20_000) % 5
    certain = torch.nn.functional.one_hot(classes, 5).float() * 100
    # In ten random splits of 2,000 the classes are almost even: what is missing has a mean of (5 - 1) / (2 x 2,000) and an error of 0.02%.
    assert inception_score(certain).value == pytest.approx(5, rel=2e-3)
    assert inception_score(torch.zeros(200, 5)).value == pytest.approx(1, rel=40 * U64)  # means of 20


def test_precision_and_recall_distinguish_too_little_variety_from_too_much() -> None:
    real = _features(400, 4, 0)
    narrow = {item.name: item.value for item in precision_recall(0.3 * _features(400, 4, 1), real)}
    wide = {item.name: item.value for item in precision_recall(3 * _features(400, 4, 2), real)}
    assert narrow["precision"] > 0.9 > wide["precision"]
    assert wide["recall"] > narrow["recall"]


def test_the_recall_of_a_half_is_that_of_its_samples() -> None:
    sample, real = _features(100, 4, 0, shift=0.5), _features(150, 4, 1)
    blocks = sample.tensor_split(8)
    halves = [torch.cat([block for block, chosen in zip(blocks, half.tolist(), strict=True) if chosen]) for half in balanced_halves()]
    # Shares of the same count of images; one is rounded to float32.
    assert recall_of_halves(sample, real, 3) == pytest.approx([precision_recall(half, real)[1].value for half in halves], rel=0, abs=U32)


def test_no_matrix_of_all_distances_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda x, y: sizes.append(len(x)) or cdist(x, y))
    precision_recall(_features(1500, 4, 1), _features(2500, 4, 2))
    assert max(sizes) <= 1000


def test_precision_recall_and_the_inception_score_are_torch_fidelitys() -> None:
    sample, real = 1.2 * _features(150, 4, 1), _features(200, 4, 2)
    expected = prc_features_to_metric(sample, real, prc_neighborhood=3, verbose=False)
    for found in precision_recall(sample, real):
        assert 0.1 < expected[found.name] < 1
        assert found.value == pytest.approx(expected[found.name], abs=U32)  # theirs is rounded to float32
    score, of_splits = inception_score(2 * sample), isc_features_to_metric(2 * sample, splits=10)
    # Splits of 15 and their mean: some 100 roundings. Their spread is above a hundredth of them.
    rounding = 100 * U64
    assert score.value == pytest.approx(of_splits["inception_score_mean"], rel=rounding)
    assert score.standard_error == pytest.approx(of_splits["inception_score_std"] / 3, rel=100 * rounding)
    assert np.mean(score.resampled) == pytest.approx(score.value, rel=rounding)
    closed_form = pytest.approx(score.standard_error, rel=100 * rounding)
    assert jackknife_error(score.resampled) == closed_form, "of a mean of splits"


@pytest.mark.parametrize("name", ["gaussian_mmd", "precision", "label_agreement"])
def test_a_number_without_a_block_is_that_of_the_other_samples(name: str) -> None:
    sample, real = _features(103, 4, 1), _features(80, 4, 2)

    def compute(sample: Tensor) -> MetricValue:
        if name == "gaussian_mmd":
            return gaussian_mmd(20 * sample, 20 * real)
        return precision_recall(sample, real)[0] if name == "precision" else share_of_images(name, sample[:, 0] > 0, "")

    blocks = sample.tensor_split(10)
    rest = [compute(torch.cat([*blocks[:b], *blocks[b + 1 :]])).value for b in range(10)]
    # Differences, since the MMD leaves out a term that all have. It is a thousand times three means within one, of some 100 roundings.
    assert np.diff(compute(sample).resampled) == pytest.approx(np.diff(rest), rel=0, abs=1000 * 2 * 3 * 100 * U64)


def test_a_perfect_models_precision_and_recall_are_as_stated() -> None:
    draws = [(_features(200, 4, 2 * seed), _features(200, 4, 2 * seed + 1)) for seed in range(20)]
    found = [precision_recall(sample, real) for sample, real in draws]
    stated = sum(share_near_others(real, 3) for _, real in draws) / 20
    # The mean of 20 draws of 200 images has a standard error of 0.004, also where images share neighbours and it is twice that of shares.
    for place in range(2):
        assert sum(items[place].value for items in found) / 20 == pytest.approx(stated, abs=0.016)
    assert f"samples of the real distribution have {share_near_others(draws[0][1], 3):.4f}" in found[0][0].note


def test_spatial_distance_is_the_frechet_distance_of_spatial_features() -> None:
    reference, sample = Moments(6), MetricInputs(parse_metrics(["sfid"]), blocks=BlockedMoments(6, 40))
    reference.update(_features(50, 6, 0))
    spatial = _features(40, 6, 1, shift=1.0)
    sample.update(torch.arange(40), {"features": spatial, "spatial": spatial}, None)
    other = Moments(6)
    other.update(spatial)
    (found,) = compute_metrics(sample, MetricReference(extractor=_INCEPTION, spatial=reference.statistics()))
    assert found.value == rounded(frechet_distance(reference, other), 6 * 40, scale=10)  # sums of 40 products in another order
    assert found.interval is not None
    assert found.bias is not None


def test_published_names_belong_to_the_published_weights_of_one_network() -> None:
    features = {"kid": ("kid", "kernel_distance"), "mind": ("mind", "sliced_wasserstein"), "cmmd": ("cmmd", "gaussian_mmd")}
    for metric, names in features.items():
        own = extractor_id("clip-vit-l-14-336px" if metric == "cmmd" else "inception")
        inputs = MetricInputs(parse_metrics([metric]))
        inputs.update(torch.arange(30), {"features": _features(30, 4, 0)}, None)
        others = (own, ExtractorId(own.name, "0" * 64), extractor_id("dinov2-vit-l-14"))
        found = [compute_metrics(inputs, MetricReference(extractor=one, features=_features(30, 4, 1)))[0].name for one in others]
        assert found == [names[0], names[1], names[1]]


def test_the_experiments_names_are_those_of_the_table() -> None:
    assert set(get_args(MetricName)) == set(METRICS)


def _prdc(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:  # type: ignore[type-arg]
    """Density and coverage by their definitions, a real image at a time."""
    inside, reached = 0, 0
    for i, point in enumerate(real):
        radius = np.sort(np.linalg.norm(np.delete(real, i, axis=0) - point, axis=1))[k - 1]
        within = np.linalg.norm(fake - point, axis=1) < radius
        inside, reached = inside + within.sum(), reached + within.any()
    return inside / (k * len(fake)), reached / len(real)


def test_density_and_coverage_are_their_definitions_and_a_perfect_models_values_are_as_stated() -> None:
    sample, real = _features(80, 6, 0, shift=0.2), _features(120, 6, 1)
    density, coverage = density_coverage(sample, real)
    assert (density.value, coverage.value) == rounded(_prdc(real.numpy(), sample.numpy(), 5), 2)  # counts, divided
    assert density.standard_error is not None
    # Coverage of 300 by 100 of one distribution, the mean of 20 draws: its spread is below 0.03, so 0.03 is four errors.
    draws = [density_coverage(_features(100, 3, 2 * seed), _features(300, 3, 2 * seed + 1)) for seed in range(20)]
    assert sum(item[1].value for item in draws) / 20 == pytest.approx(expected_coverage(300, 100), abs=0.03)
    densities = [item[0].value for item in draws]
    assert np.mean(densities) == pytest.approx(1, abs=4 * np.std(densities, ddof=1) / math.sqrt(20))  # four errors here too


def test_the_gaussian_mmd_is_its_formula_and_its_bias_that_of_the_pairs_with_oneself() -> None:
    x, y = 6 * _features(50, 8, 0), 6 * _features(70, 8, 1)
    pairs = ((z.double().numpy(), w.double().numpy()) for z, w in ((x, x), (y, y), (x, y)))
    kernels = [np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 200) for a, b in pairs]
    biased = 1000 * (kernels[0].mean() + kernels[1].mean() - 2 * kernels[2].mean())
    n, m = 50, 70
    within = [(kernel.sum() - size) / (size * (size - 1)) for kernel, size in zip(kernels, (n, m), strict=False)]
    found = gaussian_mmd(x, y)
    rounding = 1000 * 4 * 100 * U64  # of four means within one, of some 100 roundings each
    unbiased = 1000 * (within[0] + within[1] - 2 * kernels[2].mean())
    assert found.value == pytest.approx(biased, rel=0, abs=rounding)
    assert found.value - (found.bias or 0) == pytest.approx(unbiased, rel=0, abs=2 * rounding)
    assert abs(found.value - (found.bias or 0)) < found.value / 2, "one distribution, so that most is bias"


def test_the_sliced_wasserstein_distance_is_its_formula_and_three_times_a_squared_shift() -> None:
    x, y = _features(60, 8, 0), 1.5 * _features(90, 8, 1)
    directions = random_directions(8, 30)
    projected = [np.sort(z[:60].double().numpy() @ directions.double().numpy().T, axis=0) for z in (x, y)]
    expected = 3 * 8 * ((projected[0] - projected[1]) ** 2).mean()
    # Projections are float32 sums of 8 products. Differences are about a tenth of them, and squared.
    assert sliced_wasserstein(x, y, directions).value == pytest.approx(expected, rel=2 * 8 * 10 * U32)
    shift = torch.zeros(8)
    shift[2] = 0.7
    # The mean of 1,000 squared cosines in 8 dimensions: 1/8 with a relative spread of sqrt(2 x 7 / 10 / 1,000) = 4%.
    assert sliced_wasserstein(x, x + shift).value == pytest.approx(3 * 0.7**2, rel=0.15)


def test_a_distance_of_equal_sets_is_not_called_unbiased() -> None:
    features = _features(60, 64, 0)
    equal = features[:1].expand(60, -1)
    for name, sample in (("mind", features), ("cmmd", equal)):
        inputs = MetricInputs(frozenset({name}))
        inputs.update(torch.arange(len(sample)), {"features": sample}, None)
        (found,) = compute_metrics(inputs, MetricReference(extractor=_INCEPTION, features=sample))
        assert (found.value, found.bias, found.is_unbiased) == (0.0, 0.0, False)
        assert "unbiased" not in found.note
    row = distance_score("FID", 0.0, 0.0, [0.0] * 10, num_samples=60)
    assert (row.bias, row.is_unbiased) == (0.0, False)


def test_the_jackknife_takes_most_of_the_bias_from_the_sliced_wasserstein_distance() -> None:
    found = [sliced_wasserstein(_features(400, 8, 2 * s), _features(400, 8, 2 * s + 1), random_directions(8, 100)) for s in range(8)]
    plain, corrected = (sum(item.value - part * (item.bias or 0) for item in found) / 8 for part in (0, 1))
    assert abs(corrected) < plain / 3, "of one distribution, whose distance is 0"


def test_the_distance_at_infinity_is_the_true_one_within_its_error() -> None:
    dim, num, draws = 16, 400, 12
    reference = FeatureStatistics(mean=torch.zeros(dim).double(), covariance=torch.eye(dim).double())
    truth = dim * (1.1 - 1) ** 2
    found, plain = [], []
    for seed in range(draws):
        blocks = BlockedMoments(dim, num)
        blocks.update(torch.arange(num), 1.1 * _features(num, dim, seed))
        found.append(frechet_infinity(reference, blocks))
        plain.append(frechet_distance(reference, blocks.total()))
    errors = [item.standard_error or 0 for item in found]
    mean, error = sum(item.value for item in found) / draws, math.sqrt(sum(e**2 for e in errors)) / draws
    assert abs(mean - truth) < 3 * error
    assert sum(plain) / draws - truth > 6 * error, "of 400 samples, the plain distance is too large"
    with pytest.raises(UserError, match="fd_infinity takes 80 samples at least, got 79"):
        frechet_infinity(reference, BlockedMoments(dim, 79))


def test_with_few_images_for_each_feature_the_distance_at_infinity_is_too_small_and_says_so() -> None:
    dim, num, draws = 64, 640, 8
    reference = FeatureStatistics(mean=torch.zeros(dim).double(), covariance=torch.eye(dim).double())
    truth, found, without_bias = dim * (1.1 - 1) ** 2, [], []
    for seed in range(draws):
        blocks = BlockedMoments(dim, num)
        blocks.update(torch.arange(num), 1.1 * _features(num, dim, seed))
        found.append(frechet_infinity(reference, blocks))
        plain = frechet_distance(reference, blocks.total())
        without_bias.append(plain - jackknife_bias(plain, leave_one_out_distances(reference, blocks)))
    values = torch.tensor([item.value for item in found])
    error = float(values.std()) / math.sqrt(draws)
    assert float(values.mean()) < truth - 4 * error
    # Four errors of the mean difference, which is 0.28 here.
    nearer = (values - truth).abs() - (torch.tensor(without_bias) - truth).abs()
    assert float(nearer.mean()) > 4 * float(nearer.std()) / math.sqrt(draws)
    for item in found:
        assert "too small with few for each feature (here 2.0 at least), where the distance without its bias is better" in item.note


@pytest.mark.slow
def test_every_metric_puts_real_digits_before_blurred_ones_and_before_one_digit_repeated() -> None:
    images, labels = train_digit_classifier.digits("train")
    reference, good = images[:740], images[740:1480]
    blurred = torch.nn.functional.avg_pool2d(good.float(), 3, 1, 1).round().to(torch.uint8)
    collapsed = good[labels[740:1480] == 3].repeat(11, 1, 1, 1)[:740]
    extractor = DigitsExtractor()
    names = parse_metrics(["kid", "cmmd", "mind", "fd_infinity", "precision_recall", "density_coverage"])
    moments = Moments(extractor.dim)
    moments.update(extractor(reference))
    real = ReferenceStatistics(features=moments.statistics(), provenance=None)
    found: list[dict[str, float]] = []
    for samples in (good, blurred, collapsed):
        scorer = SampleScorer(extractor, len(samples), names)
        for first in range(0, len(samples), 250):  # one pass
            scorer.update(torch.arange(first, min(first + 250, len(samples))), samples[first : first + 250])
        numbered = [(torch.arange(len(reference)), reference)]
        found.append({name: item["value"] for name, item in scorer.scores(real, numbered).metrics.items()})
    best, blur, one_digit = found
    assert len(best) == 8
    for name in ("kernel_distance", "gaussian_mmd", "sliced_wasserstein", "fd_infinity"):
        assert best[name] < min(blur[name], one_digit[name]) / 3, name
    for name in ("recall", "coverage"):
        assert best[name] > one_digit[name] + 0.2, name
    for name in ("precision", "density", "coverage"):
        assert best[name] > blur[name] + 0.1, name


def test_features_of_ten_thousand_samples_are_stored_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_FEATURES", 50)
    inputs = MetricInputs(parse_metrics(["kid", "mind", "density_coverage"]))
    for seed in range(3):
        inputs.update(torch.arange(30) + 30 * seed, {"features": _features(30, 4, seed)}, None)
    assert inputs.features.shape == (50, 4)


class Pixels:
    """An extractor whose features are the pixels of an image."""

    name, dim, sha256, provides = "pixels", 4, "0" * 64, ("features",)

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self(images)}


def test_the_stored_features_are_those_of_the_first_indices_whatever_order_images_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_FEATURES", 50)
    images = torch.arange(4 * 90, dtype=torch.int16).view(90, 1, 2, 2)
    first = images[:50].flatten(1).float()
    for order in (torch.arange(90), torch.randperm(90, generator=torch.Generator().manual_seed(0))):
        inputs, batches = MetricInputs(parse_metrics(["kid"])), [(some, images[some]) for some in order.split(20)]
        for some, batch in batches:
            inputs.update(some, Pixels().outputs(batch), None)
        assert torch.equal(inputs.features, first)
        assert torch.equal(extract_features(batches, Pixels()), first)


def test_real_images_beyond_those_whose_features_are_stored_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_FEATURES", 50)
    read: list[int] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for some in torch.arange(90).split(20):
            read.append(int(some[0]))
            yield some, torch.zeros(len(some), 1, 2, 2, dtype=torch.uint8)

    assert len(extract_features(batches(), Pixels())) == 50
    assert read == [0, 20, 40]


@pytest.mark.parametrize("extractor", ["inception", "clip-vit-l-14-336px", "digits-classifier"])
def test_the_numbers_that_are_of_ten_thousand_samples_at_most_are_those_of_stored_features(extractor: str) -> None:
    features = _features(40, 4, 0)
    of_features = frozenset(name for name, metric in METRICS.items() if metric.output == "features")
    inputs = MetricInputs(of_features)
    inputs.update(torch.arange(40), {"features": features}, None)
    found = compute_metrics(inputs, MetricReference(extractor=extractor_id(extractor), features=_features(40, 4, 1)))
    assert {max_images(value.name) for value in found} == {10_000}
    assert {max_images(name) for name in ("fd_infinity", "fid_infinity", "inception_score", "sfid", "label_agreement")} == {None}


def test_a_number_without_a_row_is_refused_where_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric would else be read as one of which less is better, by a forgotten table."""
    forgotten = dataclasses.replace(METRICS["mind"], compute=lambda inputs, reference: [MetricValue("sharpness", 1.0, None, "n")])
    monkeypatch.setitem(METRICS, "mind", forgotten)
    inputs = MetricInputs(frozenset({"mind"}))
    with pytest.raises(UserError, match="'sharpness' is no metric of this version"):
        compute_metrics(inputs, MetricReference(extractor=_INCEPTION, features=_features(40, 4, 1)))


def test_label_agreement_is_a_fraction_with_its_error() -> None:
    kept = MetricInputs(parse_metrics(["label_agreement"]))
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    kept.update(torch.arange(4), {"features": logits, "logits": logits}, torch.tensor([0, 1, 2, 2]))
    (found,) = compute_metrics(kept, MetricReference(extractor=extractor_id("digits-classifier")))
    assert found.value == 0.75
    assert found.standard_error == math.sqrt(0.75 * 0.25 / 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [("sfid", "gives features, logits; sfid needs spatial"), ("inception_score", "defined on the Inception network's logits")],
)
def test_metrics_that_an_extractor_does_not_support_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_extractor(parse_metrics([name]), DigitsExtractor())

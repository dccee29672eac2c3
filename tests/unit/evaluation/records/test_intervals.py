"""Intervals cover what they say: of 200 repeats 95%, for a distance and for the difference of two on common noise."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from rounding import rounded
from torch import Tensor

from evaluation.distances import metrics
from evaluation.distances.frechet import (
    BlockedMoments,
    FeatureStatistics,
    distances_of_halves,
    frechet_distance,
    leave_one_out_distances,
)
from evaluation.distances.frechet_infinity import frechet_infinity
from evaluation.distances.gaussian_mmd import gaussian_mmd
from evaluation.distances.metric_value import MetricValue, share_of_images
from evaluation.distances.metrics import (
    MetricInputs,
    MetricReference,
    compute_metrics,
    inception_score,
    kernel_distance,
    parse_metrics,
    precision_recall,
)
from evaluation.distances.neighbours import density_coverage
from evaluation.distances.paired import metric_differences
from evaluation.distances.sliced_wasserstein import random_directions, sliced_wasserstein
from evaluation.features.extractors import extractor_id
from evaluation.likelihood.bits_per_dim import Likelihood
from evaluation.records.intervals import (
    SPLITS,
    distance_error,
    jackknife_error,
    jackknife_excess,
    logarithmic_interval,
    student_interval,
)
from evaluation.records.paired import Difference
from evaluation.records.result import EvaluationResult
from evaluation.records.score_card import ScoreCardRow, likelihood_score

_NUM_REPEATS, _NUM_IMAGES, _DIM = 200, 400, 4


def _normal(dim: int) -> FeatureStatistics:
    return FeatureStatistics(mean=torch.zeros(dim, dtype=torch.float64), covariance=torch.eye(dim, dtype=torch.float64))


def _blocks(features: Tensor) -> BlockedMoments:
    blocks = BlockedMoments(_DIM, len(features))
    blocks.update(torch.arange(len(features)), features)
    return blocks


def _distances(features: Tensor) -> tuple[float, list[float]]:
    """The distance of a sample from the standard normal, and without each of ten blocks."""
    blocks = _blocks(features)
    return frechet_distance(_normal(_DIM), blocks.total()), leave_one_out_distances(_normal(_DIM), blocks)


def test_the_intervals_of_distances_and_of_their_differences_cover() -> None:
    draws = torch.randn(_NUM_REPEATS, _NUM_IMAGES, _DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = [_distances(1.1 * noise + 0.2) for noise in draws]
    second = [_distances(1.1 * noise + 0.25 + 0.05 * noise**2) for noise in draws]
    alone = np.array([value for value, _ in first])
    paired = alone - [value for value, _ in second]
    errors = [jackknife_error(blocks) for _, blocks in first]
    paired_errors = [jackknife_error([a - b for a, b in zip(x, y, strict=True)]) for (_, x), (_, y) in zip(first, second, strict=True)]
    for values, standard_errors in ((alone, errors), (paired, paired_errors)):
        intervals = [student_interval(value, error, 9) for value, error in zip(values, standard_errors, strict=True)]
        covered = np.mean([low <= values.mean() <= high for low, high in intervals])
        # One repeat's share has a standard error of 1.5%; the mean of 200 values, which stands for the truth, hardly adds to it.
        assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("dim", [_DIM, 24])
def test_the_interval_of_a_distance_that_is_nothing_but_bias_covers_too(dim: int) -> None:
    """The jackknife's variance is twice the true one there: its interval covers 98 to 99%."""
    reference = _normal(dim)
    values, errors, jackknife = [], [], []
    for noise in torch.randn(_NUM_REPEATS, 200, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        blocks = BlockedMoments(dim, len(noise))
        blocks.update(torch.arange(len(noise)), noise)
        without = leave_one_out_distances(reference, blocks)
        values.append(frechet_distance(reference, blocks.total()))
        errors.append(distance_error(without, distances_of_halves(reference, blocks)))
        jackknife.append(distance_error(without, []))
    assert np.square(jackknife).mean() / np.var(values) > 1.7
    intervals = [student_interval(value, error, 9) for value, error in zip(values, errors, strict=True)]
    covered = np.mean([low <= np.mean(values) <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.98


def test_the_error_of_a_distance_is_the_jackknifes_less_five_sevenths_of_the_excess_and_at_least_its_half() -> None:
    without, halves = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 1.1, 0.9, 1.0, 1.0], [[1.0, 1.0 + 0.02 * number] for number in range(6)]
    square = jackknife_error(without) ** 2
    assert distance_error(without, halves) ** 2 == rounded(square - 5 / 7 * jackknife_excess(halves), 8)  # operations, here and below
    assert distance_error(without, [[1.0, float(number)] for number in range(6)]) ** 2 == rounded(square / 2, 3)
    assert distance_error(without, []) ** 2 == rounded(square, 3)
    assert np.isnan(distance_error([], halves))


def test_a_logarithmic_interval_is_positive_and_for_a_small_error_students() -> None:
    low, high = logarithmic_interval(2.0, 1.0, 9)
    assert low * high == rounded(4.0, 3)
    assert high == pytest.approx(2 * np.exp(2.262157 / 2), rel=2.5e-7)  # half of the last digit, of the exponent's half
    # The second order of exp(x) at x = 2.26 x 1e-4 / 2 is 6.4e-9, of 2.
    assert logarithmic_interval(2.0, 1e-4, 9) == pytest.approx(student_interval(2.0, 1e-4, 9), abs=1.3e-8)
    assert logarithmic_interval(0.0, 1.0, 9) == (0.0, student_interval(0.0, 1.0, 9)[1])
    assert logarithmic_interval(1e-15, 1.0, 9) == pytest.approx(logarithmic_interval(0.0, 1.0, 9), abs=1e-14), "0 but for rounding"
    assert np.isfinite(logarithmic_interval(2.262157 / 699, 1.0, 9)).all()


_REAL = torch.randn(300, _DIM, generator=torch.Generator().manual_seed(1))


def _sfid(sample: Tensor, real: Tensor) -> MetricValue:
    inputs = MetricInputs(parse_metrics(["sfid"]), blocks=BlockedMoments(sample.shape[1], len(sample)))
    inputs.update(torch.arange(len(sample)), {"spatial": sample}, None)
    return compute_metrics(inputs, MetricReference(extractor=extractor_id("inception"), spatial=_normal(sample.shape[1])))[0]


def _bits_per_dim(sample: Tensor, real: Tensor) -> ScoreCardRow:
    bits = sample[:, 0].double().exp()  # a mean of skewed values
    none = torch.zeros(0, dtype=torch.float64)
    found = Likelihood(
        form="full",
        num_evaluations_per_image=1,
        indices=torch.arange(len(bits)),
        per_image=bits,
        prior_per_image=bits,
        decoder_per_image=bits,
        term_sums=none,
    )
    return likelihood_score(found.to_dict(), "test")


def _agreement(sample: Tensor, real: Tensor) -> MetricValue:
    return share_of_images("label_agreement", sample[:, 0] < 1.7, "")


_METRICS: dict[str, Callable[[Tensor, Tensor], MetricValue | ScoreCardRow]] = {
    "KID": lambda sample, real: kernel_distance(sample, _REAL),
    "CMMD": lambda sample, real: gaussian_mmd(20 * sample, 20 * _REAL),
    "MIND": lambda sample, real: sliced_wasserstein(sample, real, random_directions(_DIM, 20)),
    "Frechet distance at infinity": lambda sample, real: frechet_infinity(_normal(_DIM), _blocks(sample)),
    "sFID": _sfid,
    "bits/dim": _bits_per_dim,
    "inception score": lambda sample, real: inception_score(2 * sample),
    "precision": lambda sample, real: precision_recall(sample, _REAL)[0],
    "recall": lambda sample, real: precision_recall(sample, _REAL)[1],
    "density": lambda sample, real: density_coverage(sample, _REAL)[0],
    "coverage": lambda sample, real: density_coverage(sample, _REAL)[1],
    "label agreement": _agreement,
}


# Its interval covers about 93% here (`make bench-intervals`): the share of 200 repeats has a standard error of 2%, that of 1,000 of 0.8%.
_REPEATS = {"MIND": 1000}


@pytest.mark.slow
@pytest.mark.parametrize("name", _METRICS)
def test_the_intervals_of_the_other_numbers_cover(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_NUM_SUBSETS", 5)
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(_REPEATS.get(name, _NUM_REPEATS)):
        sample, real = (torch.randn(200, _DIM, generator=generator) for _ in range(2))
        found.append(_METRICS[name](1.15 * sample + 0.2, real))
    truth = np.mean([item.value for item in found])
    covered = np.mean([item.interval[0] <= truth <= item.interval[1] for item in found if item.interval])
    assert all(item.method for item in found)
    assert 0.92 <= covered <= 0.98


_FEW_REAL = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
# A distance, and at least how many times the true variance the jackknife's is. With as many real images as samples the witness function's
# variance is twice that of pairs, so the KID's is (4 + 2 x 2) / (4 + 2) = 1.33 times too large.
_MOSTLY_BIAS: dict[str, tuple[Callable[[Tensor, Tensor], MetricValue], float]] = {
    "KID": (lambda sample, real: kernel_distance(sample, _FEW_REAL), 1.2),
    "MIND": (lambda sample, real: sliced_wasserstein(1.05 * sample + 0.05, real, random_directions(24, 100)), 1.5),
    "sFID": (_sfid, 1.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _MOSTLY_BIAS)
def test_the_intervals_of_a_good_models_distances_cover(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the distance is the bias of few samples, in 24 features, which the jackknife counts twice."""
    monkeypatch.setattr(metrics, "_NUM_SUBSETS", 1)
    measure, least_ratio = _MOSTLY_BIAS[name]
    generator = torch.Generator().manual_seed(3)
    draws = [[torch.randn(200, 24, generator=generator) for _ in range(2)] for _ in range(_NUM_REPEATS)]
    found = [measure(sample, real) for sample, real in draws]
    values = np.array([item.value for item in found])
    covered = np.mean([item.interval[0] <= values.mean() <= item.interval[1] for item in found if item.interval])
    jackknife = np.mean([jackknife_error(item.resampled) ** 2 for item in found]) / values.var()
    assert jackknife > least_ratio
    assert 0.92 <= covered <= 0.98


_PAIRED = ("CMMD", "Frechet distance at infinity", "inception score", "precision", "label agreement")


@pytest.mark.slow
@pytest.mark.parametrize("name", _PAIRED)
def test_the_intervals_of_differences_on_common_noise_cover(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    found: list[Difference] = []
    widths = []
    for _ in range(_NUM_REPEATS):
        noise, real = (torch.randn(200, _DIM, generator=generator) for _ in range(2))
        models = [_METRICS[name](sample, real) for sample in (1.15 * noise + 0.2, 1.1 * noise + 0.25 + 0.05 * noise**2)]
        results = [_result(item) for item in models if isinstance(item, MetricValue)]
        found += metric_differences(results[0], results[1]).values()
        widths.append(np.hypot(*(each["standard_error"] for result in results for each in result.metrics.values())))
    truth = np.mean([each.value for each in found])
    covered = np.mean([each.interval[0] <= truth <= each.interval[1] for each in found if each.interval])
    assert len(found) == _NUM_REPEATS
    # The two label agreements differ in two images on average: of so few the interval is wider than it has to be.
    assert 0.92 <= covered <= (1.0 if name == "label agreement" else 0.98)
    assert np.mean([each.standard_error or 0.0 for each in found]) < np.mean(widths), "common noise makes it smaller than independent draws"


def test_a_difference_of_a_metric_is_of_the_samples_that_it_uses() -> None:
    """Precision uses 10,000 of 50,000 samples, and more would tell no more; the label agreement uses all."""
    found = {}
    for name in ("precision", "label_agreement"):
        ours, theirs = (share_of_images(name, torch.arange(10_000) >= first, "") for first in (50, 40))
        found[name] = metric_differences(_result(ours, 50_000), _result(theirs, 50_000))[name]
    of_precision, of_agreement = found.values()
    assert (of_precision.num_images, of_agreement.num_images) == (10_000, 50_000)
    assert of_precision.standard_error is not None
    assert of_agreement.standard_error is not None
    more = of_precision.standard_error**2 - of_agreement.standard_error**2
    # As if one image of those that are used differed.
    assert more == rounded(10_000**-2 - 50_000**-2, 8, scale=of_precision.standard_error**2)
    unclear = [dataclasses.replace(each, value=0.0001, standard_error=0.0001).finding for each in found.values()]
    assert unclear == ["can't be told with 10,000 images", "can't be told with 50,000 images, about 260,000 would tell"]


def _result(item: MetricValue, num_samples: int = 200) -> EvaluationResult:
    return EvaluationResult(
        checkpoint_uri="",
        weights="",
        step=0,
        distance_name="",
        distance=0.0,
        distance_standard_error=None,
        metrics={item.name: item.to_dict()},
        protocol={"distance": {"num_samples": num_samples}},
        experiment={},
        created_at="",
        seconds=0.0,
    )


def test_a_probability_of_being_better_is_right_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(0, 1.0, 4000)  # differences of models, much wider than their errors' prior
    blocks = truth[:, None] + random.normal(0, 1.5, (4000, 10))
    found = [
        Difference(value=float(row.mean()), standard_error=float(row.std(ddof=1) / np.sqrt(10)), degrees_of_freedom=9).probability_better
        for row in blocks
    ]
    said = np.array(found, dtype=float)
    sure = (said > 0.8) & (said < 0.95)
    # Some 500 cases of a share near 0.88 have a standard error of 1.5%; the prior, which is not flat, costs as much again.
    assert np.mean(truth[sure] < 0) == pytest.approx(said[sure].mean(), abs=0.06)


def test_as_many_images_as_needed_make_the_interval_exclude_zero() -> None:
    difference = Difference(value=0.1, standard_error=0.1, degrees_of_freedom=9, num_images=1000)
    assert difference.num_images_needed is not None
    grown = difference.num_images_needed / 1000
    assert Difference(value=0.1, standard_error=0.1 / grown**0.5 * 0.999, degrees_of_freedom=9).verdict == "worse"
    assert Difference(value=0.1, standard_error=0.1 / grown**0.5 * 1.01, degrees_of_freedom=9).verdict == "can't be told"


def test_a_difference_whose_error_is_not_known_needs_no_number_of_images() -> None:
    for error in (math.nan, math.inf):
        assert Difference(value=0.1, standard_error=error, degrees_of_freedom=9, num_images=1000).num_images_needed is None


def test_each_two_splits_of_the_blocks_are_balanced() -> None:
    signs = np.array([[1 if half == "A" else -1 for half in split] for split in SPLITS])
    assert (signs.sum(axis=1) == 0).all()
    products = signs @ signs.T
    assert (np.diag(products) == 10).all()
    assert (np.abs(products[~np.eye(len(SPLITS), dtype=bool)]) == 2).all()


@pytest.mark.parametrize("linear", [0.0, 1.0])
def test_the_excess_of_the_jackknife_is_exact_for_a_statistic_of_second_order(linear: float) -> None:
    """The statistic of ten blocks x_b is c m + |m|^2, with m their mean; m ~ N(0, 1/10) in each of 5 dimensions."""
    generator, num_draws = np.random.default_rng(0), 4000
    blocks = generator.standard_normal((num_draws, 10, 5))

    def statistic(means: np.ndarray) -> np.ndarray:
        return linear * means[..., 0] + np.square(means).sum(axis=-1)

    true = linear**2 / 10 + 2 * 5 / 10**2
    without = statistic((blocks.sum(axis=1, keepdims=True) - blocks) / 9)
    first = np.array([[half == "A" for half in split] for split in SPLITS], dtype=float)
    halves = np.stack([statistic(which @ blocks / 5) for which in (first, 1 - first)], axis=-1)
    squares = np.array([jackknife_error(each) ** 2 for each in without.tolist()])
    corrected = squares - [jackknife_excess(each) for each in halves.tolist()]
    for found, expected in ((corrected, true), (squares, true + (1 + 8 / 81) * 0.1)):
        assert found.mean() == pytest.approx(expected, abs=3.3 * found.std() / np.sqrt(num_draws))  # one in 1,000 is beyond


def test_there_is_no_excess_without_halves() -> None:
    assert np.isnan(jackknife_excess([]))

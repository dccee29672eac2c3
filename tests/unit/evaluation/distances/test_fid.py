"""The Frechet distance against its closed forms, its merging, and the library that others use."""

import importlib
import math

import pytest
import torch
from rounding import U64
from torch import Tensor

from evaluation.distances.frechet import (
    BlockedMoments,
    FeatureStatistics,
    Moments,
    distances_of_halves,
    frechet_distance,
    leave_one_out_distances,
    merged,
    triangular_factor,
)
from evaluation.records.intervals import SPLITS, jackknife_error, jackknife_excess
from evaluation.records.not_finite import NotFiniteError
from training.config.errors import UserError


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, generator=_generator(seed), dtype=torch.float64)).Q


def _spd(dim: int, seed: int) -> Tensor:
    """A covariance with a power-law spectrum from 1 down to 1e-3, as features have."""
    rotation = _rotation(dim, seed)
    return rotation * torch.logspace(0, -3, dim, dtype=torch.float64) @ rotation.T


def _moments(features: Tensor) -> Moments:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments


def _features(num: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=_generator(seed), dtype=torch.float64) @ _rotation(dim, seed + 1) + shift


def _rounding(dim: int, largest: float, inverses: float) -> float:
    """Return the error of a distance in float64.

    In it is twice a sum of roots r of eigenvalues. An eigenvalue errs by d u times the largest, in the factor and in the product: in all by
    2 d u max(r)^2, and its root by that over 2 r.

    Args:
        largest: The largest root.
        inverses: The sum of 1 / r.
    """
    return 2 * dim * U64 * largest**2 * inverses


@pytest.mark.parametrize("dim", [1, 2, 64, 256])
def test_distance_of_gaussians_with_common_axes_is_the_sum_over_the_axes(dim: int) -> None:
    rotation = _rotation(dim, 0)
    a, b = torch.rand(2, dim, generator=_generator(1), dtype=torch.float64) + 0.01
    shift = torch.randn(dim, generator=_generator(2), dtype=torch.float64)
    first = FeatureStatistics(mean=torch.zeros(dim, dtype=torch.float64), covariance=rotation * a @ rotation.T)
    second = FeatureStatistics(mean=shift, covariance=rotation * b @ rotation.T)
    exact, roots = float(shift @ shift + (a.sqrt() - b.sqrt()).square().sum()), (a * b).sqrt()
    sums = (dim + 4) * U64 * float(shift @ shift + (a + b).sum())
    rounding = _rounding(dim, float(roots.max()), float((1 / roots).sum())) + sums
    assert frechet_distance(first, second) == pytest.approx(exact, rel=0, abs=rounding)


@pytest.mark.parametrize("dim", [3, 64, 256, 700])
def test_distance_of_a_gaussian_and_its_linear_image_is_known_without_a_root(dim: int) -> None:
    # With S_2 = T S_1 T for a symmetric T > 0, (S_1^(1/2) S_2 S_1^(1/2))^(1/2) = S_1^(1/2) T S_1^(1/2), whose trace is tr(S_1 T).
    covariance, transport = _spd(dim, 3), _spd(dim, 5) + 0.5 * torch.eye(dim, dtype=torch.float64)
    image = transport @ covariance @ transport
    zero = torch.zeros(dim, dtype=torch.float64)
    exact = float(covariance.trace() + image.trace() - 2 * (covariance @ transport).trace())
    first, second = FeatureStatistics(mean=zero, covariance=covariance), FeatureStatistics(mean=zero, covariance=(image + image.T) / 2)
    rounding = _rounding(dim, 1.5, float(torch.linalg.inv(covariance @ transport).trace()))  # the roots are the eigenvalues of S_1 T
    assert frechet_distance(first, second) == pytest.approx(exact, rel=0, abs=rounding)
    assert frechet_distance(second, first) == pytest.approx(exact, rel=0, abs=rounding)


@pytest.mark.parametrize(("first", "second"), [(24, 30), (30, 24), (64, 20), (20, 64), (20, 0)])
def test_distance_of_singular_gaussians_whose_count_is_unknown_is_exact(first: int, second: int) -> None:
    # Rounding of 1e-16 in a variance that is zero would be 1e-8 in its root, many times over.
    rotation, spread = _rotation(64, 0), torch.linspace(1, 2, 64, dtype=torch.float64)
    a, b = (spread * (torch.arange(64) < rank) for rank in (first, second))
    zero = torch.zeros(64, dtype=torch.float64)
    one, other = (FeatureStatistics(mean=zero, covariance=rotation * variances @ rotation.T) for variances in (a, b))
    assert frechet_distance(one, other) == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=0, abs=_rounding(64, 2, 64))


def test_distance_to_itself_is_zero() -> None:
    moments = _moments(_features(500, 64, seed=7))
    assert 0.0 <= frechet_distance(moments, moments) < _rounding(64, 1.9, 64 / 0.4)  # the eigenvalues of 500 normal vectors


@pytest.mark.parametrize("num", [2, 20, 63, 64])
def test_distance_of_fewer_images_than_dimensions_equals_the_gram_form(num: int) -> None:
    # With centred rows A, B: tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2) is the nuclear norm of A B^T, which needs no root of a singular matrix.
    a, b = _features(num, 64, seed=11), _features(num + 5, 64, seed=13, shift=0.1)
    centred_a, centred_b = (a - a.mean(0)) / math.sqrt(len(a) - 1), (b - b.mean(0)) / math.sqrt(len(b) - 1)
    difference = a.mean(0) - b.mean(0)
    roots = torch.linalg.svdvals(centred_a @ centred_b.T)[: num - 1]  # the others are 0
    exact = float(difference @ difference + centred_a.square().sum() + centred_b.square().sum() - 2 * roots.sum())
    rounding = _rounding(64, float(roots.max()), float((1 / roots).sum()))
    assert frechet_distance(_moments(a), _moments(b)) == pytest.approx(exact, rel=0, abs=rounding)


def test_features_that_are_always_zero_do_not_change_the_distance() -> None:
    a, b = _features(400, 32, seed=17), _features(300, 32, seed=19)
    dead = torch.zeros(400, 32, dtype=torch.float64)
    alive = frechet_distance(_moments(a), _moments(b))
    both = frechet_distance(_moments(torch.cat([a, dead], 1)), _moments(torch.cat([b, dead[:300]], 1)))
    assert both == pytest.approx(alive, rel=0, abs=_rounding(64, 2, 32 / 0.4))  # 32 roots near one


@pytest.mark.parametrize("splits", [[1000], [1, 999], [250, 250, 250, 250], [3, 500, 497]])
def test_merged_moments_are_those_of_all_images_at_once(splits: list[int]) -> None:
    features = _features(1000, 64, seed=23, shift=3.0)
    whole = _moments(features)
    parts = merged([_moments(part) for part in features.split(splits)])
    assert parts.num_images == 1000
    # Sums of 1,000 features within 8.
    torch.testing.assert_close(parts.mean(), features.mean(0), rtol=0, atol=1000 * 8 * U64)
    torch.testing.assert_close(parts.covariance(), torch.cov(features.T), rtol=0, atol=1000 * 8**2 * U64)
    reference = _moments(_features(800, 64, seed=29))
    assert frechet_distance(reference, parts) == pytest.approx(frechet_distance(reference, whole), rel=0, abs=64 * 1000 * 8**2 * U64)


@pytest.mark.parametrize("num", [500, 3000])
def test_the_distance_equals_torch_fidelitys(num: int) -> None:
    metric_fid = importlib.import_module("torch_fidelity.metric_fid")
    a, b = _features(num, 256, seed=37), _features(num, 256, seed=41, shift=0.05)
    statistics = [metric_fid.fid_features_to_statistics(x) for x in (a, b)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    # Eigenvalues of 500 normal vectors in 256 dimensions are between 0.08 and 2.9. Theirs takes another root, with as many roundings again.
    assert frechet_distance(_moments(a), _moments(b)) == pytest.approx(theirs, rel=0, abs=2 * _rounding(256, 2.9, 256 / 0.08))


@pytest.mark.parametrize("rank", [128, 40])
def test_factor_is_triangular_and_gives_the_matrix(rank: int) -> None:
    half = torch.randn(128, rank, generator=_generator(43), dtype=torch.float64)
    matrix = half @ half.T
    factor = triangular_factor(matrix, max_rank=rank)
    # 128 roundings of the largest eigenvalue, which is near (sqrt(128) + sqrt(128))^2.
    torch.testing.assert_close(factor @ factor.T, matrix, rtol=0, atol=128 * 512 * U64)
    assert torch.equal(factor, factor.tril())


def test_factor_is_computed_once() -> None:
    statistics = _moments(_features(100, 16, seed=47)).statistics()
    assert statistics.factor is statistics.factor


def test_blocks_do_not_depend_on_how_the_images_arrive() -> None:
    features, indices = _features(100, 8, seed=53), torch.arange(100)
    once, split = BlockedMoments(8, 100, 5), BlockedMoments(8, 100, 5)
    once.update(indices, features)
    for part in torch.randperm(100, generator=_generator(59)).split(17):
        split.update(indices[part], features[part])
    for a, b in zip(once.blocks, split.blocks, strict=True):
        assert a.num_images == b.num_images == 20
        torch.testing.assert_close(a.outer, b.outer, rtol=0, atol=20 * 40 * U64)  # sums of 20 products, of up to 40
    torch.testing.assert_close(once.total().covariance(), torch.cov(features.T), rtol=0, atol=100 * 4 * U64)  # of 100, their mean within 4


@pytest.mark.slow
def test_standard_error_predicts_the_spread_over_independent_samples() -> None:
    reference = _moments(_features(5000, 16, seed=61)).statistics()
    distances, errors = [], []
    for seed in range(200):
        sample = 1.1 * torch.randn(400, 16, generator=_generator(1000 + seed), dtype=torch.float64) + 0.1
        blocks = BlockedMoments(16, 400, 10)
        blocks.update(torch.arange(400), sample)
        distances.append(frechet_distance(reference, blocks.total()))
        errors.append(jackknife_error(leave_one_out_distances(reference, blocks)))
    spread = torch.tensor(distances).std()
    predicted = torch.tensor(errors).square().mean().sqrt()
    assert 0.8 < float(predicted / spread) < 1.3


def test_the_distances_of_halves_are_those_of_the_halves_images() -> None:
    reference = _moments(_features(500, 8, seed=61)).statistics()
    sample = _features(203, 8, seed=67)
    blocks = BlockedMoments(8, 203)
    blocks.update(torch.arange(203), sample)
    block_of = torch.arange(203) * 10 // 203
    for split, pair in zip(SPLITS, distances_of_halves(reference, blocks), strict=True):
        in_first = torch.tensor([half == "A" for half in split])[block_of]
        expected = [frechet_distance(reference, _moments(sample[half])) for half in (in_first, ~in_first)]
        # The sums, of some 100 products, are added in another order: 8 variances near one.
        assert pair == pytest.approx(expected, rel=0, abs=8 * 100 * 4 * U64)


def test_samples_that_can_not_be_halved_have_no_distances_of_halves() -> None:
    reference, sample = _moments(_features(50, 4, seed=71)).statistics(), _features(40, 4, seed=67)
    eight, partly = BlockedMoments(4, 40, 8), BlockedMoments(4, 100)
    for blocks in (eight, partly):
        blocks.update(torch.arange(40), sample)
        assert distances_of_halves(reference, blocks) == []


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "jackknife_over_true"), [(0.0, 2.1), (0.3, 1.0)], ids=["only the bias of few samples", "far away"])
def test_the_jackknifes_variance_without_its_excess_is_that_over_independent_samples(shift: float, jackknife_over_true: float) -> None:
    """The variance is over 600 draws of 400 samples with 8 features."""
    reference = FeatureStatistics(mean=torch.zeros(8, dtype=torch.float64), covariance=torch.eye(8, dtype=torch.float64))
    distances, squares, excess = [], [], []
    for seed in range(600):
        blocks = BlockedMoments(8, 400)
        blocks.update(torch.arange(400), torch.randn(400, 8, generator=_generator(seed), dtype=torch.float64) + shift)
        distances.append(frechet_distance(reference, blocks.total()))
        squares.append(jackknife_error(leave_one_out_distances(reference, blocks)) ** 2)
        excess.append(jackknife_excess(distances_of_halves(reference, blocks)))
    true = float(torch.tensor(distances).var())
    jackknife, corrected = torch.tensor(squares) / true, (torch.tensor(squares) - torch.tensor(excess)) / true
    # The variance of 600 distances is known to sqrt((kurtosis - 1) / 600): 7% for a kurtosis of 4. One in 1,000 is beyond 3.3 errors.
    error = math.hypot(float(corrected.std()) / math.sqrt(600), 0.07)
    assert float(corrected.mean()) == pytest.approx(1, abs=3.3 * error)
    assert float(jackknife.mean()) == pytest.approx(jackknife_over_true, abs=3.3 * error)


def test_standard_error_of_too_few_blocks_is_not_a_number() -> None:
    blocks = BlockedMoments(4, 100, 10)
    blocks.update(torch.zeros(5, dtype=torch.int64), _features(5, 4, seed=67))
    assert math.isnan(jackknife_error(leave_one_out_distances(_moments(_features(50, 4, seed=71)).statistics(), blocks)))


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NotFiniteError, match="the features of 2 of 3 images are not finite"):
        Moments(2).update(torch.tensor([[1.0, math.nan], [0.0, 1.0], [math.inf, -math.inf]]))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        _moments(torch.ones(1, 3)).covariance()


def test_statistics_of_different_extractors_are_not_compared() -> None:
    with pytest.raises(UserError, match="different extractors"):
        frechet_distance(_moments(_features(10, 3, seed=73)), _moments(_features(10, 4, seed=73)))

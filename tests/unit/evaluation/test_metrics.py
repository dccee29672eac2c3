"""Metrics besides the Frechet distance against their formulas, and which ones may be named KID or Inception score."""

import math

import pytest
import torch
from torch import Tensor

from evaluation.distances.frechet import Moments, frechet_distance
from evaluation.distances.metrics import (
    MetricInputs,
    MetricReference,
    compute_metrics,
    inception_score,
    kernel_distance,
    parse_metrics,
    precision_recall,
    require_extractor,
)
from evaluation.features.extractors import DigitsExtractor
from training.config.errors import UserError


def _features(num: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


def test_kernel_distance_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    x, y = _features(60, 8, 0), _features(60, 8, 1, shift=0.5)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    n = len(x)
    within = [(kernel(z, z).sum() - kernel(z, z).trace()) / (n * (n - 1)) for z in (x, y)]
    expected = float(within[0] + within[1] - 2 * kernel(x, y).mean())
    # Float32 sums of 8 products, cubed: 3 x 8 eps of each mean, which then almost cancel.
    rounding = 24 * torch.finfo(torch.float32).eps * float(within[0] + within[1] + 2 * kernel(x, y).mean()) / expected
    # One subset holds all 60 of each, so that every subset gives the same number.
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=rounding)
    assert kernel_distance(x, y).standard_error is None, "which is rounding, no spread"
    assert (kernel_distance(_features(100, 8, 0), y).standard_error or 0.0) > expected / 1000
    assert abs(kernel_distance(_features(500, 8, 2), _features(500, 8, 3)).value) < expected / 10


def test_the_inception_score_of_certain_and_balanced_classes_is_their_number() -> None:
    classes = torch.arange(20_000) % 5
    certain = torch.nn.functional.one_hot(classes, 5).float() * 100
    assert inception_score(certain).value == pytest.approx(5, rel=1e-2)  # of ten random splits, almost evenly spread
    assert inception_score(torch.zeros(200, 5)).value == pytest.approx(1, rel=1e-6)


def test_precision_and_recall_distinguish_too_little_variety_from_too_much() -> None:
    real = _features(400, 4, 0)
    narrow = {item.name: item.value for item in precision_recall(0.3 * _features(400, 4, 1), real)}
    wide = {item.name: item.value for item in precision_recall(3 * _features(400, 4, 2), real)}
    assert narrow["precision"] > 0.9 > wide["precision"]
    assert wide["recall"] > narrow["recall"]


def test_spatial_distance_is_the_frechet_distance_of_spatial_features() -> None:
    reference, sample = Moments(6), MetricInputs(parse_metrics(["sfid"]))
    reference.update(_features(50, 6, 0))
    spatial = _features(40, 6, 1, shift=1.0)
    sample.update({"features": spatial, "spatial": spatial}, None)
    other = Moments(6)
    other.update(spatial)
    (found,) = compute_metrics(sample, MetricReference(features=None, spatial=reference.statistics(), is_inception=True))
    assert found.value == pytest.approx(frechet_distance(reference, other))


def test_a_kernel_distance_in_other_features_is_not_named_kid() -> None:
    kept = MetricInputs(parse_metrics(["kid"]))
    kept.update({"features": _features(30, 4, 0)}, None)
    references = [MetricReference(features=_features(30, 4, 1), spatial=None, is_inception=is_it) for is_it in (True, False)]
    names = [compute_metrics(kept, reference)[0].name for reference in references]
    assert names == ["kid", "kernel_distance"]


def test_label_agreement_is_a_fraction_with_its_error() -> None:
    kept = MetricInputs(parse_metrics(["label_agreement"]))
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    kept.update({"features": logits, "logits": logits}, torch.tensor([0, 1, 2, 2]))
    (found,) = compute_metrics(kept, MetricReference(features=None, spatial=None, is_inception=False))
    assert found.value == 0.75
    assert found.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


@pytest.mark.parametrize(
    ("name", "message"),
    [("sfid", "gives features, logits; sfid needs spatial"), ("inception_score", "defined on the Inception network's logits")],
)
def test_metrics_that_an_extractor_does_not_support_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_extractor(parse_metrics([name]), DigitsExtractor())

"""Intervals cover what they say: of 200 repeats 95 %, for a distance and for the difference of two on common noise."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.distances.frechet import BlockedMoments, FeatureStatistics, frechet_distance, jackknife_error, leave_one_out_distances
from evaluation.records.intervals import student_interval
from evaluation.records.paired import Difference

_NUM_REPEATS, _NUM_IMAGES, _DIM = 200, 400, 4


def _distances(features: Tensor) -> tuple[float, list[float]]:
    """The distance of a sample from the standard normal, and without each of ten blocks."""
    reference = FeatureStatistics(mean=torch.zeros(_DIM, dtype=torch.float64), covariance=torch.eye(_DIM, dtype=torch.float64))
    blocks = BlockedMoments(_DIM, len(features))
    blocks.update(torch.arange(len(features)), features)
    return frechet_distance(reference, blocks.total()), leave_one_out_distances(reference, blocks)


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
        # One repeat's share has a standard error of 1.5 %; the mean of 200 values, which stands for the truth, hardly adds to it.
        assert 0.92 <= covered <= 0.98


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
    # Some 500 cases of a share near 0.88 have a standard error of 1.5 %; the prior, which is not flat, costs as much again.
    assert np.mean(truth[sure] < 0) == pytest.approx(said[sure].mean(), abs=0.06)


def test_as_many_images_as_needed_make_the_interval_exclude_zero() -> None:
    difference = Difference(value=0.1, standard_error=0.1, degrees_of_freedom=9, num_images=1000)
    assert difference.num_images_needed is not None
    grown = difference.num_images_needed / 1000
    assert Difference(value=0.1, standard_error=0.1 / grown**0.5 * 0.999, degrees_of_freedom=9).verdict == "worse"
    assert Difference(value=0.1, standard_error=0.1 / grown**0.5 * 1.01, degrees_of_freedom=9).verdict == "can't be told"

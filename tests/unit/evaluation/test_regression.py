"""The nightly check: which differences are noise and which are a regression."""

import math

import pytest

from evaluation.monitoring.regression import check_regression
from training.config.errors import UserError


def test_a_score_within_the_noise_of_its_history_is_healthy() -> None:
    assert not check_regression(3.2, 0.05, [3.0, 3.1, 2.9, 3.05]).regressed


def test_a_score_above_the_limit_is_a_regression_and_both_numbers_are_named() -> None:
    verdict = check_regression(9.0, 0.1, [3.0, 3.1, 2.9])
    assert verdict.regressed
    assert verdict.baseline == 3.0
    assert verdict.limit == pytest.approx(3.0 + 4 * 0.1)
    assert "9 against 3" in verdict.reason


def test_a_short_history_of_equal_scores_raises_no_alarm_about_the_scores_own_noise() -> None:
    assert not check_regression(3.3, 0.1, [3.0, 3.0, 3.0]).regressed
    assert check_regression(3.5, 0.1, [3.0, 3.0, 3.0]).regressed


def test_the_spread_of_two_scores_is_not_used() -> None:
    assert check_regression(4.0, 0.1, [1.0, 5.0]).spread == 0.1


def test_a_difference_below_the_minimum_is_no_regression() -> None:
    assert check_regression(3.2, 0.01, [3.0]).regressed
    assert not check_regression(3.2, 0.01, [3.0], min_difference=0.5).regressed


def test_a_much_better_score_is_no_regression() -> None:
    assert not check_regression(0.1, 0.01, [3.0, 3.1, 2.9]).regressed


def test_a_score_of_nan_is_a_regression() -> None:
    assert check_regression(math.nan, None, [3.0]).regressed


def test_one_bad_night_in_the_history_does_not_move_the_baseline() -> None:
    assert check_regression(4.0, 0.1, [3.0, 3.1, 2.9, 3.0, 50.0]).baseline == 3.0


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_scores_in_the_history_that_are_not_finite_are_ignored(lost: float) -> None:
    assert check_regression(9.0, 0.1, [lost, 3.0, lost, lost]).limit == check_regression(9.0, 0.1, [3.0]).limit
    assert check_regression(9.0, 0.1, [lost, 3.0, lost, lost]).regressed


@pytest.mark.parametrize(
    ("history", "kwargs"),
    [
        ([], {}),
        ([math.nan], {}),
        ([3.0], {"num_standard_errors": -1.0}),
        ([3.0], {"num_standard_errors": math.nan}),
        ([3.0], {"min_difference": -0.1}),
        ([3.0], {"min_difference": math.inf}),
    ],
)
def test_a_check_without_history_or_with_invalid_thresholds_is_refused(history: list[float], kwargs: dict[str, float]) -> None:
    with pytest.raises(UserError):
        check_regression(3.0, 0.1, history, **kwargs)

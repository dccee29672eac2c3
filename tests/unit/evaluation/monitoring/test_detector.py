"""The nightly detector: the rules one by one, and its goals on a small simulation."""

import math

import numpy as np
import pytest
from bench_nightly import simulate
from rounding import rounded

from evaluation.monitoring.detector import FALSE_ALARMS_IN_A_YEAR, Rule, Trace, watch
from training.config.errors import UserError

BASELINE = [3.0 + 0.1 * (-1) ** night for night in range(20)]
"""Mean 3, and a standard deviation of 0.1026."""
SPREAD = 0.1 * math.sqrt(20 / 19)
SPREAD_20 = rounded(SPREAD, 20, scale=3)
"""It, of twenty differences of scores near 3: a rounding each, as in all sums below."""
UNKNOWN = [math.nan]


def follow(
    scores: list[float],
    *,
    redrawn: list[float] = UNKNOWN,
    errors: list[float] = UNKNOWN,
    excess: float = math.nan,
    rule: Rule | None = None,
) -> Trace:
    return watch(scores, redrawn if len(redrawn) > 1 else redrawn * len(scores), errors * len(scores), rule or Rule(), excess)


def test_the_baseline_is_the_mean_and_standard_deviation_of_the_first_nights_and_no_changed_night_joins_it() -> None:
    trace = follow([*BASELINE, *[3.15] * 50])
    assert trace.centre[20:] == rounded(3.0, 20)
    assert trace.spread[20:] == SPREAD_20
    assert set(trace.num_baseline[20:]) == {20}


def test_a_healthy_night_joins_the_baseline_after_twenty_more_until_it_has_its_largest_size() -> None:
    scores = [3.0 + 0.1 * math.sin(night) for night in range(200)]
    trace = follow(scores)
    assert not trace.slow.any()
    assert not trace.jump.any()
    assert list(trace.num_baseline[[20, 40, 41, 42, 60, 120, 121, 199]]) == [20, 20, 21, 22, 40, 100, 100, 100]
    assert trace.centre[60] == rounded(np.mean(scores[:40]), 40)
    assert trace.spread[60] == rounded(np.std(scores[:40], ddof=1), 40, scale=3)
    assert trace.centre[-1] == rounded(np.mean(scores[:100]), 100)


def test_a_baseline_grows_by_the_errors_of_its_nights_too() -> None:
    errors, excess = [0.2] * 20 + [0.4] * 40, [0.0] * 20 + [0.08] * 40
    trace = watch([3.0 + 0.001 * (-1) ** night for night in range(60)], [math.nan] * 60, errors, Rule(), excess)
    assert trace.num_baseline[59] == 39
    assert trace.spread[59] == rounded(math.sqrt((20 * 0.04 + 19 * 0.08) / 39), 39)


@pytest.mark.parametrize("largest", [0, 20])
def test_a_baseline_whose_largest_size_is_its_first_does_not_grow(largest: int) -> None:
    assert follow(BASELINE * 5, rule=Rule(max_baseline_nights=largest)).num_baseline[-1] == 20
    assert follow(BASELINE * 5, rule=Rule(max_baseline_nights=30)).num_baseline[-1] == 30


def test_nights_before_an_alarm_and_while_a_sum_is_high_do_not_join_the_baseline() -> None:
    spell = follow([*BASELINE * 2, *[3.0 + 2 * SPREAD] * 5, *BASELINE * 3])
    alarms = np.flatnonzero(spell.slow)
    assert alarms[0] == 43
    joined = set(np.flatnonzero(np.diff(spell.num_baseline)[20:]))  # twenty nights later, from the 21st night on
    assert joined == set(range(alarms[-1] + 1, len(spell.value) - 21))
    creeping = follow([*BASELINE, *[3.0 + 0.9 * SPREAD] * 31])  # each adds 0.15 to the sum
    assert not creeping.slow.any()
    assert creeping.num_baseline[-1] == 20


def test_the_sums_are_those_of_page() -> None:
    scores = [3.1, 3.05, 2.9, 3.15, 3.15]
    trace = follow([*BASELINE, *scores])
    up = down = 0.0  # five sums, each with the twenty roundings of the spread
    for night, score in enumerate(scores, start=20):
        z = (score - 3.0) / SPREAD
        up, down = max(0.0, up + z - 0.75), max(0.0, down - z - 0.75)
        assert (trace.up[night], trace.down[night]) == (rounded(up, 100, scale=3 / SPREAD), rounded(down, 100, scale=3 / SPREAD))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_slow_change_is_found_in_both_directions(sign: int) -> None:
    trace = follow([*BASELINE, *[3.0 + sign * 2 * SPREAD] * 10])
    assert list(np.flatnonzero(trace.slow)) == list(range(23, 30))  # 4 x (2 - 0.75) = 5 is the first sum above 4.8
    assert set(trace.slow[23:]) == {sign}
    assert not trace.jump.any()


def test_a_bad_night_never_joins_the_baseline() -> None:
    trace = follow([*BASELINE[:10], 9.0, *BASELINE[10:], 3.0], errors=[0.1])
    assert trace.jump[10] == 1
    assert trace.num_baseline[-1] == 20
    assert trace.centre[-1] == rounded(3.0, 20)


def test_a_suspicious_score_is_a_jump_alone_only_if_it_is_far_off_and_else_if_new_scores_confirm_it() -> None:
    far, very_far = 3.0 + 4 * SPREAD, 3.0 + 5 * SPREAD
    nights = [math.nan] * 20
    assert follow([*BASELINE, far]).suspicious[-1]
    assert follow([*BASELINE, far]).jump[-1] == 0
    assert follow([*BASELINE, very_far]).jump[-1] == 1
    assert follow([*BASELINE, far], redrawn=[*nights, far]).jump[-1] == 1
    refuted = follow([*BASELINE, very_far], redrawn=[*nights, 3.0])
    assert refuted.jump[-1] == 0
    assert refuted.value[-1] == 3.0
    assert follow([*BASELINE, 3.0], redrawn=[*nights, 9.0]).value[-1] == 3.0, "a night that is not suspicious counts as its first score"


def test_a_score_that_takes_a_sum_above_its_limit_is_drawn_again_and_the_new_ones_count_in_the_sum() -> None:
    rising = [3.0 + 1.8 * SPREAD] * 5  # 5 x (1.8 - 0.75) = 5.25 is above 4.8, and no score is beyond 1.9 spreads
    alone = follow([*BASELINE, *rising])
    assert list(np.flatnonzero(alone.suspicious[20:])) == [4]
    assert alone.slow[-1] == 1, "a history whose night was not drawn again is judged by its first score"
    again = [*[math.nan] * 24, 3.0 + 0.5 * SPREAD]
    refuted = follow([*BASELINE, *rising], redrawn=again)
    assert refuted.up[-1] == rounded(4 * 1.05 + 0.5 - 0.75, 100, scale=3 / SPREAD)  # five times twenty
    assert refuted.slow[-1] == 0
    assert follow([*BASELINE, *rising], redrawn=[*[math.nan] * 24, rising[-1]]).slow[-1] == 1


def test_the_spread_is_never_less_than_the_known_standard_errors() -> None:
    assert follow([3.0] * 21, errors=[0.1]).spread[-1] == rounded(0.1, 20)
    assert follow([*BASELINE, 3.0], errors=[0.09]).spread[-1] == SPREAD_20


def test_what_the_jackknife_counts_twice_is_taken_from_the_errors_of_a_complete_baseline() -> None:
    trace = follow([3.0] * 21, errors=[0.1], excess=0.004)
    assert trace.spread[1:20] == rounded(0.1, 20)
    assert trace.spread[20] == rounded(math.sqrt(0.01 - 0.004), 20)
    assert follow([*BASELINE, 3.0], errors=[0.11], excess=0.004).spread[-1] == SPREAD_20, "the scores' own is never undercut"


def test_the_excess_of_an_error_is_at_most_half_of_its_square_and_an_unknown_one_is_0() -> None:
    assert follow([3.0] * 21, errors=[0.1], excess=0.02).spread[-1] == rounded(0.1 / math.sqrt(2), 20)
    half_known = np.where(np.arange(21) % 2, 0.004, np.nan)
    trace = watch([3.0] * 21, [math.nan] * 21, [0.1] * 21, Rule(), half_known)
    assert trace.spread[-1] == rounded(math.sqrt(0.01 - 0.002), 20)


def test_while_the_baseline_is_gathered_a_jump_is_told_with_a_wider_limit_and_no_slow_change() -> None:
    trace = follow([3.0, 3.0, 3.6], errors=[0.1])
    assert trace.limit[1:] == rounded([4.5 * 0.1 * math.sqrt(2), 4.5 * 0.1 * math.sqrt(1.5)], 6)
    assert np.isnan(trace.limit[0])
    assert list(trace.jump) == [0, 0, 1]
    assert not trace.up.any()
    assert not trace.down.any()


def test_without_a_standard_error_nothing_is_told_before_ten_nights() -> None:
    trace = follow([*BASELINE[:10], 9.0])
    assert np.isnan(trace.limit[:10]).all()
    assert trace.jump[10] == 1


def test_a_score_that_is_not_finite_is_an_alarm_and_leaves_sums_and_baseline() -> None:
    trace = follow([*BASELINE[:5], math.nan, math.inf, *BASELINE[5:], 3.2, math.nan, 3.0])
    assert list(np.flatnonzero(trace.jump == 1)) == [5, 6, 23]
    assert trace.num_baseline[-1] == 20
    assert trace.up[23] == trace.up[22] - 0.75


def test_after_a_baseline_of_equal_scores_any_other_score_is_a_change() -> None:
    trace = follow([3.0] * 22 + [3.1] * 3)
    assert list(trace.jump[20:]) == [0, 0, 1, 1, 1]
    assert list(trace.slow[20:]) == [0, 0, 0, 1, 1]


def test_a_model_that_recovers_is_healthy_after_a_few_nights_however_bad_it_was() -> None:
    trace = follow([*BASELINE, *[30.0] * 100, *[3.0] * 5])
    assert list(trace.slow[-5:]) == [1, 1, 1, 0, 0]


def test_a_change_below_the_smallest_difference_is_no_alarm() -> None:
    assert follow([*BASELINE, *[3.4] * 50]).slow[-1] == 1
    trace = follow([*BASELINE, *[3.4] * 50], rule=Rule(min_difference=0.5))
    assert not trace.slow.any()
    assert not trace.jump.any()
    assert follow([*BASELINE, *[3.7] * 50], rule=Rule(min_difference=0.5)).slow[-1] == 1


@pytest.mark.parametrize("rule", [{"baseline_nights": 2}, {"min_difference": -0.1}, {"min_difference": math.inf}, {"alone": math.nan}])
def test_a_parameter_out_of_range_is_refused(rule: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(rule))):
        Rule(**rule)  # type: ignore[arg-type]


def test_many_histories_at_once_are_judged_like_each_alone() -> None:
    scores = np.random.default_rng(0).standard_t(3, (5, 60))
    together, alone = watch(scores, 0 * scores, 0 * scores + 0.9, Rule()), watch(scores[3], 0 * scores[3], 0 * scores[3] + 0.9, Rule())
    for name in Trace.__slots__:
        np.testing.assert_array_equal(getattr(together, name)[3], getattr(alone, name))


@pytest.mark.parametrize("noise", ["normal", "few samples"])
def test_the_goals_hold_on_a_small_simulation(noise: str) -> None:
    """The simulation has 1,000 models; `make bench-nightly` takes 10,000. Seeds are fixed, so the numbers are the same everywhere."""
    found = simulate(noise, Rule(), num_models=1000)
    assert found["healthy, alarmed in a year"] == pytest.approx(FALSE_ALARMS_IN_A_YEAR, abs=0.0052)  # three standard errors
    assert found["2 sd worse, median nights"] <= 7
    assert found["drift of 0.1 sd a night, median nights"] <= 20
    assert found["5 sd worse, missed in the same night"] <= 0.01

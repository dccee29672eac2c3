"""The history of a model's nights: what is compared, what begins a new baseline, what a person accepts, and what the page says."""

import dataclasses
import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rounding import rounded

from evaluation.monitoring import nightly
from evaluation.monitoring.detector import Rule
from evaluation.monitoring.nightly import Acceptance, History, Night, judge
from evaluation.reports import figures
from training import storage
from training.config.errors import UserError

FIRST = datetime(2026, 1, 1, 2, tzinfo=UTC)
PROTOCOL = {"num_samples": 1000, "reference.extractor": "inception", "reference.data_digest": "d", "sampling.spacing": "250"}
RULE = Rule(baseline_nights=5)
HEALTHY = [3.0, 3.1, 2.9, 3.1, 2.9]


def a_night(day: float, distance: float | None, **fields: object) -> Night:
    values = {"protocol": PROTOCOL, "standard_error": 0.1, "rule": RULE, "versions": {"torch": "2.9"}, **fields}
    return Night(id=f"night-{day}", at=FIRST + timedelta(days=day), distance=distance, **values)  # type: ignore[arg-type]


def history_of(scores: Sequence[float | None], start: int = 0, **fields: object) -> History:
    return History(nights=tuple(a_night(start + day, score, **fields) for day, score in enumerate(scores)))


def test_a_healthy_night_is_said_with_its_distance_from_the_baseline() -> None:
    judgement = judge(history_of([*HEALTHY, 3.05]))
    assert judgement.direction == 0
    assert judgement.text.startswith("3.05 against 3 (mean of 5 healthy scores), +0.5 standard deviations; the sums are 0 (worse)")


@pytest.mark.parametrize("error", [None, 0.0])
@pytest.mark.parametrize(
    ("last", "said"),
    [
        (3.0, "3 against 3 (mean of 10 healthy scores); the sums are 0 (worse)"),
        (3.5, "3.5 against 3 (mean of 10 healthy scores); worse by 0.5, since 2026-01-11 (1 night); a jump"),
        (2.5, "2.5 against 3 (mean of 10 healthy scores); better by 0.5, since 2026-01-11 (1 night); a jump"),
    ],
)
def test_a_baseline_of_equal_scores_has_no_errors_to_compare_with(error: float | None, last: float, said: str) -> None:
    history = history_of([*[3.0] * 10, last], standard_error=error, rule=Rule(baseline_nights=10))
    assert judge(history).text.startswith(said)


@pytest.mark.parametrize(
    ("scores", "said"), [([3.0], "no change can be detected yet"), (HEALTHY[:3], "so far only a jump of more than 0.551 can be detected")]
)
def test_what_can_be_told_while_the_baseline_is_gathered_is_said(scores: list[float], said: str) -> None:
    judgement = judge(history_of(scores))
    assert judgement.trace.num_baseline[-1] < judgement.night.rule.baseline_nights
    assert said in judgement.text


@pytest.mark.parametrize("rule", [RULE, dataclasses.replace(RULE, min_difference=0.9)])
def test_the_limits_of_a_jump_are_drawn_as_the_nights_are_judged(rule: Rule) -> None:
    """They are wider while the baseline is gathered, nearer where the score was drawn again, and never below the smallest difference."""
    healthy = history_of([*HEALTHY, 3.0], rule=rule)
    judgement = judge(healthy.with_night(a_night(6, 3.5, redrawn=(3.0, 3.1), rule=rule)))
    svg = figures.nights(judgement, distance_name="FD")[0].svg
    paths = [[float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)] for path in re.findall(r'<path d="([^"]+)"[^>]*stroke: #', svg)]
    (scores,) = (path for path in paths if len(path) == 7)
    centre, above, below = (path for path in paths if len(path) == 6)  # from the second night on
    pixels = (scores[0] - scores[1]) / (3.1 - 3.0)
    for number, limit in enumerate(judgement.trace.limit[1:]):
        # The SVG has six decimals of a pixel, and the scale is from two scores that are 0.1 apart: 2e-6 / 0.1, for limits below 1.
        assert centre[number] - above[number] == pytest.approx(pixels * limit, abs=2e-5)
        assert below[number] - centre[number] == pytest.approx(pixels * limit, abs=2e-5)


def test_a_slow_regression_is_said_with_its_size_its_error_and_its_first_night() -> None:
    judgement = judge(history_of([*HEALTHY, 3.0, *[3.22] * 5], standard_error=0.05))
    assert judgement.direction == 1
    assert judgement.since == FIRST + timedelta(days=6)
    assert judgement.change == rounded(0.22, 10, scale=3.22)  # means of five
    assert judgement.change_error == rounded(0.1 * math.sqrt(1 / 5 + 1 / 5), 10)
    # The spread is that of five scores: by Student's t of 4 degrees of freedom, 2.776.
    assert "worse by 0.22 ± 0.18 (95%), 3.5 standard errors, since 2026-01-07 (5 nights); the cumulative sum is" in judgement.text


def test_a_spread_from_known_errors_has_nine_degrees_of_freedom_a_night() -> None:
    """The 97.5% point of Student's t is 2.014 for 45 degrees of freedom, and 0.2 sqrt(1 + 1/5) times that is 0.4413."""
    judgement = judge(history_of([*HEALTHY, 5.0], standard_error=0.2))
    assert judgement.trace.degrees_of_freedom.tolist() == [9, 18, 27, 36, 45, 45]
    assert "worse by 2 ± 0.44 (95%), 9.1 standard errors" in judgement.text


def test_the_error_of_a_change_weights_nights_as_their_mean_does() -> None:
    """A night is the mean of n scores, with s^2 / n; the mean of two nights has a quarter of the sum. One without a score is left out."""
    history = history_of(HEALTHY).with_night(a_night(5, 5.0, redrawn=(5.0, 5.1, 4.9)))
    judgement = judge(history.with_night(a_night(6, None)).with_night(a_night(7, 5.0)))
    assert (judgement.direction, judgement.since) == (1, FIRST + timedelta(days=5))
    assert judgement.change == rounded(2.0, 10, scale=5)
    assert judgement.change_error == rounded(0.1 * math.sqrt((1 / 3 + 1) / 4 + 1 / 5), 20)


def test_a_jump_is_a_regression_and_the_night_after_it_is_not_news() -> None:
    once, twice = judge(history_of([*HEALTHY, 5.0])), judge(history_of([*HEALTHY, 5.0, 5.0]))
    assert (once.direction, once.began, twice.direction, twice.began) == (1, True, 1, False)
    assert "since 2026-01-06 (1 night); a jump" in once.text
    assert twice.since == once.since


def test_a_better_model_is_told_and_is_no_regression() -> None:
    judgement = judge(history_of([*HEALTHY, 1.0]))
    assert judgement.direction == -1
    assert "better by 2" in judgement.text


def test_a_distance_that_is_not_finite_is_a_regression() -> None:
    assert judge(history_of([*HEALTHY, None])).direction == 1


def test_a_missing_night_is_counted_and_changes_no_judgement() -> None:
    whole = history_of([*HEALTHY, 3.0, 3.2, 3.2])
    gap = History(
        nights=tuple(dataclasses.replace(each, at=each.at + timedelta(days=3 * (number >= 6))) for number, each in enumerate(whole.nights))
    )
    assert judge(gap).num_missing == 3
    assert judge(gap).text == judge(whole).text
    assert judge(whole).num_missing == 0


def test_a_second_check_on_one_day_is_one_more_score() -> None:
    history = history_of([*HEALTHY, 3.2])
    assert len(judge(history.with_night(a_night(5.5, 3.2))).nights) == 7


def test_a_check_that_is_tried_again_replaces_its_own_night() -> None:
    history = history_of([*HEALTHY, 3.2])
    assert history.with_night(a_night(5, 3.2)) == history


def test_a_night_whose_clock_was_a_year_ahead_is_not_the_last_one_for_a_year() -> None:
    history = history_of(HEALTHY).with_night(a_night(365, 3.0)).with_night(a_night(6, 5.0))
    assert judge(history).night.id == "night-6"
    assert judge(history).direction == 1
    assert history.until("night-6") == history


def test_a_check_that_is_tried_again_after_another_night_keeps_its_place() -> None:
    history = history_of([*HEALTHY, 3.2])
    again = dataclasses.replace(history.nights[2], at=FIRST + timedelta(days=9), distance=3.05)
    assert [night.id for night in history.with_night(again).nights] == [night.id for night in history.nights]
    assert history.with_night(again).until("night-2").nights == (*history.nights[:2], again)


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_changed_protocol_begins_a_new_baseline_and_says_so(name: str) -> None:
    history = history_of(HEALTHY).with_night(a_night(5, 99.0, protocol={**PROTOCOL, name: "another"}))
    judgement = judge(history)
    assert judgement.direction == 0
    assert len(judgement.nights) == 1
    assert judgement.baseline_reason == f"the protocol changed on 2026-01-06: {name} {PROTOCOL[name]} -> another"


def test_a_changed_library_begins_no_new_baseline_and_is_said() -> None:
    judgement = judge(history_of(HEALTHY).with_night(a_night(5, 9.0, versions={"torch": "3.0"})))
    assert judgement.direction == 1
    assert judgement.changed_versions == ("torch 2.9 -> 3.0",)


def _of(step: int) -> dict[str, str]:
    return {**PROTOCOL, "checkpoint": f"step {step}, ema_0.99"}


def test_each_checkpoint_of_a_run_has_a_baseline_of_its_own() -> None:
    """Two schedules check two of them, and the first one becomes worse."""
    nights = [
        a_night(day + hour / 24, distance, protocol=_of(step))
        for day, scores in enumerate(zip([*HEALTHY, 4.0], [7.0] * 6, strict=True))
        for hour, step, distance in zip((0, 1), (100, 200), scores, strict=True)
    ]
    history = History(nights=tuple(nights))
    bad, other = judge(history.until("night-5.0")), judge(history)
    assert (bad.direction, bad.baseline_reason, len(bad.nights)) == (1, "", 6)
    assert (other.direction, len(other.nights)) == (0, 6)
    assert judge(history, "step 100, ema_0.99").text == bad.text


def test_a_check_of_another_checkpoint_leaves_the_baseline_alone() -> None:
    healthy = history_of(HEALTHY, protocol=_of(100)).with_night(a_night(4.5, 99.0, protocol=_of(200)))
    once = judge(healthy)
    assert (once.direction, len(once.nights)) == (0, 1)
    assert once.baseline_reason == "the nights of step 200, ema_0.99 begin on 2026-01-05, after nights of step 100, ema_0.99"
    judgement = judge(healthy.with_night(a_night(5, 5.0, protocol=_of(100))))
    assert (judgement.direction, judgement.baseline_reason, len(judgement.nights)) == (1, "", 6)


def test_a_model_that_moves_to_another_checkpoint_and_back_finds_its_baseline_again() -> None:
    history = history_of(HEALTHY, protocol=_of(100))
    for day in range(5, 8):
        history = history.with_night(a_night(day, 7.0, protocol=_of(200)))
    assert len(judge(history).nights) == 3
    assert judge(history.with_night(a_night(8, 5.0, protocol=_of(100)))).direction == 1


def test_scores_without_a_protocol_are_those_of_the_first_checkpoint_that_is_named() -> None:
    history = history_of(HEALTHY, protocol=None).with_night(a_night(5, 3.0, protocol=_of(100)))
    assert len(judge(history).nights) == 6
    assert len(judge(history.with_night(a_night(6, 9.0, protocol=_of(200)))).nights) == 1
    assert len(judge(history_of(HEALTHY, protocol=None), "step 200, ema_0.99").nights) == 5, "none is named"


def test_scores_of_earlier_versions_without_a_protocol_are_compared() -> None:
    old = history_of([3.0, 3.1, 2.9], protocol=None, standard_error=None, versions={})
    assert judge(old.with_night(a_night(3, 9.0))).direction == 1
    assert judge(old.with_night(a_night(3, 3.0))).direction == 0


def test_checks_of_two_schedules_that_end_at_once_keep_the_nights_of_both(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def check(number: int) -> None:
        start.wait()
        nightly.update_history(str(tmp_path), lambda stored: (stored or History()).with_night(a_night(number, 3.0)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(8)))
    history = nightly.read_history(str(tmp_path))
    assert history is not None
    assert {night.id for night in history.nights} == {a_night(number, 3.0).id for number in range(8)}


def test_only_an_accepted_level_is_a_new_baseline(tmp_path: Path) -> None:
    run_uri = str(tmp_path)
    nightly.update_history(run_uri, lambda _: history_of([*HEALTHY, *[5.0] * 40]))
    assert judge(nightly.read_history(run_uri) or History()).direction == 1, "however long the level lasts"
    assert nightly.accept(run_uri, reason="new sampler", by="Ada").direction == 1
    history = nightly.read_history(run_uri)
    assert history is not None
    later = history.with_night(dataclasses.replace(a_night(45, 5.1), at=datetime.now(UTC) + timedelta(days=1)))
    judgement = judge(later)
    assert judgement.direction == 0
    assert judgement.baseline_reason == "Ada accepted the level of 2026-02-14: new sampler"
    assert len(judgement.nights) == 2


@pytest.mark.parametrize(("reason", "by"), [("", "Ada"), ("because", " ")])
def test_an_acceptance_without_reason_or_name_is_refused(reason: str, by: str, tmp_path: Path) -> None:
    nightly.update_history(str(tmp_path), lambda _: history_of(HEALTHY))
    with pytest.raises(UserError, match="needs a reason and a name"):
        nightly.accept(str(tmp_path), reason=reason, by=by)


def test_a_night_without_a_score_begins_no_baseline(tmp_path: Path) -> None:
    nightly.update_history(str(tmp_path), lambda _: history_of([*HEALTHY, None]))
    with pytest.raises(UserError, match="the night night-5 has no finite distance, so no baseline can begin with it"):
        nightly.accept(str(tmp_path), reason="new sampler", by="Ada")
    stored = nightly.read_history(str(tmp_path))
    assert stored is not None
    assert not stored.accepted


def test_an_old_judgement_is_replayed_from_the_stored_history(tmp_path: Path) -> None:
    history = history_of([*HEALTHY, 5.0])
    then = judge(history)
    accepted = Acceptance(first_night="night-5", at=FIRST + timedelta(days=5.5), by="Ada", reason="right")
    history = dataclasses.replace(history, accepted=(accepted,))
    for day in range(6, 9):
        history = history.with_night(a_night(day, 5.0, rule=Rule(baseline_nights=30)))
    nightly.update_history(str(tmp_path), lambda _: history)
    stored = nightly.read_history(str(tmp_path))
    assert stored == history
    assert stored is not None
    assert judge(stored.until("night-5")).text == then.text
    assert judge(stored).direction == 0


def test_a_history_of_an_earlier_version_is_judged_as_it_was_then(tmp_path: Path) -> None:
    """Its nights have another rule than today's, and no excess of their errors."""
    rule = {"baseline_nights": 5, "reference_value": 0.75, "decision_interval": 5.8, "suspicion": 2.1, "confirmed": 2.6, "alone": 4.5}
    scores = [*HEALTHY, 3.0, *[3.2] * 5]
    nights = [
        {"id": f"night-{day}", "at": f"2026-01-{day + 1:02}T02:00:00Z", "distance": score, "standard_error": 0.05, "rule": rule}
        for day, score in enumerate(scores)
    ]
    storage.write_json(storage.join(str(tmp_path), nightly.HISTORY), {"nights": nights, "accepted": []})
    history = nightly.read_history(str(tmp_path))
    assert history is not None
    assert judge(history.until("night-9")).direction == 0, "today's limit is 4.8, and the sum is 5"
    assert judge(history).text == (
        "3.2 against 3 (mean of 5 healthy scores); worse by 0.2 ± 0.18 (95%), 3.2 standard errors, since 2026-01-07 (5 nights); "
        "the cumulative sum is 6.25, the limit is 5.8"
    )


def test_the_baseline_of_a_night_of_an_earlier_version_does_not_grow(tmp_path: Path) -> None:
    nightly.update_history(str(tmp_path), lambda _: history_of([*HEALTHY, *HEALTHY * 8]))
    path = storage.join(str(tmp_path), nightly.HISTORY)
    stored = storage.read_json(path)
    del stored["nights"][-1]["rule"]["max_baseline_nights"]
    storage.write_json(path, stored)
    history = nightly.read_history(str(tmp_path))
    assert history is not None
    assert "(mean of 5 healthy scores)" in judge(history).text
    assert "(mean of 23 healthy scores)" in judge(history.until("night-43")).text


def test_the_excess_of_the_nights_errors_makes_a_change_easier_to_tell() -> None:
    scores = [*HEALTHY, 3.0, *[3.2] * 5]
    assert judge(history_of(scores, standard_error=0.15)).direction == 0
    judgement = judge(history_of(scores, standard_error=0.15, excess=0.0125))
    assert judgement.direction == 1
    assert judgement.trace.spread[-1] == rounded(0.15 / math.sqrt(2), 10), "half of the variance at most"


def test_a_model_without_a_night_has_no_judgement(tmp_path: Path) -> None:
    assert nightly.read_history(str(tmp_path)) is None
    with pytest.raises(UserError, match="no nightly score yet"):
        nightly.accept(str(tmp_path), reason="why", by="Ada")

"""The decision to stop, case by case, on histories that are plain data."""

import dataclasses
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.monitoring.early_stopping import CheckpointScore, best_checkpoints, decide, ranked_candidates
from training.config.experiment import EvaluationConfig, SamplingConfig


def _config(patience: int = 3, min_gain: float = 0.01, min_steps: int = 0, rescore_best: int = 3) -> EvaluationConfig:
    return EvaluationConfig(patience=patience, min_gain=min_gain, min_steps=min_steps, rescore_best=rescore_best)


def _history(*values: float | None, weights: str = "ema_0.99") -> list[CheckpointScore]:
    return [{"step": 100 * (i + 1), "scores": {weights: value}} for i, value in enumerate(values)]


def test_training_continues_without_scores() -> None:
    decision = decide([], _config())
    assert not decision.stop
    assert decision.best_step is None


def test_training_continues_while_the_score_falls() -> None:
    decision = decide(_history(9, 8, 7, 6, 5, 4), _config())
    assert not decision.stop
    assert (decision.best_step, decision.best_score) == (600, 4)


def test_a_plateau_stops_after_patience_and_not_before() -> None:
    assert not decide(_history(9, 5, 5, 5), _config(patience=3)).stop
    decision = decide(_history(9, 5, 5, 5, 5), _config(patience=3))
    assert decision.stop
    assert decision.best_step == 200
    assert "no gain of 1.0% in 3 scored checkpoints" in decision.reason


def test_one_bad_point_never_stops() -> None:
    assert not decide(_history(9, 5, 80, 4, 90, 3.5), _config(patience=2)).stop


def test_a_rising_score_stops_and_remembers_the_best() -> None:
    decision = decide(_history(9, 5, 4, 6, 7, 8), _config(patience=3))
    assert decision.stop
    assert (decision.best_step, decision.best_weights, decision.best_score) == (300, "ema_0.99", 4)


def test_noise_below_the_minimum_gain_does_not_prolong_training() -> None:
    noise = random.Random(0)
    values = [5.0, *(5.0 - 0.04 * noise.random() for _ in range(3))]
    decision = decide(_history(*values), _config(patience=3, min_gain=0.01))
    assert decision.stop
    assert decision.best_score == min(values), "what is best is the smallest score, gain or not"


@pytest.mark.parametrize(("spread", "stops"), [(0.0, False), (2.0, True)])
def test_a_gain_that_the_draw_explains_does_not_prolong_training(spread: float, stops: bool) -> None:
    """The later scores are smaller by 4%; their differences block by block are all the same, or scatter far more."""
    noise = random.Random(0)
    history = [
        {**score, "without_blocks": {"ema_0.99": [value - spread * (i > 0) * noise.random() for _ in range(10)]}}
        for i, (score, value) in enumerate(zip(_history(5, 4.8, 4.6, 4.4), (5, 4.8, 4.6, 4.4), strict=True))
    ]
    assert decide(history, _config(patience=3)).stop is stops
    assert decide(history, _config(patience=3)).best_step == 400


def test_training_continues_while_slow_progress_adds_up_to_a_gain() -> None:
    values = [5.0 * 0.994**i for i in range(20)]
    assert not decide(_history(*values), _config(patience=3, min_gain=0.01)).stop


def test_training_does_not_stop_before_min_steps() -> None:
    history = _history(9, 5, 5, 5, 5, 5)
    assert not decide(history, _config(patience=3, min_steps=601)).stop
    assert decide(history, _config(patience=3, min_steps=600)).stop


def test_training_does_not_stop_before_the_checkpoint_that_guides_the_final_evaluation() -> None:
    history = _history(9, 5, 5, 5, 5, 5)
    for step, stops in ((700, False), (600, True)):
        guided = SamplingConfig(guidance_scale=2.0, guidance_step=step)
        assert decide(history, dataclasses.replace(_config(patience=3), sampling=guided)).stop == stops


def test_patience_zero_never_stops() -> None:
    assert not decide(_history(*([5.0] * 50)), _config(patience=0)).stop


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_score_that_is_not_finite_is_never_best_and_never_a_gain(bad: float | None) -> None:
    decision = decide(_history(9, 5, bad, bad, bad), _config(patience=3))
    assert decision.stop
    assert (decision.best_step, decision.best_score) == (200, 5)
    assert not decide(_history(bad, bad, 5), _config(patience=3)).stop


def test_a_run_whose_scores_are_never_finite_stops_and_says_so() -> None:
    decision = decide(_history(math.nan, math.nan, math.nan), _config(patience=3))
    assert decision.stop
    assert decision.best_step is None
    assert "none of 3 scored checkpoints has a finite score" in decision.reason


def test_the_best_decay_of_each_checkpoint_counts() -> None:
    history = [
        {"step": 100, "scores": {"ema_0.99": 9.0, "ema_0.995": 20.0}},
        {"step": 200, "scores": {"ema_0.99": 8.0, "ema_0.995": 7.0}},
        {"step": 300, "scores": {"ema_0.99": 7.5, "ema_0.995": 6.0}},
        {"step": 400, "scores": {"ema_0.99": math.nan, "ema_0.995": 5.0}},
    ]
    decision = decide(history, _config(patience=2))
    assert not decision.stop
    assert (decision.best_step, decision.best_weights) == (400, "ema_0.995")


def test_the_earlier_of_two_checkpoints_with_equal_scores_is_best() -> None:
    assert decide(_history(5, 4, 4), _config()).best_step == 200


@given(st.lists(st.floats(0.1, 100) | st.just(math.nan), min_size=1, max_size=12), st.randoms())
def test_the_order_in_which_scores_arrive_does_not_matter(values: list[float], shuffler: random.Random) -> None:
    history = _history(*values)
    shuffled = [*history]
    shuffler.shuffle(shuffled)
    assert decide(shuffled, _config()) == decide(history, _config())


def test_a_step_that_is_scored_twice_counts_once() -> None:
    history = _history(9, 5, 5)
    assert not decide([*history, *history[1:]], _config(patience=2)).stop
    assert decide([*history, *_history(9, 5, 5, 5)], _config(patience=2)) == decide(_history(9, 5, 5, 5), _config(patience=2))


def test_a_history_that_went_through_json_gives_the_same_decision() -> None:
    history = _history(9, 5, 5, 5, 5)
    assert decide(json.loads(json.dumps(history)), _config()) == decide(history, _config())


def test_the_best_candidates_are_different_checkpoints() -> None:
    history = [
        {"step": 100, "scores": {"a": 3.0, "b": 3.1}},
        {"step": 200, "scores": {"a": 2.0, "b": 2.1}},
        {"step": 300, "scores": {"a": 5.0, "b": 4.0}},
    ]
    assert [(c.step, c.weights) for c in best_checkpoints(history, 2)] == [(200, "a"), (100, "a")]
    assert len(ranked_candidates(history)) == 6

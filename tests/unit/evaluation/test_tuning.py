"""Tunings: the searched fields, suggestions that are a function of the records, pruning against Optuna's own, and the page."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import optuna
import pytest

from components.steps.runs import identify
from components.tuning.report import log_trials
from components.tuning.steps import _pending, _run_trial, _suggest
from evaluation.monitoring.checkpoint_scorer import CheckpointScorer
from evaluation.tuning.optimiser import Pruner, suggest
from evaluation.tuning.page import render
from evaluation.tuning.record import TuningTrial, best_of, read_records, write_record
from evaluation.tuning.request import TuneOptions, TuneRequest
from training import storage
from training.config.errors import UserError
from training.config.files import read_experiment_file
from training.config.plain import as_plain_fields

RATE, DROPOUT, WIDTH = "optim.learning_rate", "model.dropout", "model.model_channels"
REQUEST = TuneRequest(
    preset="digits-tiny-hybrid-cosine",
    search=(f"{RATE}=log:1e-4..1e-2", f"{DROPOUT}=0..0.3", f"{WIDTH}=[32,64]"),
    trials=20,
)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lerning_rate=0.1..1", "there is no 'lerning_rate' in 'optim'; did you mean 'learning_rate'"),
        (f"{RATE}=0..1", f"{RATE}: must be a finite number above 0, got 0.0"),
        (f"{RATE}=log:0.1..0.01", "the range log:0.1..0.01 is empty: 0.1 is not less than 0.01"),
        (f"{DROPOUT}=log:0..0.3", "a logarithmic range begins above 0"),
        (f"{DROPOUT}=0..2", f"{DROPOUT}: must be in [0, 1), got 2.0"),
        (f"{DROPOUT}=0.1", "'0.1' is no range and no list of choices; write LOW..HIGH, log:LOW..HIGH or [A,B,C]"),
        (DROPOUT, "a searched field reads section.field=VALUES"),
        (f"{WIDTH}=[32,48]", f"{WIDTH}: must be even and a multiple of 32"),
        (f"{WIDTH}=[32]", "needs two or more different choices"),
        pytest.param(f"{WIDTH}={'[' * 100_000}", "needs two or more different choices", id="nested"),
        ("model.num_res_blocks=1..2.5", "model.num_res_blocks: Input should be a valid integer"),
        ("diffusion.num_timesteps=[400,5]", "diffusion.num_timesteps=5: evaluation."),
        ("diffusion.schedule=[linear,cos]", "Input should be 'linear' or 'cosine', got 'cos'"),
        ("optim.ema_decays=0.9..0.99", "(0.9,) is not a number, so it has no range"),
        ("data.image_size=8..16", "data.image_size: can't be searched: trials on other images can't be compared"),
        ("evaluation.scoring_num_samples=10..20", "can't be searched: it makes the scores"),
    ],
)
def test_what_can_not_be_searched_is_refused_in_one_line(word: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        TuneRequest(preset=REQUEST.preset, search=(word,), trials=2).axes()
    assert message in str(error.value)


def _bowl(params: dict[str, Any]) -> float:
    """A score with its minimum 0 at a learning rate of 0.002 and no dropout."""
    return abs(math.log10(params[RATE] / 2e-3)) + params[DROPOUT]


def _extend(uri: str, num_trials: int, *, seed: int = 0, score: Callable[[dict[str, Any]], float] = _bowl) -> list[TuningTrial]:
    for number in range(len(read_records(uri)), num_trials):
        params = suggest(REQUEST.axes(), REQUEST.experiment(), read_records(uri), number=number, seed=seed)
        value = score(params)
        state = "pruned" if value > 1.0 else "complete"
        write_record(uri, TuningTrial(number=number, params=params, state=state, score=value, best_step=100, scores=((100, value),)))
    return read_records(uri)


def test_a_tuning_that_was_killed_goes_on_with_the_same_suggestions(tmp_path: Path) -> None:
    whole, killed = f"{tmp_path}/whole", f"{tmp_path}/killed"
    assert _extend(whole, 12)[0].params == {RATE: 0.002, DROPOUT: 0.0, WIDTH: "32"}  # the preset's own values are the first trial
    for num_trials in (1, 3, 7, 12):
        _extend(killed, num_trials)
    assert read_records(killed) == read_records(whole)
    assert len({str(record.params) for record in read_records(whole)}) == 12
    other = suggest(REQUEST.axes(), REQUEST.experiment(), read_records(whole)[:6], number=6, seed=1)
    assert other != read_records(whole)[6].params


def test_a_trial_that_was_killed_goes_on_with_its_suggestion_before_one_that_failed_runs_again(tmp_path: Path) -> None:
    records = _extend(str(tmp_path), 10)
    records[3] = TuningTrial(number=3, params=records[3].params, state="failed")
    killed = _suggest(REQUEST, records, 10)
    again = [*records[:3], TuningTrial(number=3, params=records[3].params, state="complete", score=-1.0), *records[4:]]  # the best
    assert _suggest(REQUEST, again, 10) != killed
    assert _pending(12, records) == [10, 11, 3]


def test_suggestions_learn_from_the_trials_before(tmp_path: Path) -> None:
    # Of random trials the mean score is E|log10 u| + 0.15 = 0.54 + 0.15, the same for all; over 4 x 10 trials its standard error is 0.06.
    records = [_extend(f"{tmp_path}/{seed}", 20, seed=seed) for seed in range(4)]
    learnt = np.mean([record.score for each in records for record in each[10:]])
    assert learnt < 0.69 - 3 * 0.06


def test_the_pruner_decides_as_optuna_does_in_a_study_that_lives() -> None:
    random = np.random.default_rng(3)
    curves = [sorted(random.uniform(1, 9, 6), reverse=True) for _ in range(30)]
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=100, reduction_factor=2))
    theirs, ours, rungs = [], [], []
    for curve in curves:
        trial, end = study.ask(), None
        for step, score in zip(range(100, 700, 100), curve, strict=True):
            trial.report(score, step)
            if trial.should_prune():
                end = step
                break
        study.tell(trial, state=optuna.trial.TrialState.PRUNED if end else None, values=None if end else curve[-1])
        theirs.append(end)
        pruner = Pruner(rungs=tuple(rungs), min_steps=100, reduction=2)
        history = [
            {"step": step, "scores": {"a": score, "b": score + 1, "c": None}}
            for step, score in zip(range(100, 700, 100), curve, strict=True)
        ]
        ours.append(next((step["step"] for number, step in enumerate(history, 1) if pruner(history[:number])), None))
        assert (pruner(history) is None) == (ours[-1] is None)  # what is pruned once stays pruned
        rungs.append(pruner.judge(history)[1])
    assert ours == theirs
    assert {100, 200, 400, None} == set(ours)


def test_a_trial_without_a_finite_score_is_pruned_with_that_reason() -> None:
    pruner = Pruner(rungs=tuple({"completed_rung_0": score} for score in (1.0, 2.0)), min_steps=100, reduction=2)
    history = [{"step": step, "scores": {"a": score}} for step, score in ((100, None), (200, 0.5))]
    assert pruner(history) == "it has no finite score up to step 100"
    assert pruner([{"step": 100, "scores": {"a": 3.0}}]) == "3 at step 100 is not among the best 1/2 of the trials there"


def test_early_stopping_finishes_a_training_before_the_pruner_gives_it_up() -> None:
    evaluation = REQUEST.experiment().override(["evaluation.patience=1"]).evaluation
    scorer = CheckpointScorer(evaluation=evaluation, reference_uri="", stop_rule=lambda history: "pruned" if len(history) > 1 else None)
    better = [{"step": step, "scores": {"a": 9.0 / step}} for step in (1, 2)]
    assert [scorer.stop_reason(better[:count]) for count in (1, 2)] == [None, "pruned"]
    assert "no gain" in str(scorer.stop_reason([better[0], {"step": 2, "scores": {"a": 9.5}}]))


def test_the_best_trial_is_first_on_the_page_and_its_file_is_its_experiment(tmp_path: Path) -> None:
    run_uri = f"{tmp_path}/runs/digits-0123456789"
    protocol = {"distance": "FD(digits-classifier)", "num_samples": 250, "sampler": "DPM-Solver++"}
    storage.write_json(f"{run_uri}/evaluations/step=00000100.json", {"step": 100, "scores": {"a": 7.5}, "protocol": protocol})
    params = {RATE: 0.003142, DROPOUT: 0.125, WIDTH: "64"}
    known: dict[str, Any] = {"params": params, "run_uri": run_uri, "best_step": 100}
    records = [
        TuningTrial(number=0, state="complete", score=9.25, scores=((100, 9.25),), **known),
        TuningTrial(number=1, state="pruned", score=1.125, scores=((100, 1.125),), **known),
        TuningTrial(number=2, state="complete", score=7.5, scores=((100, 7.5), (200, 8.0)), **known),
        TuningTrial(number=3, state="failed", params=params, reason="the gradient was not finite"),
    ]
    assert best_of(records) == records[2]
    page = render(REQUEST, records, links={"Directory": "s3://iddpm/tunings/x"})
    positions = [page.index(f"<td>{number}</td>") for number in (2, 0, 1, 3)]
    assert positions == sorted(positions)
    assert '<tr class="ours"><td>2</td><td>complete</td>' in page
    for text in ("FD(digits-classifier)", "learning_rate = 0.003142", "Trial 3 failed.</strong> the gradient was not finite", "<svg"):
        assert text in page
    assert read_experiment_file(REQUEST.as_file(params)) == REQUEST.trial(params)
    assert render(REQUEST, [], links={})  # while the first trial runs


@pytest.mark.parametrize("count", [1, 3, 4])
def test_each_searched_field_has_a_panel_and_there_is_no_other(count: int) -> None:
    search = (*REQUEST.search, "optim.num_steps=10..500")[:count]
    request = dataclasses.replace(REQUEST, search=search)
    params = {RATE: 0.003, DROPOUT: 0.1, WIDTH: "64", "optim.num_steps": 100}
    page = render(request, [TuningTrial(number=0, state="complete", params=params, score=9.25, scores=((100, 9.25),))], links={})
    by_step, by_value = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(re.findall(r'id="axes_\d+"', by_step)) == 1
    assert len(re.findall(r'id="axes_\d+"', by_value)) == count


def test_the_values_of_a_searched_field_are_labelled_where_its_range_has_no_power_of_ten_and_its_choices_are_long() -> None:
    sampler = "diffusion.timestep_sampler"
    request = dataclasses.replace(REQUEST, search=(f"{RATE}=log:2e-4..8e-4", f"{sampler}=[uniform,loss_second_moment]"))
    record = TuningTrial(number=0, state="complete", params={RATE: 0.0003, sampler: "uniform"}, score=9.25, scores=((100, 9.25),))
    by_value = re.findall(r"<svg.*?</svg>", render(request, [record], links={}), flags=re.DOTALL)[-1]
    for label in ("0.0002", "0.0005", "uniform", "loss_second_moment"):
        assert f">{label}</text>" in by_value


def test_more_trials_are_the_same_tuning_and_another_seed_is_another() -> None:
    more = TuneRequest(preset=REQUEST.preset, search=REQUEST.search, trials=40, options=TuneOptions(hours=2.0))
    other = TuneRequest(preset=REQUEST.preset, search=REQUEST.search, trials=20, options=TuneOptions(seed=1))
    assert more.key("digest") == REQUEST.key("digest") != other.key("digest")
    assert REQUEST.key("other images") != REQUEST.key("digest")
    assert TuneRequest.from_dict(more.to_dict()) == more


def test_a_run_that_was_scored_by_another_protocol_is_no_trial_among_the_others(digits_uri: str, tmp_path: Path) -> None:
    """A run's directory may have scores by other settings than those of the trials."""
    places = {"data_uri": digits_uri, "storage_root_uri": str(tmp_path)}
    params: dict[str, Any] = {RATE: 0.002, DROPOUT: 0.0, WIDTH: "32"}
    experiment = REQUEST.trial(params)
    run_uri, evaluation = identify(experiment, **places).uri, experiment.evaluation
    sampling = as_plain_fields(evaluation.scoring_sampling)
    own = {"num_samples": evaluation.scoring_num_samples, "sampling": sampling, "reference": {"extractor": evaluation.extractor}}
    storage.write_json(f"{run_uri}/result.json", {"step": 200})

    def trained(number: int, **protocol: Any) -> TuningTrial:
        score = {"step": 100 * number, "scores": {"a": 9.0 / number}, "protocol": {"sampler": "DPM-Solver++", **own, **protocol}}
        storage.write_json(f"{run_uri}/evaluations/step={100 * number:08d}.json", score)
        return _run_trial(REQUEST, 0, params, [], lambda *_: None, **places)

    few = trained(1, num_samples=10)
    assert (few.state, few.score, few.scores) == ("failed", None, ())
    assert "no score by this protocol" in few.reason
    assert (trained(2).state, trained(2).scores) == ("complete", ((200, 4.5),))


def test_a_trial_whose_learning_rate_would_be_0_before_its_end_is_refused() -> None:
    request = TuneRequest(preset="fashion-mnist-hybrid-cosine", search=("optim.num_steps=1000..5000",), trials=2)
    assert request.trial({"optim.num_steps": 2400}).optim.num_steps == 2400
    with pytest.raises(UserError, match="the learning rate is 0 from update 2400 on, and training goes to"):
        request.trial({"optim.num_steps": 2401})


def test_a_field_that_the_objective_does_not_use_is_not_searched() -> None:
    weight = "diffusion.vlb_weight"
    for word in (f"{weight}=log:0.001..0.1", f"{weight}=[0.001,0.1]"):  # the first value is the one of every experiment
        with pytest.raises(UserError, match="only objective 'hybrid' uses it"):
            TuneRequest(preset="digits-tiny-simple-cosine", search=(word,), trials=2).axes()


def test_a_trial_whose_objective_does_not_use_another_searched_field_is_refused_with_that_reason() -> None:
    weight = "diffusion.vlb_weight"
    request = TuneRequest(preset=REQUEST.preset, search=("diffusion.objective=[hybrid,vlb]", f"{weight}=log:0.001..0.1"), trials=2)
    assert len(request.axes()) == 2
    assert read_experiment_file(request.as_file({"diffusion.objective": "hybrid", weight: 0.01})).diffusion.vlb_weight == 0.01
    with pytest.raises(UserError, match=f"{weight}: only objective 'hybrid' uses it, and diffusion.objective is 'vlb'"):
        request.trial({"diffusion.objective": "vlb", weight: 0.01})


def test_a_trial_that_failed_and_ran_again_changes_the_best_of_the_later_ones() -> None:
    tracked = Mock()
    records = [TuningTrial(number=number, params={}, state="complete", score=score) for number, score in ((2, 6.0), (0, 7.0))]
    log_trials(tracked, [*records, TuningTrial(number=1, params={}, state="failed")])
    log_trials(tracked, [*records, TuningTrial(number=1, params={}, state="complete", score=4.0)])
    before, now = (call.args[0] for call in tracked.correct_metrics.call_args_list)
    assert before == {
        **{("trial_score", 0): 7.0, ("trial_score", 2): 6.0},
        **{("best_score", 0): 7.0, ("best_score", 1): 7.0, ("best_score", 2): 6.0},
    }
    assert now == before | {("trial_score", 1): 4.0, ("best_score", 1): 4.0, ("best_score", 2): 4.0}


def test_the_command_names_the_preset_or_stands_for_the_file_whose_name_is_not_known() -> None:
    words = f"--search {DROPOUT}=0..0.3 --trials 2"
    request = TuneRequest(preset=REQUEST.preset, search=(f"{DROPOUT}=0..0.3",), trials=2)
    assert request.command() == f"iddpm tune {REQUEST.preset} {words}"
    of_file = dataclasses.replace(request, preset="", file=f'base = "{REQUEST.preset}"\nname = "other"')
    assert of_file.command() == f"iddpm tune FILE.toml {words}"

"""The replay of early stopping: its choices, and costs that follow from counts alone."""

import dataclasses
import json
from pathlib import Path

import pytest

from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate_once
from evaluation.monitoring.checkpoint_scorer import CheckpointScorer, score_uri
from evaluation.records.result import EvaluationResult
from evaluation.sampling.generate import NotFiniteError
from evaluation.sampling.trained_model import ModelSpec
from evaluation.studies.stopping_replay import Replay, as_study, replay
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment, SamplingConfig


@pytest.fixture
def scored_run_uri(run_uri: str, reference_uri: str, experiment: Experiment) -> str:
    for step in (100, 200):
        CheckpointScorer(evaluation=experiment.evaluation, reference_uri=reference_uri).score(checkpoint.checkpoint_uri(run_uri, step))
    return run_uri


def test_costs_are_images_times_steps_of_every_decay(
    scored_run_uri: str, digits_uri: str, reference_uri: str, experiment: Experiment
) -> None:
    found = replay(scored_run_uri, digits_uri, reference_uri, options=EvaluationOptions(num_samples=70), num_rescored=1)
    assert (found.num_checkpoints, found.num_weights) == (2, 4)
    assert found.cheap_evaluations == 4 * experiment.evaluation.scoring_num_samples * 5
    assert found.full_evaluations == 4 * 70 * 8
    assert found.rescoring_evaluations == 70 * 8
    assert found.score_ratio == (4 * 70 * 8) / (4 * 60 * 5)
    assert found.full.distance == min(row[3] for row in found.table)
    assert found.behind >= 0
    assert "1,200 beside training, 2,240 at full protocol, 1.87 times as many" in as_study(found).text
    assert json.loads(json.dumps(found.to_dict()))["score_ratio"] == found.score_ratio


def test_the_papers_protocol_costs_62_times_less(scored_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    found = replay(scored_run_uri, digits_uri, reference_uri, options=EvaluationOptions(num_samples=30))
    at_the_papers = dataclasses.replace(found, cheap_evaluations=10_000 * 20, full_evaluations=50_000 * 250)
    assert at_the_papers.score_ratio == 62.5


def test_rescoring_all_chooses_the_same_as_full_scoring_even_if_the_scores_mislead(
    scored_run_uri: str, digits_uri: str, reference_uri: str
) -> None:
    uri = score_uri(checkpoint.checkpoint_uri(scored_run_uri, 100))
    misled = storage.read_json(uri)
    misled["scores"] = dict.fromkeys(misled["scores"], 0.001)
    storage.write_json(uri, misled)
    options = EvaluationOptions(num_samples=40, sampling=SamplingConfig(spacing="6"))
    both: Replay = replay(scored_run_uri, digits_uri, reference_uri, options=options, num_rescored=2)
    one: Replay = replay(scored_run_uri, digits_uri, reference_uri, options=options, num_rescored=1)
    assert one.cheap.step == both.cheap.step == 100
    assert one.rescored.step == 100
    assert both.rescored.distance <= one.rescored.distance
    assert one.table == both.table, "what is scored at full protocol is read again"
    assert "network evaluations" in as_study(both).text
    if one.rescored != one.full:
        assert ("another decay" if one.same_checkpoint else "another checkpoint") in as_study(one).text


def test_scores_of_other_settings_are_no_part_of_a_replay(scored_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    uri = score_uri(checkpoint.checkpoint_uri(scored_run_uri, 100))
    score = storage.read_json(uri)
    storage.write_json(uri, {**score, "protocol": {**score["protocol"], "num_samples": 600}})
    with pytest.raises(UserError, match="only 1 remain"):
        replay(scored_run_uri, digits_uri, reference_uri)


def test_a_run_without_scores_is_refused(run_uri: str, digits_uri: str, reference_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only 0 remain"):
        replay(run_uri, digits_uri, reference_uri)


def test_weights_whose_images_are_not_finite_are_left_out(
    scored_run_uri: str, digits_uri: str, reference_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(spec: ModelSpec, *arguments: object) -> EvaluationResult:
        if spec.checkpoint_uri.endswith(lost):
            raise NotFiniteError(f"{spec.checkpoint_uri}: not finite")
        return evaluate_once(spec, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("evaluation.studies.stopping_replay.evaluate_once", diverge)
    options, lost = EvaluationOptions(num_samples=20), "00000100"
    found = replay(scored_run_uri, digits_uri, reference_uri, options=options)
    assert {pick.step for pick in found.picks.values()} == {row[0] for row in found.table} == {200}
    lost = ""
    with pytest.raises(UserError, match="none of the best 2 checkpoints has finite images at full protocol"):
        replay(scored_run_uri, digits_uri, reference_uri, options=options)


def test_the_guide_and_the_checkpoints_before_it_are_no_part_of_a_replay(scored_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    guided = EvaluationOptions(num_samples=20, sampling=SamplingConfig(spacing="4", guidance_scale=2.0, guidance_step=200))
    with pytest.raises(UserError, match="only 0 remain after step 200, which guides the others"):
        replay(scored_run_uri, digits_uri, reference_uri, options=guided)

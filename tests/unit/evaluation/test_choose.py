"""The final choice: the best few checkpoints again, at full protocol, on noise that neither scores nor report use."""

import json
import shutil
from pathlib import Path

import pytest

from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate, evaluate_once
from evaluation.monitoring.checkpoint_scorer import CheckpointScorer, read_history, score_uri
from evaluation.records.result import EvaluationResult
from evaluation.sampling.generate import NotFiniteError
from evaluation.sampling.trained_model import ModelSpec
from evaluation.selection.final_choice import Choice, choose_best
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment

_OPTIONS = EvaluationOptions(batch_size=20)


@pytest.fixture(scope="module")
def scored_run_uri(kept_run_uri: str, reference_uri: str, experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> str:
    run_uri = str(shutil.copytree(kept_run_uri, tmp_path_factory.mktemp("scored") / "run"))
    for step in (100, 200):
        CheckpointScorer(evaluation=experiment.evaluation, reference_uri=reference_uri).score(checkpoint.checkpoint_uri(run_uri, step))
    return run_uri


@pytest.fixture(scope="module")
def choice(scored_run_uri: str, digits_uri: str, reference_uri: str) -> Choice:
    return choose_best(scored_run_uri, digits_uri, reference_uri, options=_OPTIONS)


@pytest.fixture
def own_run_uri(scored_run_uri: str, tmp_path: Path) -> str:
    """A scored run that a test may write to."""
    return str(shutil.copytree(scored_run_uri, tmp_path / "run"))


def test_the_choice_is_the_best_at_full_protocol(choice: Choice, scored_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    distances = {
        item.candidate.step: evaluate(
            ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(scored_run_uri, item.candidate.step), weights=item.candidate.weights),
            digits_uri,
            reference_uri,
            options=EvaluationOptions(batch_size=20, likelihood=False, purpose="choose", result_name="mine"),
        ).distance
        for item in choice.candidates
    }
    assert len(distances) == 2
    assert choice.step == min(distances, key=lambda step: distances[step])
    assert {item.candidate.step: item.distance for item in choice.candidates} == distances
    assert choice.candidates[0].difference is None
    difference = choice.candidates[1].difference
    assert difference is not None
    assert difference.value == choice.candidates[1].distance - choice.candidates[0].distance
    assert choice.reason.endswith(f"the next, of step {300 - choice.step:,}, differs by {difference}")
    stored = json.loads((Path(scored_run_uri) / "evaluations" / "choice.json").read_text())
    assert stored["step"] == choice.step
    assert stored["weights"] == choice.weights
    assert stored["candidates"][1]["difference"]["verdict"] == difference.verdict


def test_a_stored_rescoring_is_not_repeated(choice: Choice, scored_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    results = sorted((Path(scored_run_uri) / "evaluations").glob("choose-*.json"))
    before = [path.stat().st_mtime_ns for path in results]
    assert len(results) == 2
    assert choose_best(scored_run_uri, digits_uri, reference_uri, options=_OPTIONS) == choice
    assert [path.stat().st_mtime_ns for path in results] == before


def test_a_single_candidate_is_not_scored_again(own_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    Path(score_uri(checkpoint.checkpoint_uri(own_run_uri, 100))).unlink()
    choice = choose_best(own_run_uri, digits_uri, reference_uri)
    assert choice.step == 200
    assert choice.candidates[0].distance is None


def _lose_distance(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "distance": None, "distance_standard_error": None}))


def test_a_candidate_without_a_finite_distance_is_not_chosen(own_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    first, second = choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS).candidates
    names = [f"choose-{each.candidate.step:08d}-{each.candidate.weights}.json" for each in (first, second)]
    _lose_distance(Path(own_run_uri, "evaluations", names[0]))
    found = choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS)
    assert (found.step, found.candidates[1].difference) == (second.candidate.step, None)
    assert found.reason.endswith(f"the next, of step {first.candidate.step:,}, has no finite one")
    _lose_distance(Path(own_run_uri, "evaluations", names[1]))
    with pytest.raises(UserError, match="none of the best 2 checkpoints has a finite distance at full protocol"):
        choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS)


def test_a_removed_checkpoint_is_not_chosen(choice: Choice, own_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    checkpoint.remove(own_run_uri, {choice.step})
    assert choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS).step == 300 - choice.step
    assert len(read_history(own_run_uri)) == 2


def test_scores_of_other_settings_do_not_keep_the_runs_own_best_checkpoint_from_the_choice(
    choice: Choice, own_run_uri: str, digits_uri: str, reference_uri: str, experiment: Experiment
) -> None:
    """More samples give smaller distances: here those of the worse checkpoint, scored before the training went on with fewer."""
    storage.write_bytes(f"{own_run_uri}/experiment.json", experiment.override(["evaluation.rescore_best=1"]).to_json().encode())
    worse = 300 - choice.step
    path = Path(score_uri(checkpoint.checkpoint_uri(own_run_uri, worse)))
    score = json.loads(path.read_text())
    for protocol in ({"num_samples": 6000}, {"reference": {**score["protocol"]["reference"], "num_images": 500}}):
        earlier = {"scores": {"ema_0.99": 1e-3, "ema_0.995": 1e-3}, "protocol": {**score["protocol"], **protocol}}
        path.write_text(json.dumps({**score, **earlier}))
        found = choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS)
        assert {item.candidate.step for item in found.candidates} == {100, 200}
        assert found.step == choice.step


def test_a_run_without_scores_has_no_choice(run_uri: str, digits_uri: str, reference_uri: str) -> None:
    with pytest.raises(UserError, match="none of 2 checkpoints has a finite score"):
        choose_best(run_uri, digits_uri, reference_uri)


def test_the_guide_and_the_checkpoints_before_it_are_no_candidates(
    own_run_uri: str, digits_uri: str, reference_uri: str, experiment: Experiment
) -> None:
    def guide_by(step: int) -> None:
        for each in (100, 200):
            uri = checkpoint.checkpoint_uri(own_run_uri, each)
            files = {name: checkpoint.load_bytes(uri, name) for name in checkpoint.file_names(uri)}
            guided = experiment.override(["evaluation.sampling.guidance_scale=2", f"evaluation.sampling.guidance_step={step}"])
            checkpoint.save(own_run_uri, each, {**files, "experiment.json": guided.to_dict()})

    guide_by(100)
    assert [each.candidate.step for each in choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS).candidates] == [200]
    guide_by(200)
    with pytest.raises(UserError, match="no checkpoint after step 200, which guides the others, has a finite score"):
        choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS)


def test_a_candidate_that_diverges_at_full_protocol_is_left_out(
    own_run_uri: str, digits_uri: str, reference_uri: str, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(spec: ModelSpec, *arguments: object) -> EvaluationResult:
        if spec.checkpoint_uri.endswith(lost):
            raise NotFiniteError(f"{spec.checkpoint_uri}: not finite")
        return evaluate_once(spec, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("evaluation.selection.final_choice.evaluate_once", diverge)
    lost = f"{choice.step:08d}"
    found = choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS)
    assert found.step == 300 - choice.step
    assert found.reason.endswith("the smallest of 1 of 2 candidates, as the others have no finite one")
    lost = ""
    with pytest.raises(UserError, match="none of the best 2 checkpoints has a finite distance at full protocol"):
        choose_best(own_run_uri, digits_uri, reference_uri, options=_OPTIONS)

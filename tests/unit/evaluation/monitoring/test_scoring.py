"""Scores beside training: common noise, stored in the run's directory, and read again instead of computed again."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from evaluation.distances.reference_statistics import load_reference, save_reference
from evaluation.features.extractors import DigitsExtractor
from evaluation.monitoring.checkpoint_scorer import CheckpointScorer, comparable, read_history, score_uri
from evaluation.monitoring.early_stopping import decide
from evaluation.records.run_directory import run_uri_of
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment


@pytest.fixture
def scorer(experiment: Experiment, reference_uri: str) -> CheckpointScorer:
    return CheckpointScorer(evaluation=experiment.evaluation, reference_uri=reference_uri)


def test_a_score_has_every_decay_and_is_stored_with_its_protocol(run_uri: str, scorer: CheckpointScorer) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 100)
    score = scorer.score(uri)
    assert set(score["scores"]) == {"ema_0.99", "ema_0.995"}
    assert all(math.isfinite(value) and value > 0 for value in score["scores"].values())
    assert all(value > 0 for value in score["standard_errors"].values())
    assert score["distance_name"] == "FD(digits-classifier)"
    assert score["protocol"]["sampler"] == "DPM-Solver++ (2M), 5 of 40 steps"
    assert json.loads(Path(score_uri(uri)).read_text()) == score
    assert scorer.history(run_uri) == [score]
    assert scorer.metrics(score)["score/best"] == min(score["scores"].values())


def test_without_averages_the_trained_weights_are_scored(run_uri: str, scorer: CheckpointScorer, experiment: Experiment) -> None:
    bare = experiment.override(["optim.ema_decays="])
    state = checkpoint.load_model_state(checkpoint.checkpoint_uri(run_uri, 100), checkpoint.MODEL)
    checkpoint.save(run_uri, 300, {"experiment.json": bare.to_dict(), "model.pt": state})
    score = scorer.score(checkpoint.checkpoint_uri(run_uri, 300))
    assert set(score["scores"]) == {checkpoint.MODEL}
    assert decide([score], bare.evaluation).best_weights == checkpoint.MODEL


def test_a_score_does_not_depend_on_the_batch_size(run_uri: str, scorer: CheckpointScorer) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 100)
    first = dataclasses.replace(scorer, batch_size=60).score(uri)
    Path(score_uri(uri)).unlink()
    second = dataclasses.replace(scorer, batch_size=13).score(uri)
    # Five calls of the network change a pixel by up to 5e-5, and so one in 150 by a level of 1/128: 6e-4 of the images, root mean square.
    for weights, value in first["scores"].items():
        assert second["scores"][weights] == pytest.approx(value, rel=1e-3)


def test_a_stored_score_is_read_and_not_computed_again(run_uri: str, scorer: CheckpointScorer) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 100)
    first = scorer.score(uri)
    before = Path(score_uri(uri)).stat().st_mtime_ns
    assert scorer.score(uri) == first
    assert Path(score_uri(uri)).stat().st_mtime_ns == before


def test_a_checkpoint_that_was_written_again_is_scored_again(run_uri: str, scorer: CheckpointScorer) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 100)
    first = scorer.score(uri)
    files = {name: checkpoint.load_bytes(uri, name) for name in checkpoint.file_names(uri)}
    files["ema_0.99.pt"] = checkpoint.load_bytes(uri, "model.pt")
    checkpoint.save(run_uri, 100, files)
    second = scorer.score(uri)
    assert second["scores"]["ema_0.99"] != first["scores"]["ema_0.99"]
    assert second["scores"]["ema_0.995"] == first["scores"]["ema_0.995"], "the same noise gives the same score"


def test_the_grid_has_a_column_for_each_digit(run_uri: str, scorer: CheckpointScorer) -> None:
    score = scorer.score(checkpoint.checkpoint_uri(run_uri, 200))
    assert score["grid_uri"] == f"{run_uri}/samples/step=00000200.png"
    image = scorer.image(score)
    assert image is not None
    assert image.shape[2] == 3
    assert image.shape[1] > 10 * 48
    Path(score["grid_uri"]).unlink()
    assert scorer.image(score) is None


def test_the_scorer_stops_and_keeps_checkpoints_by_the_history(run_uri: str, scorer: CheckpointScorer, experiment: Experiment) -> None:
    for step in (100, 200):
        scorer.score(checkpoint.checkpoint_uri(run_uri, step))
    history = read_history(run_uri)
    assert [score["step"] for score in history] == [100, 200]
    assert scorer.stop_reason(history) is None
    assert scorer.keep(history) == {100, 200}
    one = dataclasses.replace(experiment.evaluation, rescore_best=1)
    (best_step,) = dataclasses.replace(scorer, evaluation=one).keep(history)
    assert best_step in (100, 200)
    guided = dataclasses.replace(one, sampling=dataclasses.replace(one.sampling, guidance_scale=2.0, guidance_step=100))
    assert dataclasses.replace(scorer, evaluation=guided).keep(history) == {100, 200}, "the final evaluation needs the guide too"
    guided = dataclasses.replace(one, sampling=dataclasses.replace(one.sampling, guidance_scale=2.0, guidance_step=200))
    assert dataclasses.replace(scorer, evaluation=guided).keep(history) == {200}, "no checkpoint is later than the guide"
    best = decide(history, experiment.evaluation)
    assert best.best_score == min(value for score in history for value in score["scores"].values())


def test_scores_of_other_settings_decide_nothing_and_their_checkpoints_stay(
    run_uri: str, scorer: CheckpointScorer, experiment: Experiment
) -> None:
    """A resumed training may score by fewer samples: no later score reaches the earlier ones, which would stop it."""
    settings = dataclasses.replace(experiment.evaluation, patience=1, min_steps=0, rescore_best=1)
    (stored, _) = (scorer.score(checkpoint.checkpoint_uri(run_uri, step)) for step in (100, 200))

    def at(step: int, distance: float, num_samples: int) -> dict[str, Any]:
        protocol = stored["protocol"] | {"num_samples": num_samples}
        return stored | {"step": step, "scores": {"ema_0.99": distance}, "without_blocks": {}, "protocol": protocol}

    now, before = settings.scoring_num_samples, settings.scoring_num_samples * 10
    resumed = dataclasses.replace(scorer, evaluation=settings)
    assert resumed.stop_reason([at(100, 3.0, now), at(200, 4.0, now)]) is not None
    history = [at(100, 3.0, before), at(200, 4.0, now)]
    assert resumed.stop_reason(history) is None
    assert resumed.keep(history) == {100, 200}
    other = dataclasses.replace(settings, scoring_sampling=dataclasses.replace(settings.scoring_sampling, spacing="7"))
    assert comparable(history, settings) == history[1:]
    assert comparable([at(100, 3.0, now)], other) == []
    earlier = {"step": 50, "scores": {"ema_0.99": 5.0}}
    assert comparable([earlier], settings) == [earlier], "what says nothing of its settings"


def test_a_reference_of_other_images_is_refused(run_uri: str, scorer: CheckpointScorer, tmp_path: Path) -> None:
    reference = load_reference(scorer.reference_uri)
    assert reference.provenance is not None
    other = str(tmp_path / "other.npz")
    changed = dataclasses.replace(reference.provenance, data_name="letters")
    save_reference(other, reference.features, changed)
    with pytest.raises(UserError, match="data_name: 'letters', not 'digits'"):
        dataclasses.replace(scorer, reference_uri=other).score(checkpoint.checkpoint_uri(run_uri, 100))


def test_the_runs_directory_is_found_from_a_checkpoint() -> None:
    assert run_uri_of("s3://bucket/runs/x/checkpoints/step=00000100/") == "s3://bucket/runs/x"


def _damage(run_uri: str, step: int, *names: str) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, step)
    files = {name: checkpoint.load_bytes(uri, name) for name in checkpoint.file_names(uri)}
    lost = {f"{name}.pt": {key: value * math.nan for key, value in checkpoint.load(uri, f"{name}.pt").items()} for name in names}
    checkpoint.save(run_uri, step, {**files, **lost})


def test_a_model_whose_features_overflow_has_no_score_and_training_goes_on(
    run_uri: str, scorer: CheckpointScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = DigitsExtractor.outputs

    def overflow_once(extractor: DigitsExtractor, images: Tensor) -> dict[str, Tensor]:
        monkeypatch.setattr(DigitsExtractor, "outputs", outputs)
        return {name: value * math.inf for name, value in outputs(extractor, images).items()}

    monkeypatch.setattr(DigitsExtractor, "outputs", overflow_once)
    score = scorer.score(checkpoint.checkpoint_uri(run_uri, 100))
    lost, other = checkpoint.weights_names(checkpoint.checkpoint_uri(run_uri, 100))[:2]
    assert (score["scores"][lost], score["best_weights"]) == (None, other)
    assert f"{lost} has no score: the features of " in capsys.readouterr().out


def test_a_diverged_model_has_no_score_and_training_goes_on_until_its_patience_ends(
    run_uri: str, scorer: CheckpointScorer, experiment: Experiment
) -> None:
    _damage(run_uri, 100, "ema_0.99")
    score = scorer.score(checkpoint.checkpoint_uri(run_uri, 100))
    assert score["scores"]["ema_0.99"] is None
    assert score["scores"]["ema_0.995"] > 0
    assert (score["best_weights"], score["standard_errors"]["ema_0.99"]) == ("ema_0.995", None)
    assert scorer.image(score) is not None
    _damage(run_uri, 200, "ema_0.99", "ema_0.995")
    lost = scorer.score(checkpoint.checkpoint_uri(run_uri, 200))
    assert set(lost["scores"].values()) == {None}
    assert (scorer.image(lost), scorer.metrics(lost)) == (None, {})
    history = read_history(run_uri)
    assert [score["step"] for score in history] == [100, 200]
    impatient = dataclasses.replace(experiment.evaluation, patience=1, min_steps=0)
    assert decide(history, impatient).stop
    assert decide(history, impatient).best_step == 100
    assert scorer.keep(history) == {100}

"""The whole evaluation of a checkpoint: early refusals, resumption, equal numbers when repeated, and the protocol card."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from rounding import NETWORK
from typer.testing import CliRunner

from components.steps.compare import compare_models
from components.steps.nightly import score_model
from components.steps.reference import make_reference
from components.steps.runs import identify
from evaluation.distances.reference_statistics import compute_reference, load_reference, save_reference
from evaluation.evaluate.options import EvaluationOptions, require_own_name
from evaluation.evaluate.preflight import preflight
from evaluation.evaluate.run import evaluate, evaluate_once, keep_first
from evaluation.features.extractors import load_extractor
from evaluation.likelihood.split_likelihood import LikelihoodPlan, split_likelihood
from evaluation.records.protocol_card import same_protocol
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import kept_images, result_uri
from evaluation.sampling import sample_set
from evaluation.sampling.generate import Generated
from evaluation.sampling.sample_set import SamplePlan, chunk_uri
from evaluation.sampling.trained_model import ModelSpec
from pipelines.cli.main import app
from tests.unit.evaluation.conftest import write_run
from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.checkpoint import CheckpointError
from training.config.errors import UserError
from training.config.experiment import Experiment, SamplingConfig
from training.data.format.manifest import read_manifest
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.files import file_source
from training.data.sources.published import digits
from training.models.unet import make_model

Door = Callable[[str, str, str], object]
"""Evaluates a checkpoint, given its directory, another checkpoint of its run, and a storage root."""


def _by_command(*words: str, with_other: bool = False) -> Door:
    def evaluate_it(uri: str, other: str, root: str) -> object:
        models = [other, uri] if with_other else [uri]
        return CliRunner().invoke(app, [words[0], *models, *words[1:]], catch_exceptions=False)

    return evaluate_it


@pytest.fixture
def plan(kept_run_uri: str) -> SamplePlan:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(kept_run_uri, 200))
    return SamplePlan(model=spec, num_images=25, seed=1, sampling=SamplingConfig(spacing="4"), batch_size=5, chunk_size=10, inputs=())


@pytest.fixture(scope="module")
def evaluated_run_uri(kept_run_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shutil.copytree(kept_run_uri, tmp_path_factory.mktemp("evaluated") / "run"))


@pytest.fixture(scope="module")
def result(evaluated_run_uri: str, digits_uri: str, reference_uri: str) -> EvaluationResult:
    options = EvaluationOptions(likelihood_num_images=20, batch_size=20, metrics=("label_agreement", "precision_recall"))
    return evaluate(checkpoint.checkpoint_uri(evaluated_run_uri, 200), digits_uri, reference_uri, options=options)


def test_an_evaluation_writes_numbers_grid_and_card(result: EvaluationResult, evaluated_run_uri: str) -> None:
    stored = json.loads((Path(evaluated_run_uri) / "evaluations" / "final.json").read_text())
    assert EvaluationResult.from_dict(stored) == result
    assert result.distance > 0
    assert result.distance_standard_error is not None
    assert 0 < result.distance_standard_error < result.distance
    assert result.likelihood is not None
    assert result.likelihood["num_images"] == 20
    assert result.held_out is not None
    assert result.held_out["real"] < result.held_out["generated"], "the test images are nearer than a random network's"
    assert set(result.metrics) == {"label_agreement", "precision", "recall"}
    assert Path(result.grid_uri).exists()
    card = result.protocol
    assert card["distance"]["num_samples"] == 80
    assert card["distance"]["sampler"] == "ancestral, 8 of 40 steps"
    assert card["distance"]["reference"]["num_images"] == 1497
    assert card["likelihood"]["split"] == "test"
    assert {"python", "torch", "numpy"} <= set(card["versions"])
    leftovers = [path for path in Path(evaluated_run_uri).rglob("*") if "work-" in path.name or "images-" in path.name]
    assert not [path for path in leftovers if path.is_file()], "working files go when the result is there"


def test_the_same_evaluation_gives_the_same_numbers(
    result: EvaluationResult, evaluated_run_uri: str, digits_uri: str, reference_uri: str
) -> None:
    options = EvaluationOptions(likelihood_num_images=20, batch_size=20, result_name="again")
    again = evaluate(checkpoint.checkpoint_uri(evaluated_run_uri, 200), digits_uri, reference_uri, options=options)
    assert again.distance == result.distance
    assert again.likelihood is not None
    assert result.likelihood is not None
    assert {**again.likelihood, "per_image_uri": ""} == {**result.likelihood, "per_image_uri": ""}


def test_an_evaluation_says_why_it_has_no_bits_per_dim(
    experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = checkpoint.checkpoint_uri(write_run(str(tmp_path / "run"), experiment, (100,)), 100)
    state = checkpoint.load_model_state(uri)
    state["out.2.weight"] *= 1e30  # the variance overflows, which DDIM does not use
    files = {"experiment.json": experiment.to_dict(), "ema_0.99.pt": state}
    spec = ModelSpec(checkpoint_uri=checkpoint.save(str(tmp_path / "run"), 100, files))  # type: ignore[arg-type]
    ddim = SamplingConfig(method="ddim", spacing="4")
    result = evaluate(spec, digits_uri, reference_uri, options=EvaluationOptions(likelihood_num_images=5, num_samples=20, sampling=ddim))
    assert math.isfinite(result.distance)
    assert result.likelihood is not None
    assert not math.isfinite(result.likelihood["bits_per_dim"])
    assert "step 100 (ema_0.99): there is no mean of bits/dim, as those of 5 of 5 images are not finite" in capsys.readouterr().out


def test_an_evaluation_says_which_result_of_its_name_it_replaces(
    run_uri: str, digits_uri: str, reference_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EvaluationOptions(num_samples=40, likelihood=False, metrics=(), result_name="mine")
    uri = checkpoint.checkpoint_uri(run_uri, 200)
    first = evaluate(uri, digits_uri, reference_uri, options=options)
    evaluate(uri, digits_uri, reference_uri, options=options)
    assert "replaces" not in capsys.readouterr().out
    evaluate(uri, digits_uri, reference_uri, options=dataclasses.replace(options, num_samples=20))
    said = (
        f"evaluations/mine.json: replaces FD(digits-classifier) {first.distance:.4g} of 40 samples, which is of another model or protocol"
    )
    assert f"{said}; --name NAME with another name keeps both" in capsys.readouterr().out


def test_another_purpose_draws_other_samples(result: EvaluationResult, evaluated_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    options = EvaluationOptions(likelihood=False, batch_size=20, purpose="again", result_name="other")
    other = evaluate(checkpoint.checkpoint_uri(evaluated_run_uri, 200), digits_uri, reference_uri, options=options)
    assert other.distance != result.distance
    assert result.distance_standard_error is not None
    assert abs(other.distance - result.distance) < 10 * result.distance_standard_error


def test_the_experiment_or_the_options_say_which_metrics_are_computed(
    experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    own = experiment.override(['evaluation.metrics=["density_coverage", "mind"]'])
    files = {"experiment.json": own.to_dict(), "ema_0.99.pt": make_model(own).state_dict()}
    spec = ModelSpec(checkpoint_uri=checkpoint.save(str(tmp_path / "run"), 1, files))  # type: ignore[arg-type]
    plan = preflight(spec, digits_uri, reference_uri, EvaluationOptions(likelihood=False))
    assert plan.metrics == {"density_coverage", "mind"}
    assert plan.card["metrics"] == ["density_coverage", "mind"], "so that a result with other metrics is not taken for this one"
    assert preflight(spec, digits_uri, reference_uri, EvaluationOptions(likelihood=False, metrics=())).metrics == frozenset()
    options = EvaluationOptions(likelihood=False, metrics=("fd_infinity",), num_samples=300)
    with pytest.raises(UserError, match="300 samples: fd_infinity takes 320 at least"):
        preflight(spec, digits_uri, reference_uri, options)
    with pytest.raises(UserError, match=r"evaluation\.metrics"):
        experiment.override(['evaluation.metrics=["fidd"]'])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.metrics=sfid"], r"gives features, logits; sfid needs spatial"),
        (["evaluation.metrics=inception_score"], r"is defined on the Inception network"),
        (
            ["evaluation.metrics=precision_recall", "evaluation.num_samples=3"],
            r"^3 samples of evaluation\.num_samples: precision_recall takes 4",
        ),
        (["evaluation.metrics=label_agreement", "model.class_conditional=false"], r"label_agreement needs a class-conditional model"),
    ],
)
def test_metrics_that_the_final_evaluation_could_not_compute_are_refused_before_the_training(
    experiment: Experiment, digits_uri: str, tmp_path: Path, overrides: list[str], message: str
) -> None:
    digest = read_manifest(f"{digits_uri}/train").content_digest
    with pytest.raises(UserError, match=message):
        make_reference(experiment.override(overrides).to_json(), digits_uri, digest, str(tmp_path), {})
    assert not any(tmp_path.rglob("*.npz")), "before the statistics too"


def test_too_few_training_images_for_a_metric_are_refused_before_the_training_and_before_the_first_draw(
    experiment: Experiment, tmp_path: Path
) -> None:
    images, data_uri = tmp_path / "images", str(tmp_path / "data")
    images.mkdir()
    for index in range(3):
        Image.new("L", (8, 8), 80 * index).save(images / f"{index}.png")
    manifest = prepare(
        file_source(str(images), name="digits", split="train"),
        f"{data_uri}/train",
        image_size=8,
        options=Options(resize="none", image_channels=1),
    )
    unlabelled = experiment.override(["model.class_conditional=false", "data.num_classes=0", "evaluation.metrics=precision_recall"])
    refusal = "^3 images in .*/train: precision_recall takes 4 at least"
    with pytest.raises(UserError, match=refusal):
        make_reference(unlabelled.to_json(), data_uri, manifest.content_digest, str(tmp_path), {})
    assert not any(tmp_path.rglob("*.npz")), "before the statistics too"
    reference = compute_reference(f"{data_uri}/train", load_extractor("digits-classifier"), str(tmp_path / "references"))
    run_uri = write_run(str(tmp_path / "run"), unlabelled, (100,))
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 100))
    with pytest.raises(UserError, match=refusal):
        preflight(spec, data_uri, reference.uri, EvaluationOptions(likelihood=False))


@pytest.mark.parametrize(
    "evaluate_it",
    [
        pytest.param(_by_command("evaluate"), id="evaluate"),
        pytest.param(_by_command("compare", with_other=True), id="compare"),
        pytest.param(_by_command("guidance-sweep", "--guidance-step", "100"), id="guidance-sweep"),
        pytest.param(lambda uri, other, root: compare_models([other, uri], 0, root, {}), id="the compare pipeline"),
        pytest.param(
            lambda uri, other, root: score_model(uri, "", f"{root}/data", 20, 0.0, root, "nightly-1", {}), id="the nightly pipeline"
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_the_statistics_that_are_missing_are_computed(
    experiment: Experiment, digits_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate_it: Door
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(f"{digits_uri}/train", tmp_path / "data" / "train")
    run_uri = write_run(str(tmp_path / "run"), experiment)
    storage.write_json(f"{run_uri}/result.json", {"data_uri": str(tmp_path / "data"), "tracking_run_id": "1"})
    good, damaged = (checkpoint.checkpoint_uri(run_uri, step) for step in (100, 200))
    Path(damaged, "ema_0.99.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"ema_0\.99\.pt: is damaged"):
        evaluate_it(damaged, good, str(tmp_path))
    assert not list(tmp_path.rglob("references"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "--labels", "0,99"), r"labels \[0, 99\] are not all in 0..9"),
        (("evaluate", "--low-res", "small"), "is not an upsampler"),
        (("evaluate", "--likelihood-form", "spaced", "--likelihood-steps", "9999"), "9,?999"),
        (("evaluate", "--likelihood-form", "full", "--likelihood-steps", "5"), "a full likelihood takes every timestep, so 5 would change"),
        (("evaluate", "--name", "n" * 201), "is no file name; use at most 200 letters"),
        (("evaluate", "--steps", "5", "--sampling", "spacing=10"), "--steps 5 and --sampling spacing mean the same; give one"),
        (("sample", "--method", "ddim", "--sampling", "method=unipc"), "--method ddim and --sampling method mean the same; give one"),
        (
            ("ema-sweep", "--decays", "0.99", "--at", "150"),
            "no checkpoint of step 150; .* are of the steps 100, 200",
        ),
        (("ema-sweep", "--decays", "1.5"), "decays are numbers between 0 and 1"),
    ],
)
def test_impossible_options_are_refused_before_the_statistics_that_are_missing_are_computed(
    experiment: Experiment, digits_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_uri, tmp_path / "data", ignore=shutil.ignore_patterns("references"))
    run_uri = write_run(str(tmp_path / "run"), experiment)
    storage.write_json(f"{run_uri}/result.json", {"data_uri": str(tmp_path / "data"), "tracking_run_id": "1"})
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, [words[0], checkpoint.checkpoint_uri(run_uri, 200), *words[1:]], catch_exceptions=False)
    assert not list(tmp_path.rglob("references"))


@pytest.mark.parametrize(
    ("words", "work"),
    [
        (("learn-steps",), "evaluation.sampling.learned_steps.learn_steps"),
        (("learn-variance",), "evaluation.sampling.reverse_variance.estimate"),
        (("export", "out.pt"), "training.checkpoints.checkpoint.load_model_state"),
        (("export", "out.pt2"), "training.checkpoints.exported_program.load_network"),
        (("export", "out"), "training.checkpoints.checkpoint.load_model_state"),
    ],
)
def test_a_place_that_can_not_be_written_is_refused_before_the_work(
    run_uri: str, digits_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], work: str
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_json(f"{run_uri}/result.json", {"data_uri": digits_uri, "tracking_run_id": "1"})
    monkeypatch.setattr("training.storage.disk.os.access", lambda path, mode: not mode & os.W_OK)  # root may write everywhere
    monkeypatch.setattr(work, Mock(side_effect=AssertionError("it begins")))
    with pytest.raises(storage.StorageError, match="Permission denied; give this user the right to it"):
        CliRunner().invoke(app, [words[0], checkpoint.checkpoint_uri(run_uri, 200), *words[1:]], catch_exceptions=False)


def test_invalid_options_are_refused_before_the_first_draw(run_uri: str, digits_uri: str, reference_uri: str, tmp_path: Path) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 200)
    before = set(Path(run_uri).rglob("*"))
    with pytest.raises(UserError, match="there is no metric 'fidd'"):
        evaluate(uri, digits_uri, reference_uri, options=EvaluationOptions(metrics=("fidd",)))
    for few, metric, message in ((1, "label_agreement", "a Frechet distance takes 2"), (3, "precision_recall", "precision_recall takes 4")):
        with pytest.raises(UserError, match=f"{few} samples: {message} at least"):
            evaluate(uri, digits_uri, reference_uri, options=EvaluationOptions(metrics=(metric,), num_samples=few))
    with pytest.raises(UserError, match=r"not all in 0\.\.9"):
        evaluate(uri, digits_uri, reference_uri, options=EvaluationOptions(labels=(3, 12)))
    with pytest.raises(UserError, match="likelihood_num_images: Input should be greater than or equal to 1, got -5"):
        evaluate(uri, digits_uri, reference_uri, options=EvaluationOptions(likelihood_num_images=-5))
    for seed in (-1, 2**48):
        with pytest.raises(UserError, match=r"^seed: Input should be .* got " + str(seed)):
            evaluate(uri, digits_uri, reference_uri, options=EvaluationOptions(seed=seed))
    for name in ("", "../final", "a b", "-x"):
        with pytest.raises(UserError, match="is no file name"):
            evaluate(uri, digits_uri, reference_uri, options=EvaluationOptions(result_name=name))
    for step, message in ((150, "no checkpoint of step 150 .* step 200; earlier ones: 100"), (0, "cannot guide itself")):
        guided = SamplingConfig(guidance_scale=2.0, guidance_step=step)
        with pytest.raises(UserError, match=message):
            evaluate(uri, digits_uri, reference_uri, options=EvaluationOptions(sampling=guided))
    with pytest.raises(CheckpointError):
        evaluate(ModelSpec(checkpoint_uri=uri, weights="ema_0.5"), digits_uri, reference_uri)
    some = compute_reference(f"{digits_uri}/train", load_extractor("digits-classifier"), str(tmp_path / "some.npz"), num_images=100)
    with pytest.raises(UserError, match="is of 100 images, the protocol takes 1,497"):
        evaluate(uri, digits_uri, some.uri)
    other_split = compute_reference(f"{digits_uri}/test", load_extractor("digits-classifier"), str(tmp_path / "test.npz"))
    with pytest.raises(UserError, match="split: 'test', not 'train'"):
        evaluate(uri, digits_uri, other_split.uri)
    reference = load_reference(reference_uri)
    assert reference.provenance is not None
    save_reference(str(tmp_path / "adopted.npz"), reference.features, reference.provenance, images_uri=str(tmp_path / "adm.npz"))
    with pytest.raises(UserError, match=r"adm\.npz: the real images of .*adopted\.npz are not there, and kid compare with them"):
        evaluate(uri, digits_uri, str(tmp_path / "adopted.npz"), options=EvaluationOptions(metrics=("kid",)))
    assert set(Path(run_uri).rglob("*")) == before


def test_the_splits_of_a_data_set_that_were_exchanged_are_refused(experiment: Experiment, digits_uri: str, tmp_path: Path) -> None:
    shutil.copytree(f"{digits_uri}/test", tmp_path / "data/train")
    shutil.copytree(f"{digits_uri}/train", tmp_path / "data/test")
    uri = checkpoint.checkpoint_uri(write_run(str(tmp_path / "run"), experiment), 200)
    with pytest.raises(UserError, match=r"data/train: has the test images, as its manifest says; exchange train and test again"):
        CliRunner().invoke(app, ["evaluate", uri, "--data", str(tmp_path / "data")], catch_exceptions=False)
    assert not list(tmp_path.rglob("references"))
    with pytest.raises(UserError, match="has the test images"):
        preflight(ModelSpec(checkpoint_uri=uri), str(tmp_path / "data"), f"{digits_uri}/none.npz", EvaluationOptions())
    with pytest.raises(UserError, match="has the test images"):
        identify(experiment, str(tmp_path / "data"), str(tmp_path / "storage"))


def test_label_agreement_is_refused_for_an_unconditional_model(
    experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    unconditional = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, class_conditional=False))
    state = dict(make_model(unconditional).state_dict())
    uri = checkpoint.save(str(tmp_path), 1, {"experiment.json": unconditional.to_dict(), "ema_0.99.pt": state})
    options = EvaluationOptions(metrics=("label_agreement",))
    with pytest.raises(UserError, match="needs a class-conditional model"):
        preflight(ModelSpec(checkpoint_uri=uri), digits_uri, reference_uri, options)


@pytest.mark.parametrize(
    "name",
    ["final", "choice", "step=00000200", "choose-00000200-ema_0.99", "nightly-2026", "compare-x", "ancestral-5", "images-25k", "ensemble"],
)
def test_a_users_result_can_not_have_a_name_that_pipelines_and_studies_use(name: str) -> None:
    with pytest.raises(UserError, match="is reserved for results of pipelines and studies"):
        require_own_name(name)
    require_own_name(f"my-{name.replace('=', '-')}")


def test_an_interrupted_set_of_images_continues_with_the_missing_chunks(plan: SamplePlan, tmp_path: Path) -> None:
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    sample_set.draw(plan, whole)
    sample_set.draw(plan, broken)
    Path(chunk_uri(broken, 1)).unlink()
    whole_plan = (Path(broken) / "plan.json").read_bytes()
    kept = Path(chunk_uri(broken, 0)).stat().st_mtime_ns
    with pytest.raises(UserError, match="chunk 1 is missing"):
        list(sample_set.read(broken))
    sample_set.draw(dataclasses.replace(plan, batch_size=3), broken)
    assert Path(chunk_uri(broken, 0)).stat().st_mtime_ns == kept, "what is there is not drawn again, by another batch size either"
    assert (Path(broken) / "plan.json").read_bytes() == whole_plan
    for (_, images, labels), (_, same, same_labels) in zip(sample_set.read(whole), sample_set.read(broken), strict=True):
        assert int((images.int() - same.int()).abs().max()) <= 1
        assert labels is not None
        assert same_labels is not None
        assert torch.equal(labels, same_labels)
    assert [len(images) for _, images, _ in sample_set.read(whole)] == [10, 10, 5]


def test_a_directory_with_images_of_another_plan_is_refused(plan: SamplePlan, tmp_path: Path) -> None:
    sample_set.draw(plan, str(tmp_path / "set"))
    with pytest.raises(UserError, match="images of another plan"):
        sample_set.draw(dataclasses.replace(plan, seed=2), str(tmp_path / "set"))


def test_images_of_a_run_that_was_trained_again_are_refused(plan: SamplePlan, run_uri: str, tmp_path: Path) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 200)
    spec = ModelSpec(checkpoint_uri=uri)
    sample_set.draw(dataclasses.replace(plan, model=spec, inputs=sample_set.input_digests(spec)), str(tmp_path / "set"))
    names = ("experiment.json", "model.pt", "ema_0.99.pt", "ema_0.995.pt")
    files = {name: checkpoint.load(checkpoint.checkpoint_uri(run_uri, 100), name) for name in names}
    checkpoint.remove(run_uri, [200])
    checkpoint.save(run_uri, 200, files)
    with pytest.raises(UserError, match="images of another plan"):
        sample_set.draw(dataclasses.replace(plan, model=spec, inputs=sample_set.input_digests(spec)), str(tmp_path / "set"))


def test_the_batch_size_does_not_change_the_working_directories(run_uri: str, digits_uri: str, reference_uri: str) -> None:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 200))
    jobs = [preflight(spec, digits_uri, reference_uri, EvaluationOptions(batch_size=size)) for size in (0, 7, 500)]
    assert len({(job.images_uri, job.work_uri) for job in jobs}) == 1


_FEW = EvaluationOptions(num_samples=20, likelihood_num_images=5, metrics=(), result_name="mine")


def _forget(value: dict[str, object], *names: str) -> dict[str, object]:
    return {name: item for name, item in value.items() if name not in names}


@pytest.fixture
def own_data_uri(digits_uri: str, tmp_path: Path) -> str:
    """A data set whose test split a test may replace."""
    return str(shutil.copytree(digits_uri, tmp_path / "data", ignore=shutil.ignore_patterns("cache")))


def _replace_test_images(data_uri: str) -> None:
    shutil.rmtree(f"{data_uri}/test")
    prepare(digits("test"), f"{data_uri}/test", image_size=8, options=Options(resize="none", seed=1))


def test_a_result_of_other_test_images_is_not_taken_for_a_current_one(run_uri: str, own_data_uri: str, reference_uri: str) -> None:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 200))
    before = evaluate_once(spec, own_data_uri, reference_uri, _FEW)
    plan = preflight(spec, own_data_uri, reference_uri, _FEW)
    assert plan.card["likelihood"]["data_digest"] == plan.card["test_data_digest"] == read_manifest(f"{own_data_uri}/test").content_digest
    assert evaluate_once(spec, own_data_uri, reference_uri, _FEW) == before
    _replace_test_images(own_data_uri)
    assert preflight(spec, own_data_uri, reference_uri, _FEW).work_uri != plan.work_uri, "no chunk of the old images is continued with"
    after = evaluate_once(spec, own_data_uri, reference_uri, _FEW)
    assert before.likelihood is not None
    assert after.likelihood is not None
    assert after.likelihood["bits_per_dim"] != before.likelihood["bits_per_dim"]
    assert (after.distance, after.held_out != before.held_out) == (before.distance, True)


@pytest.mark.parametrize("options", [{"held_out": True}, {"held_out": False, "memorisation": True}])
def test_test_images_that_a_number_is_compared_with_are_on_the_card_and_others_are_not(
    run_uri: str, own_data_uri: str, reference_uri: str, options: dict[str, bool]
) -> None:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 200))

    def card(**changes: Any) -> dict[str, Any]:
        return preflight(spec, own_data_uri, reference_uri, dataclasses.replace(_FEW, likelihood=False, **changes)).card

    before, unused = card(**options), card(held_out=False)
    _replace_test_images(own_data_uri)
    assert not same_protocol(before, card(**options))
    assert unused == card(held_out=False)
    shutil.rmtree(f"{own_data_uri}/test")
    assert not same_protocol(before, card(held_out=True))


def test_a_result_of_the_version_before_is_found(
    run_uri: str, experiment: Experiment, digits_uri: str, reference_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows no digest of test images, and has the experiment's number of steps for a full likelihood too."""
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 200))
    for form in (None, "full"):
        options = dataclasses.replace(_FEW, likelihood_form=form)
        result = evaluate(spec, digits_uri, reference_uri, options=options)
        stored = result.to_dict()
        likelihood = {**_forget(stored["protocol"]["likelihood"], "data_digest"), "num_steps": experiment.evaluation.likelihood_steps}
        stored["protocol"] = {**_forget(stored["protocol"], "test_data_digest"), "likelihood": likelihood}
        storage.write_json(result_uri(run_uri, "mine"), stored)
        capsys.readouterr()
        assert evaluate_once(spec, digits_uri, reference_uri, options).to_dict() == stored
        assert "evaluated by this protocol before" in capsys.readouterr().out
        for other in ({"num_images": 6}, {"form": "spaced", "num_steps": 5}):
            assert not same_protocol({**stored["protocol"], "likelihood": {**likelihood, **other}}, result.protocol)


def test_a_full_likelihood_takes_no_number_of_steps(
    run_uri: str, experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    full = EvaluationOptions(likelihood_form="full")
    with pytest.raises(UserError, match=r"^likelihood_steps: a full likelihood takes every timestep, so 5 would change nothing; leave it"):
        evaluate(checkpoint.checkpoint_uri(run_uri, 200), digits_uri, reference_uri, options=dataclasses.replace(full, likelihood_steps=5))
    plans = []
    for steps in (5, 10):
        own = experiment.override([f"evaluation.likelihood_steps={steps}", "evaluation.likelihood_form=full"])
        spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(write_run(str(tmp_path / f"{steps}"), own, (100,)), 100))
        plans.append(preflight(spec, digits_uri, reference_uri, EvaluationOptions()))
    assert plans[0].card["likelihood"] == plans[1].card["likelihood"]
    first, second = (plan.likelihood for plan in plans)
    assert first is not None
    assert second is not None
    assert first == dataclasses.replace(second, model=first.model)


def test_an_evaluation_that_loses_its_images_does_not_return_the_result_that_it_replaces(
    run_uri: str, digits_uri: str, reference_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, options = checkpoint.checkpoint_uri(run_uri, 200), dataclasses.replace(_FEW, likelihood=False)
    first = evaluate(uri, digits_uri, reference_uri, options=options)
    read = sample_set.read

    def lose(uri: str) -> Iterator[Generated]:
        monkeypatch.setattr(sample_set, "read", read)
        shutil.rmtree(uri)
        return read(uri)

    monkeypatch.setattr(sample_set, "read", lose)
    capsys.readouterr()
    again = evaluate(uri, digits_uri, reference_uri, options=options)
    assert again.distance == first.distance
    said = capsys.readouterr().out
    assert "evaluated by this protocol before" not in said
    assert said.count("drew 20 images") == 2


def test_an_evaluation_that_loses_its_bits_per_dim_computes_them_again_and_one_that_loses_an_input_says_so(
    run_uri: str, digits_uri: str, reference_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 200)
    first = evaluate(uri, digits_uri, reference_uri, options=_FEW)
    missing = ""

    def lose(plan: LikelihoodPlan, work_uri: str, **named: Any) -> object:
        monkeypatch.setattr("evaluation.evaluate.run.split_likelihood", split_likelihood)
        return storage.read_bytes(missing or f"{work_uri}/likelihood-00000.pt")

    monkeypatch.setattr("evaluation.evaluate.run.split_likelihood", lose)
    assert evaluate(uri, digits_uri, reference_uri, options=_FEW).likelihood == first.likelihood
    missing = f"{digits_uri}/none"
    monkeypatch.setattr("evaluation.evaluate.run.split_likelihood", lose)
    capsys.readouterr()
    with pytest.raises(storage.ObjectNotFoundError, match=f"^{missing}: there is no such file"):
        evaluate(uri, digits_uri, reference_uri, options=_FEW)
    assert "another process" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["compare-same", "compare-other"])
def test_an_evaluation_whose_images_another_process_deletes_finds_its_result_or_draws_again(
    name: str, run_uri: str, digits_uri: str, reference_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 200))
    options = EvaluationOptions(num_samples=40, likelihood=False, result_name="compare-same")
    of_other: list[EvaluationResult] = []
    read = sample_set.read

    def read_late(uri: str) -> Iterator[Generated]:
        if not of_other:  # the other process draws, reads and deletes between this one's draw and its reading
            monkeypatch.setattr(sample_set, "read", read)
            of_other.append(evaluate_once(spec, digits_uri, reference_uri, dataclasses.replace(options, result_name=name)))
        return read(uri)

    monkeypatch.setattr(sample_set, "read", read_late)
    own = evaluate_once(spec, digits_uri, reference_uri, options)
    assert (own == of_other[0]) == (name == options.result_name)
    assert own.distance_without_blocks == of_other[0].distance_without_blocks
    assert not list(Path(run_uri, "samples").glob("images-*/*"))


def test_images_that_a_result_keeps_outlive_another_evaluation_by_the_same_plan(run_uri: str, digits_uri: str, reference_uri: str) -> None:
    options = EvaluationOptions(num_samples=40, likelihood=False, result_name="mine", keep_images=True)
    kept = evaluate(checkpoint.checkpoint_uri(run_uri, 200), digits_uri, reference_uri, options=options)
    again = dataclasses.replace(options, result_name="other", keep_images=False)
    other = evaluate(checkpoint.checkpoint_uri(run_uri, 200), digits_uri, reference_uri, options=again)
    assert (other.distance, other.images_uri) == (kept.distance, "")
    assert sum(len(images) for _, images, _ in sample_set.read(kept.images_uri)) == 40


def test_the_scores_of_checkpoints_are_not_read_for_the_images_that_results_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step=00000100", "step=00000200", "mine"):
        storage.write_json(f"{tmp_path}/evaluations/{name}.json", {"images_uri": f"{tmp_path}/samples/images-{name}"})
    uris, read = [], storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: (uris.append(uri), read(uri))[1])
    assert kept_images(str(tmp_path)) == {f"{tmp_path}/samples/images-mine/"}
    assert uris == [f"{tmp_path}/evaluations/mine.json"]


def test_the_images_that_are_searched_for_copies_hold_no_others_in_memory() -> None:
    kept: list[torch.Tensor] = []
    chunks = [torch.full((10, 1, 8, 8), number, dtype=torch.uint8) for number in range(5)]
    for images in chunks:
        keep_first(kept, images, 25)
    assert torch.equal(torch.cat(kept), torch.cat(chunks)[:25])
    assert sum(part.untyped_storage().nbytes() for part in kept) == 25 * 64


def test_a_likelihood_in_chunks_equals_one_chunk_and_continues_after_a_kill(plan: SamplePlan, digits_uri: str, tmp_path: Path) -> None:
    likelihood = LikelihoodPlan(
        model=plan.model, dataset_uri=f"{digits_uri}/test", num_images=25, form="stratified", num_steps=10, seed=3, chunk_size=7
    )
    pieces = split_likelihood(likelihood, str(tmp_path / "pieces"))
    Path(tmp_path / "pieces" / "likelihood-00002.pt").unlink()
    again = split_likelihood(likelihood, str(tmp_path / "pieces"))
    at_once = split_likelihood(dataclasses.replace(likelihood, chunk_size=100), str(tmp_path / "once"))
    assert pieces.num_images == at_once.num_images == 25
    assert again.bits_per_dim == pieces.bits_per_dim
    # Terms are squares of what the network says, less what it should say, which is about as large.
    assert pieces.bits_per_dim == pytest.approx(at_once.bits_per_dim, rel=4 * NETWORK)
    chunk = tmp_path / "pieces" / "likelihood-00001.pt"
    for damaged in (b"", chunk.read_bytes()[:100], b"not a file of torch"):
        chunk.write_bytes(damaged)
        with pytest.raises(UserError, match=r"likelihood-00001\.pt is damaged\. Delete this file"):
            split_likelihood(likelihood, str(tmp_path / "pieces"))


def test_test_images_are_read_only_for_a_result_that_shows_their_distance(run_uri: str, digits_uri: str, reference_uri: str) -> None:
    options = EvaluationOptions(likelihood=False, num_samples=20, metrics=(), held_out=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.evaluate.run._test_moments", lambda plan: pytest.fail("the test images were read"))
        found = evaluate(checkpoint.checkpoint_uri(run_uri, 100), digits_uri, reference_uri, options=options)
    assert found.held_out is None

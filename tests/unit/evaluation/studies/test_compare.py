"""The comparison of models: equal weights have difference zero, and common noise makes the errors of differences small."""

import dataclasses
import gc
import io
import json
import math
import re
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.distances.reference_statistics import compute_reference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.features.extractors import load_extractor
from evaluation.records import npz
from evaluation.records.paired import Difference, judge_together
from evaluation.records.result import EvaluationResult
from evaluation.records.run_directory import run_uri_of
from evaluation.sampling.sample_set import draw, plan_samples
from evaluation.sampling.trained_model import ModelSpec, TrainedModel, load_model
from evaluation.studies.compare import Comparison, _likelihood_difference, compare, short_names
from evaluation.studies.comparison_page import as_study
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment, SamplingConfig
from training.models.unet import make_model

_FEW = EvaluationOptions(num_samples=60, likelihood_num_images=20, metrics=("mind", "density_coverage", "label_agreement"))


def _spec(run_uri: str, step: int, weights: str = "ema_0.99") -> ModelSpec:
    return ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, step), weights=weights)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment, digits_uri: str, reference_uri: str) -> Comparison:
    """A network, the same one again, and one that is further from its initial weights."""
    run_uri = str(tmp_path_factory.mktemp("compared"))
    torch.manual_seed(7)
    initial = make_model(experiment).state_dict()
    for step, size in ((100, 0.02), (200, 0.02), (300, 0.05)):
        generator = torch.Generator().manual_seed(0)
        state = {key: value + size * torch.randn(value.shape, generator=generator) for key, value in initial.items()}
        checkpoint.save(run_uri, step, {"experiment.json": experiment.to_dict(), "ema_0.99.pt": state})
    return compare([_spec(run_uri, step) for step in (100, 200, 300)], digits_uri, reference_uri, options=_FEW)


def test_equal_weights_have_difference_zero_and_others_differ_by_more_than_noise(comparison: Comparison) -> None:
    first, same, other = comparison.models
    assert first.distance_difference is None
    assert same.distance_difference == Difference(value=0.0, standard_error=0.0, degrees_of_freedom=9, num_images=60)
    assert same.likelihood_difference is not None
    assert same.likelihood_difference.value == 0.0
    assert other.distance_difference is not None
    assert other.distance_difference.value == other.result.distance - first.result.distance
    assert other.likelihood_difference is not None
    assert other.likelihood_difference.num_standard_errors is not None
    assert abs(other.likelihood_difference.num_standard_errors) > 3


def test_a_model_without_a_finite_distance_has_no_difference_and_a_dash_in_the_table(
    comparison: Comparison, digits_uri: str, reference_uri: str
) -> None:
    models = [model.result for model in comparison.models]
    run_uri = run_uri_of(models[1].checkpoint_uri)
    stored = [
        path for path in Path(run_uri, "evaluations").glob("compare-*.json") if json.loads(path.read_text())["step"] == models[1].step
    ]
    before = stored[0].read_text()
    stored[0].write_text(json.dumps({**models[1].to_dict(), "distance": None, "distance_standard_error": None}))
    try:
        found = compare([_spec(run_uri, step) for step in (100, 200, 300)], digits_uri, reference_uri, options=_FEW)
    finally:
        stored[0].write_text(before)
    assert [model.distance_difference is None for model in found.models] == [True, True, False]
    study = as_study(found)
    assert re.search(r"^step 200 +- +- +", study.text, re.MULTILINE)
    assert not [name for name, _ in study.points if re.match(r"distance(_difference)?/2_", name)]
    assert "NaN" not in study.files["comparison.json"].decode()


def test_a_model_with_an_infinite_likelihood_has_no_difference_of_bits_per_dim(
    comparison: Comparison, digits_uri: str, reference_uri: str
) -> None:
    other = comparison.models[1].result
    assert other.likelihood is not None
    uri = other.likelihood["per_image_uri"]
    arrays = npz.read_arrays(uri)
    infinite = arrays["bits_per_dim"].copy()
    infinite[0] = math.inf
    npz.write_arrays(uri, {**arrays, "bits_per_dim": infinite})
    try:
        run_uri = run_uri_of(other.checkpoint_uri)
        found = compare([_spec(run_uri, step) for step in (100, 200, 300)], digits_uri, reference_uri, options=_FEW)
    finally:
        npz.write_arrays(uri, arrays)
    assert [model.likelihood_difference is None for model in found.models] == [True, True, False]
    assert "Infinity" not in as_study(found).files["comparison.json"].decode()


def test_bits_per_dim_of_unknown_images_are_not_compared_image_by_image(
    comparison: Comparison, digits_uri: str, reference_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_uri = run_uri_of(comparison.models[1].result.checkpoint_uri)
    by_step = {json.loads(path.read_text())["step"]: path for path in Path(run_uri, "evaluations").glob("compare-*.json")}
    before = {step: path.read_text() for step, path in by_step.items()}
    capsys.readouterr()
    try:
        for step in (200, 100):  # of an earlier version: at first one of two models, then both
            stored = json.loads(before[step])
            del stored["protocol"]["likelihood"]["data_digest"]
            by_step[step].write_text(json.dumps(stored))
            found = compare([_spec(run_uri, step) for step in (100, 200)], digits_uri, reference_uri, options=_FEW)
            assert (found.models[1].likelihood_difference is None) == (step == 200)
            told = "no difference of bits/dim: those of step 200 (ema_0.99) are of an earlier version" in capsys.readouterr().out
            assert told == (step == 200)
        for step, digest in ((100, "a"), (200, "b")):
            stored = json.loads(before[step])
            stored["protocol"]["likelihood"]["data_digest"] = digest
            by_step[step].write_text(json.dumps(stored))
        first, second = (EvaluationResult.read(str(by_step[step])) for step in (100, 200))
        with pytest.raises(UserError, match="the bits/dim are of different images"):
            _likelihood_difference(second, first)
    finally:
        for step, text in before.items():
            by_step[step].write_text(text)


def test_a_difference_on_common_noise_has_a_smaller_error_than_independent_draws(comparison: Comparison) -> None:
    first, _, other = comparison.models
    assert other.distance_difference is not None
    assert other.distance_difference.standard_error is not None
    alone = [model.result.distance_standard_error for model in (first, other)]
    assert None not in alone
    assert other.distance_difference.standard_error < math.hypot(*alone)  # type: ignore[arg-type]


def test_further_metrics_are_paired_where_noise_is_shared_and_have_a_better_side(comparison: Comparison) -> None:
    first, same, other = comparison.models
    assert first.metric_differences == {}
    assert set(other.metric_differences) == {"sliced_wasserstein", "coverage", "label_agreement"}
    assert same.metric_differences["coverage"] == Difference(
        value=0.0, standard_error=0.0, degrees_of_freedom=None, num_images=60, max_images=10_000, higher_is_better=True
    )
    worse = other.metric_differences["sliced_wasserstein"]
    alone = [model.result.metrics["sliced_wasserstein"]["standard_error"] for model in (first, other)]
    assert worse.standard_error is not None
    assert worse.standard_error < math.hypot(*alone)
    assert (worse.value > 0) == (worse.verdict == "worse")
    page = as_study(comparison).files["comparison.html"].decode()
    assert page.count("difference to the first") == 5, "distance, bits/dim, and the three"
    coverage = dataclasses.replace(other.metric_differences["coverage"], value=0.02, standard_error=0.0)
    certain = dataclasses.replace(other, metric_differences={**other.metric_differences, "coverage": coverage})
    page = as_study(dataclasses.replace(comparison, models=(first, same, certain))).files["comparison.html"].decode()
    assert "better by itself" not in page, "a difference whose error can't be estimated has no verdict"
    assert "No difference is judged for density: it has no better side." in page
    methods = [line for line in as_study(comparison).text.splitlines() if "by another method" in line]
    assert methods == ["The interval of a difference of coverage is by another method: jackknife over ten blocks of samples, normal."]


def test_shares_are_in_percent_as_an_evaluation_shows_them(comparison: Comparison) -> None:
    first, _, other = comparison.models
    share, difference = first.result.metrics["label_agreement"]["value"], other.metric_differences["label_agreement"]
    study = as_study(comparison)
    for text in (study.text, study.files["comparison.html"].decode()):
        assert "label agreement in %" in text
        assert f"{100 * share:.4g}" in text
        assert dataclasses.replace(difference, value=100 * difference.value).value_and_interval.split(" ")[0] in text
    assert study.points["label_agreement/1_step_100", 0] == share, "MLflow keeps the fraction, as evaluations do"


def test_a_higher_share_is_better() -> None:
    found = Difference(value=0.1, standard_error=0.02, num_images=100, higher_is_better=True)
    assert found.verdict == "better"
    assert found.probability_better == 1 - Difference(value=0.1, standard_error=0.02).probability_better  # type: ignore[operator]
    assert dataclasses.replace(found, value=-0.1).verdict == "worse"


def test_all_models_are_evaluated_by_one_protocol_and_seed(comparison: Comparison) -> None:
    cards = [model.result.protocol for model in comparison.models]
    assert len({(card["distance"]["seed"], card["distance"]["num_samples"], card["distance"]["sampler"]) for card in cards}) == 1
    assert {card["distance"]["purpose"] for card in cards} == {"compare"}


def test_the_grid_has_one_row_per_model(comparison: Comparison) -> None:
    with Image.open(io.BytesIO(comparison.grid)) as picture:
        height = picture.height
    assert height > 3 * 48
    assert json.loads(json.dumps(comparison.to_dict()))["models"][2]["distance_difference"]["value"] != 0


def test_table_and_page_name_every_model_and_judge_every_difference(comparison: Comparison) -> None:
    study = as_study(comparison)
    text, page = study.text, study.files["comparison.html"].decode()
    assert study.title == "Comparison: step 100 vs step 200 vs step 300"
    assert f"<h1>{study.title}</h1>" in page
    for word in ("step 100", "step 200", "step 300", "FD(digits-classifier)", "bits/dim", "be told with 60 images"):
        assert word in text
        assert word in page
    assert page.count("data:image/png;base64,") == 1
    assert "The experiments do not differ." in page


def test_what_differs_comes_first_and_scores_are_drawn_by_step_and_by_compute(comparison: Comparison) -> None:
    """One of two models was trained with twice the batch: its curve has twice the operations at each step."""
    first, second, _ = comparison.models
    wider = Experiment.from_dict(dict(second.result.experiment)).override(["optim.global_batch_size=128", "model.dropout=0.2"])
    protocol = {"seed": 1, "num_samples": 60}
    history = [
        {"step": step, "scores": {"ema_0.99": 9.0 - step / 100, "other": None}, "distance_name": "FD", "protocol": protocol}
        for step in (100, 200)
    ]
    models = (
        dataclasses.replace(first, history=history),
        dataclasses.replace(second, history=history, result=dataclasses.replace(second.result, experiment=wider.to_dict())),
    )
    study = as_study(dataclasses.replace(comparison, models=models))
    lines = study.text.splitlines()
    assert lines[0].split()[0] == "Field"
    assert [line.split() for line in lines[1:3]] == [["model.dropout", "0", "0.2"], ["optim.global_batch_size", "64", "128"]]
    page = study.files["comparison.html"].decode()
    assert page.index("Differences of the experiments") < page.index("Numbers") < page.index("Samples") < page.index("by training compute")
    assert page.count("<svg") == 2
    assert "Bands are" not in page
    known = [score | {"standard_errors": {"ema_0.99": 0.5}} for score in history]
    study = as_study(dataclasses.replace(comparison, models=(dataclasses.replace(first, history=known), models[1])))
    assert study.files["comparison.html"].decode().count("Bands are one standard error.</figcaption>") == 2


def test_a_comparisons_key_does_not_depend_on_its_date_and_mlflow_accepts_its_metric_names(comparison: Comparison) -> None:
    def at(moment: str, distance: float) -> Comparison:
        first, *others = comparison.models
        result = dataclasses.replace(first.result, created_at=moment, seconds=1.0, distance=distance)
        return dataclasses.replace(comparison, models=(dataclasses.replace(first, result=result), *others))

    distance = comparison.models[0].result.distance
    study = as_study(comparison)
    assert as_study(at("another day", distance)).key == study.key
    assert as_study(at("another day", distance + 1)).key != study.key
    names = [name for name, _ in study.points]
    assert {"distance/1_step_100", "bits_per_dim_difference_standard_error/3_step_300"} <= set(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", name) for name in names)
    assert "weights sha256" in study.files["comparison.html"].decode(), "the protocol card"


def test_a_repeated_comparison_reads_the_stored_results(
    kept_run_uri: str, digits_uri: str, reference_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = [_spec(kept_run_uri, 200), _spec(kept_run_uri, 200, "ema_0.995")]
    options = dataclasses.replace(_FEW, likelihood=False)
    first = compare(specs, digits_uri, reference_uri, options=options)
    capsys.readouterr()
    again = compare(specs, digits_uri, reference_uri, options=options)
    assert [model.result for model in again.models] == [model.result for model in first.models]
    assert capsys.readouterr().out.count("evaluated by this protocol before") == 2
    assert [model.name for model in again.models] == ["ema_0.99", "ema_0.995"]


def test_models_of_other_images_are_refused(kept_run_uri: str, experiment: Experiment, digits_uri: str, tmp_path: Path) -> None:
    unconditional = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, class_conditional=False))
    files = {"experiment.json": unconditional.to_dict(), "ema_0.99.pt": make_model(unconditional).state_dict()}
    checkpoint.save(str(tmp_path / "other"), 1, files)
    with pytest.raises(UserError, match="labels that the network is given is 10 and 0"):
        compare([_spec(kept_run_uri, 200), _spec(str(tmp_path / "other"), 1)], digits_uri, "unused.npz")
    with pytest.raises(UserError, match="two models or more"):
        compare([_spec(kept_run_uri, 200)], digits_uri, "unused.npz")


def test_a_later_model_that_can_not_be_evaluated_is_refused_before_the_first_is(
    run_uri: str, experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    short = experiment.override(["diffusion.num_timesteps=8", "evaluation.likelihood_steps=8", "evaluation.scoring_sampling.spacing=ddim4"])
    files = {"experiment.json": short.to_dict(), "ema_0.99.pt": make_model(short).state_dict()}
    other = checkpoint.save(str(tmp_path / "other"), 1, files)
    before = set(Path(run_uri).rglob("*"))
    models = [_spec(run_uri, 200), ModelSpec(checkpoint_uri=other)]
    with pytest.raises(UserError, match="a stratified likelihood takes 2 to 8 steps, got 10"):
        compare(models, digits_uri, reference_uri, options=_FEW)
    assert set(Path(run_uri).rglob("*")) == before


def test_verdicts_on_many_differences_hold_for_all_of_them_at_once() -> None:
    """Holm's method compares the n-th smallest of k two-sided p with 0.05 / (k - n + 1), and stops at the first that is larger."""
    errors = {0.001: 3.2905, 0.02: 2.3263, 0.026: 2.2262}  # two-sided p -> number of standard errors of a normal number
    differences = [Difference(value=value, standard_error=1.0) for value in (errors[0.026], -errors[0.001], errors[0.02])]
    assert [each.verdict for each in differences] == ["worse", "better", "worse"]
    assert judge_together(differences) == ["worse", "better", "worse"]  # 0.001 < 0.05 / 3, 0.02 < 0.05 / 2, 0.026 < 0.05
    unclear = Difference(value=0.1, standard_error=1.0)
    assert judge_together([*differences, unclear]) == ["can't be told", "better", "can't be told", "can't be told"]  # 0.02 > 0.05 / 3
    assert judge_together([Difference(value=1.0, standard_error=None)]) == ["can't be told"]


def test_a_note_names_a_protocol_that_is_not_used(
    kept_run_uri: str, experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    other = experiment.override(["evaluation.num_samples=90", "diffusion.num_timesteps=20"])
    state = load_model(checkpoint.checkpoint_uri(kept_run_uri, 200)).network.state_dict()  # type: ignore[attr-defined]
    checkpoint.save(str(tmp_path / "other"), 1, {"experiment.json": other.to_dict(), "ema_0.99.pt": state})
    options = dataclasses.replace(_FEW, num_samples=None)
    found = compare([_spec(kept_run_uri, 200), _spec(str(tmp_path / "other"), 1)], digits_uri, reference_uri, options=options)
    assert any("the num_samples of" in note for note in found.notes)
    assert any("of 20 for" in note for note in found.notes)
    assert found.models[1].result.protocol["distance"]["num_samples"] == experiment.evaluation.num_samples
    same = dataclasses.replace(options, num_samples=60)
    found = compare([_spec(kept_run_uri, 200), _spec(str(tmp_path / "other"), 1)], digits_uri, reference_uri, options=same)
    assert not any("num_samples" in note for note in found.notes), "the option's number is used, and neither model's own"


def test_all_models_have_the_metrics_of_the_first_one(
    run_uri: str, experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    other = experiment.override(["evaluation.metrics=density_coverage"])
    state = load_model(checkpoint.checkpoint_uri(run_uri, 200)).network.state_dict()  # type: ignore[attr-defined]
    checkpoint.save(str(tmp_path / "other"), 1, {"experiment.json": other.to_dict(), "ema_0.99.pt": state})
    specs = [_spec(run_uri, 200), _spec(str(tmp_path / "other"), 1)]
    options = EvaluationOptions(num_samples=20, likelihood=False)
    for models, names in ((specs, {"label_agreement"}), (specs[::-1], {"density", "coverage"})):
        found = compare(models, digits_uri, reference_uri, options=options)
        assert [set(model.result.metrics) for model in found.models] == [names, names]
        assert max(names).replace("_", " ") in as_study(found).text


def test_all_models_are_measured_against_as_many_real_images_as_the_first_one(
    run_uri: str, experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    other = experiment.override(["evaluation.num_reference_images=100"])
    state = load_model(checkpoint.checkpoint_uri(run_uri, 200)).network.state_dict()  # type: ignore[attr-defined]
    checkpoint.save(str(tmp_path / "other"), 1, {"experiment.json": other.to_dict(), "ema_0.99.pt": state})
    fewer = compute_reference(f"{digits_uri}/train", load_extractor("digits-classifier"), str(tmp_path), 100).uri
    specs = [_spec(run_uri, 200), _spec(str(tmp_path / "other"), 1)]
    options = EvaluationOptions(num_samples=20, likelihood=False, metrics=())
    for models, uri, count in ((specs, reference_uri, 1497), (specs[::-1], fewer, 100)):
        found = compare(models, digits_uri, uri, options=options)
        assert [model.result.protocol["distance"]["reference"]["num_images"] for model in found.models] == [count] * 2
        assert any("the num_reference_images of" in note for note in found.notes)
        assert found.models[1].distance_difference is not None
        assert abs(found.models[1].distance_difference.value) < 1e-9  # the same weights, noise and reference


def test_short_names_contain_what_differs_and_are_unique(kept_run_uri: str) -> None:
    model = load_model(checkpoint.checkpoint_uri(kept_run_uri, 200))
    assert short_names([model, dataclasses.replace(model, step=300)]) == ["step 200", "step 300"]
    assert short_names([model, model]) == ["digits-hybrid-cosine (1)", "digits-hybrid-cosine (2)"]


def test_short_names_take_the_fewest_fields(kept_run_uri: str) -> None:
    model = load_model(checkpoint.checkpoint_uri(kept_run_uri, 200))

    def other(*overrides: str) -> TrainedModel:
        return dataclasses.replace(model, experiment=model.experiment.override(overrides))

    trials = [other(f"diffusion.num_timesteps={100 if dropout == 0.1 else 400}", f"model.dropout={dropout}") for dropout in (0.1, 0.2, 0.3)]
    assert short_names(trials) == ["dropout=0.1", "dropout=0.2", "dropout=0.3"]
    renamed = [
        dataclasses.replace(trial, experiment=dataclasses.replace(trial.experiment, name=f"trial-{number}"))
        for number, trial in enumerate(trials)
    ]
    assert short_names(renamed) == ["trial-0", "trial-1", "trial-2"]
    two_fields = [other(f"model.dropout={dropout}", f"seed={seed}") for dropout in (0.1, 0.2) for seed in (1, 2)]
    assert short_names(two_fields)[1:3] == ["dropout=0.1 seed=2", "dropout=0.2 seed=1"]


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        # The 97.5% point of Student's t with 9 degrees of freedom is 2.262, and 1.96 with infinitely many.
        (
            Difference(value=-0.5, standard_error=0.1, degrees_of_freedom=9, num_images=1000),
            "-0.5 (-0.726 to -0.274), better with probability 100.0%: better",
        ),
        (Difference(value=0.5, standard_error=0.1), "+0.5 (+0.304 to +0.696), better with probability 0.0%: worse"),
        (
            Difference(value=0.1, standard_error=0.1, degrees_of_freedom=9, num_images=1000),
            "+0.1 (-0.126 to +0.326), better with probability 17.2%: can't be told with 1,000 images, about 5,200 would tell",
        ),
        (
            Difference(value=0.1, standard_error=0.1, degrees_of_freedom=9, num_images=1000, max_images=5000),
            "+0.1 (-0.126 to +0.326), better with probability 17.2%: can't be told with 1,000 images",
        ),
        (Difference(value=0.1, standard_error=None), "+0.1"),
    ],
)
def test_differences_read_as_sentences(difference: Difference, words: str) -> None:
    assert str(difference) == words


def test_labels_as_in_the_data_are_drawn_for_the_grid_too(run_uri: str, digits_uri: str, reference_uri: str) -> None:
    options = EvaluationOptions(num_samples=20, likelihood=False, metrics=(), labels="data")
    found = compare([_spec(run_uri, step) for step in (100, 200)], digits_uri, reference_uri, options=options)
    assert found.grid.startswith(b"\x89PNG")


def test_the_grid_of_upsamplers_enlarges_the_images_that_were_measured(
    experiment: Experiment, digits_uri: str, reference_uri: str, tmp_path: Path
) -> None:
    def stage(name: str, seed: int, overrides: list[str]) -> ModelSpec:
        mine = experiment.override([*overrides, f"seed={seed}"])
        torch.manual_seed(seed)
        checkpoint.save(str(tmp_path / name), 1, {"experiment.json": mine.to_dict(), "ema_0.99.pt": make_model(mine).state_dict()})
        return _spec(str(tmp_path / name), 1)

    first = stage("first", 0, ["data.image_size=4", "model.channel_mult=1,2"])
    small_uri, sampling = str(tmp_path / "small"), SamplingConfig(spacing="4")
    shape = {"labels": "balanced", "class_counts": (), "data_uri": digits_uri}
    draw(plan_samples(first, first.load("cpu"), num_images=20, seed=0, sampling=sampling, **shape), small_uri)  # type: ignore[arg-type]
    second = [stage(f"second-{seed}", seed, ["model.low_res_size=4"]) for seed in (1, 2)]
    options = EvaluationOptions(num_samples=20, likelihood=False, metrics=(), sampling=sampling)
    real, generated = (
        compare(second, digits_uri, reference_uri, options=dataclasses.replace(options, low_res_uri=uri)).grid for uri in ("", small_uri)
    )
    assert real != generated


def test_one_network_is_in_memory_at_a_time(run_uri: str, digits_uri: str, reference_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[weakref.ref[object]] = []
    load = ModelSpec.load

    def count(spec: ModelSpec, device: str = "cpu") -> TrainedModel:
        gc.collect()
        assert not [each for each in networks if each() is not None]
        model = load(spec, device)
        networks.append(weakref.ref(model.network))
        return model

    monkeypatch.setattr(ModelSpec, "load", count)
    monkeypatch.setattr("evaluation.studies.compare.preflight", lambda *arguments: pytest.fail("enough"))
    with pytest.raises(pytest.fail.Exception, match="enough"):
        compare([_spec(run_uri, step) for step in (100, 200)], digits_uri, reference_uri, options=_FEW)
    assert len(networks) == 2

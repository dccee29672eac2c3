"""Guidance scales on common noise: 1 is the model alone, and the trade-off is drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate_once
from evaluation.sampling.trained_model import ModelSpec
from evaluation.studies.guidance import as_study, guided_samplers, sweep
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment

OPTIONS = EvaluationOptions(num_samples=40)


@pytest.fixture
def spec(run_uri: str) -> ModelSpec:
    return ModelSpec(
        checkpoint_uri=str(checkpoint.latest(run_uri)), weights=sorted(checkpoint.weights_names(str(checkpoint.latest(run_uri))))[0]
    )


def test_a_sweep_holds_the_model_alone_and_draws_the_trade_off(spec: ModelSpec, run_uri: str, digits_uri: str, reference_uri: str) -> None:
    step = checkpoint.steps(run_uri)[0]
    found = sweep(spec, guided_samplers(spec, (3, 1), guidance_step=step), digits_uri, reference_uri, OPTIONS)
    alone, guided = found.points
    assert (alone.scale, guided.scale) == (1.0, 3.0)
    unguided = EvaluationOptions(num_samples=40, likelihood=False, metrics=("precision_recall",), purpose="guidance", result_name="alone")
    assert alone.distance == evaluate_once(spec, digits_uri, reference_uri, unguided).distance
    assert min(point.behind for point in found.points) == 0
    best = min(found.points, key=lambda point: point.distance)
    study = as_study(found)
    assert json.loads(study.files["guidance.json"])["points"][1]["precision"]["name"] == "precision"
    few = dataclasses.replace(found, points=tuple(dataclasses.replace(point, behind_standard_error=None) for point in found.points))
    assert [row.split("  ")[0] for row in as_study(few).text.splitlines() if "  best  " in row] == [f"{best.scale:g}"], (
        "also of so few samples that no error is known"
    )
    of_few = dataclasses.replace(alone, recall=dataclasses.replace(alone.recall, interval=None))
    assert "()" not in as_study(dataclasses.replace(found, points=(of_few, guided))).text
    curve = study.files["precision-recall.svg"].decode()
    assert curve.count(">3<") == 1, "each point of the trade-off is named by its scale"
    assert set(study.points) == {
        (f"{name}_by_hundredths_of_scale", scale) for name in ("distance", "precision", "recall") for scale in (100, 300)
    }


def test_sweeps_of_two_checkpoints_of_a_run_and_of_other_weights_keep_their_results(
    spec: ModelSpec, run_uri: str, digits_uri: str, reference_uri: str
) -> None:
    first = str(checkpoint.checkpoint_uri(run_uri, 100))
    specs = [spec, dataclasses.replace(spec, checkpoint_uri=first), dataclasses.replace(spec, weights="model")]

    def stored() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in Path(run_uri, "evaluations").glob("guidance-*.json")}

    distances = [sweep(each, guided_samplers(each, (1,)), digits_uri, reference_uri, OPTIONS).points[0].distance for each in specs]
    before = stored()
    assert set(before) == {f"guidance-{name}-1.0-0.json" for name in ("00000200-ema_0.99", "00000100-ema_0.99", "00000200-model")}
    again = [sweep(each, guided_samplers(each, (1,)), digits_uri, reference_uri, OPTIONS).points[0].distance for each in specs]
    assert (again, stored()) == (distances, before), "nothing is drawn again"


def test_a_sweep_that_an_earlier_version_stored_is_found_if_it_is_of_this_checkpoint(
    spec: ModelSpec, run_uri: str, digits_uri: str, reference_uri: str
) -> None:
    """It named results by scale and guide alone."""
    found = sweep(spec, guided_samplers(spec, (1,)), digits_uri, reference_uri, OPTIONS)
    directory = Path(run_uri, "evaluations")
    (path,) = directory.glob("guidance-*.json")
    earlier = path.rename(directory / "guidance-1-0.json")
    text = earlier.read_text()
    assert sweep(spec, guided_samplers(spec, (1,)), digits_uri, reference_uri, OPTIONS) == found
    assert not path.exists()
    other = dataclasses.replace(spec, checkpoint_uri=str(checkpoint.checkpoint_uri(run_uri, 100)))
    assert sweep(other, guided_samplers(other, (1,)), digits_uri, reference_uri, OPTIONS) != found
    assert earlier.read_text() == text


@pytest.mark.parametrize(
    ("scales", "step", "message"),
    [
        ((), 0, "guidance scales are numbers of 0 or more"),
        ((-1.0, 2.0), 0, "guidance scales are numbers of 0 or more"),
        ((2.001, 1.0, 2.0), 0, "told apart by their hundredths, and 2.0 and 2.001 are equal there; leave one out"),
        ((1.0, 2.0), 0, "was trained with every label and cannot guide itself"),
        ((1.0, 2.0), 999, r"has no checkpoint of step 999 \(guidance_step\) that could guide the one of step 200; earlier ones: 100"),
        ((1.0, 2.0), 200, r"has no checkpoint of step 200 \(guidance_step\) that could guide"),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused(spec: ModelSpec, scales: tuple[float, ...], step: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        guided_samplers(spec, scales, guidance_step=step)


def test_a_model_without_labels_is_told_what_else_can_guide_it(
    experiment: Experiment, write_checkpoint: Callable[[str, Experiment], str]
) -> None:
    uri = write_checkpoint("unconditional", experiment.override(["model.class_conditional=false"]))
    with pytest.raises(UserError, match=f"^{uri} has no labels and cannot guide itself; give the guidance_step of an earlier checkpoint$"):
        guided_samplers(ModelSpec(checkpoint_uri=uri), (2.0,))


def test_a_sweep_of_an_ensemble_whose_ends_saw_every_label_is_refused(
    experiment: Experiment, write_checkpoint: Callable[[str, Experiment], str]
) -> None:
    middle, ends = write_checkpoint("middle", experiment.override(["model.label_dropout=0.1"])), write_checkpoint("ends", experiment)
    with pytest.raises(UserError, match=rf"{ends} was trained with every label and cannot guide itself"):
        guided_samplers(ModelSpec(checkpoint_uri=middle, ends_checkpoint_uri=ends, ends_width=10), (2.0,))
    assert len(guided_samplers(ModelSpec(checkpoint_uri=middle), (2.0,))) == 1


def test_the_model_alone_needs_no_guide(spec: ModelSpec) -> None:
    assert [each.guidance_scale for each in guided_samplers(spec, (1.0,))] == [1.0]

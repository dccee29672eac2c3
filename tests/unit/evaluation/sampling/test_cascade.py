"""Two stages: the labels and order of the small images are kept, and an upsampler alone is scored on real small images."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import preflight
from evaluation.evaluate.run import evaluate
from evaluation.monitoring.checkpoint_scorer import CheckpointScorer
from evaluation.records import npz
from evaluation.sampling import sample_set
from evaluation.sampling.draw import DrawRequest, draw_images
from evaluation.sampling.generate import Labels, RealLowRes
from evaluation.sampling.sample_set import SamplePlan
from evaluation.sampling.trained_model import ModelSpec
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import EvaluationConfig, Experiment, SamplingConfig
from training.data.loading.row_groups import iterate
from training.models.unet import make_model


@pytest.fixture
def upsampler_run_uri(experiment: Experiment, tmp_path: Path) -> str:
    upsampler = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, low_res_size=4))
    torch.manual_seed(0)
    state = {name: value + 0.02 * torch.randn(value.shape) for name, value in make_model(upsampler).state_dict().items()}
    files = {"experiment.json": upsampler.to_dict(), **{f"{name}.pt": state for name in ("model", "ema_0.99", "ema_0.995")}}
    checkpoint.save(str(tmp_path / "upsampler"), 100, files)
    return str(tmp_path / "upsampler")


def _plan(run_uri: str, step: int, **changes: object) -> SamplePlan:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(run_uri, step))
    plan = SamplePlan(model=spec, num_images=25, seed=1, sampling=SamplingConfig(spacing="4"), batch_size=5, chunk_size=10, inputs=())
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def test_the_second_stage_keeps_the_labels_and_order_of_the_first(kept_run_uri: str, upsampler_run_uri: str, tmp_path: Path) -> None:
    small = str(tmp_path / "small")
    sample_set.draw(_plan(kept_run_uri, 200, labels=(3, 1, 4)), small)
    for number in range(3):  # the first stage's images are 8x8 here; halve them to what the second one takes
        images, labels = npz.read_images(sample_set.chunk_uri(small, number))
        npz.write_images(sample_set.chunk_uri(small, number), images[:, :, ::2, ::2].contiguous(), labels)
    plan = _plan(upsampler_run_uri, 100, low_res_uri=small)
    sample_set.draw(plan, str(tmp_path / "large"))
    large = list(sample_set.read(str(tmp_path / "large")))
    labels = torch.cat([y for _, _, y in large if y is not None])
    assert labels.tolist() == [[3, 1, 4][i % 3] for i in range(25)]
    # The pairing matters: other small images give other large ones, where all noise is the same.
    images, labels_of_first = npz.read_images(sample_set.chunk_uri(small, 0))
    npz.write_images(sample_set.chunk_uri(small, 0), images.flip(0), labels_of_first)
    sample_set.draw(plan, str(tmp_path / "again"))
    again = next(iter(sample_set.read(str(tmp_path / "again"))))[1]
    assert not torch.equal(again, large[0][1])


def test_a_missing_chunk_of_the_small_images_is_named_and_no_earlier_result_returned(
    kept_run_uri: str,
    upsampler_run_uri: str,
    digits_uri: str,
    reference_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = str(tmp_path / "small")
    sample_set.draw(_plan(kept_run_uri, 200), small)
    for number in range(3):
        images, labels = npz.read_images(sample_set.chunk_uri(small, number))
        npz.write_images(sample_set.chunk_uri(small, number), images[:, :, ::2, ::2].contiguous(), labels)
    uri = checkpoint.checkpoint_uri(upsampler_run_uri, 100)
    options = EvaluationOptions(num_samples=20, likelihood=False, low_res_uri=small, sampling=SamplingConfig(spacing="4"))
    evaluate(uri, digits_uri, reference_uri, options=options)
    chunk, draw = Path(sample_set.chunk_uri(small, 1)), sample_set.draw

    def draw_late(*arguments: object, **named: object) -> None:
        chunk.unlink()
        draw(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(sample_set, "draw", draw_late)
    missing = f"^{small}: chunk 1 is missing; the set is not complete, draw it again"
    capsys.readouterr()
    with pytest.raises(sample_set.MissingImagesError, match=missing):
        evaluate(uri, digits_uri, reference_uri, options=options)
    assert "another process" not in capsys.readouterr().out
    with pytest.raises(sample_set.MissingImagesError, match=missing):
        preflight(ModelSpec(checkpoint_uri=uri), digits_uri, reference_uri, options)
    Path(sample_set.chunk_uri(small, 2)).unlink()  # the images 20 to 24, which are not enlarged
    with pytest.raises(sample_set.MissingImagesError, match=missing):
        preflight(ModelSpec(checkpoint_uri=uri), digits_uri, reference_uri, options)
    preflight(ModelSpec(checkpoint_uri=uri), digits_uri, reference_uri, dataclasses.replace(options, num_samples=10))


def test_a_set_of_enlarged_images_is_of_the_content_of_its_data_set(upsampler_run_uri: str, digits_uri: str, tmp_path: Path) -> None:
    spec, data_uri = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(upsampler_run_uri, 100)), str(tmp_path / "data")
    shutil.copytree(f"{digits_uri}/train", f"{data_uri}/train")
    uri, request = (
        str(tmp_path / "set"),
        DrawRequest(model=spec, num_images=2, seed=0, sampling=SamplingConfig(spacing="3"), data_uri=data_uri),
    )
    draw_images(request, uri, tmp_path / "grid.png")
    shutil.rmtree(f"{data_uri}/train")
    shutil.copytree(f"{digits_uri}/test", f"{data_uri}/train")
    with pytest.raises(UserError, match="contains images of another plan"):
        draw_images(request, uri, tmp_path / "grid.png")
    plan = Path(uri, sample_set.PLAN)
    stored = json.loads(plan.read_text())
    del stored["low_res_data_digest"]  # as an earlier version stored it
    plan.write_text(json.dumps(stored))
    draw_images(request, uri, tmp_path / "grid.png")


def test_images_of_another_size_are_refused(kept_run_uri: str, upsampler_run_uri: str, tmp_path: Path) -> None:
    sample_set.draw(_plan(kept_run_uri, 200), str(tmp_path / "small"))
    with pytest.raises(UserError, match="contains images of 8 pixels"):
        sample_set.draw(_plan(upsampler_run_uri, 100, low_res_uri=str(tmp_path / "small")), str(tmp_path / "large"))


def test_small_images_without_labels_are_refused_for_a_class_conditional_upsampler(
    experiment: Experiment, upsampler_run_uri: str, tmp_path: Path
) -> None:
    unconditional = experiment.override(["model.class_conditional=false", "data.image_size=4", "model.channel_mult=1,2"])
    files = {"experiment.json": unconditional.to_dict(), "ema_0.99.pt": make_model(unconditional).state_dict()}
    checkpoint.save(str(tmp_path / "first"), 100, files)
    small = str(tmp_path / "small")
    sample_set.draw(_plan(str(tmp_path / "first"), 100), small)
    with pytest.raises(UserError, match=f"^{small} contains images without labels; .* is class-conditional"):
        sample_set.draw(_plan(upsampler_run_uri, 100, low_res_uri=small), str(tmp_path / "large"))


@pytest.mark.parametrize("labels", [(3,), "data"])
def test_labels_of_ones_own_are_refused_for_an_upsampler(upsampler_run_uri: str, digits_uri: str, labels: Labels, tmp_path: Path) -> None:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(upsampler_run_uri, 100))
    request = DrawRequest(model=spec, num_images=2, seed=0, sampling=SamplingConfig(spacing="3"), data_uri=digits_uri, labels=labels)
    with pytest.raises(UserError, match="is an upsampler: its labels are those of the small images"):
        draw_images(request, str(tmp_path / "set"), tmp_path / "grid.png")


def test_real_small_images_are_the_area_averages_with_their_labels(digits_uri: str) -> None:
    small, labels = RealLowRes(f"{digits_uri}/test", 4)(torch.tensor([5, 305, 7]))
    _, images, expected = next(iter(iterate(f"{digits_uri}/test", 300)))
    assert expected is not None
    assert labels is not None
    assert labels.tolist() == [int(expected[i]) for i in (5, 5, 7)]
    assert torch.equal(small[0], torch.nn.functional.avg_pool2d(images[5].float() / 127.5 - 1, 2))


def test_an_upsampler_is_scored_and_evaluated_on_real_small_images(upsampler_run_uri: str, digits_uri: str, reference_uri: str) -> None:
    uri = checkpoint.checkpoint_uri(upsampler_run_uri, 100)
    with pytest.raises(UserError, match="is an upsampler: give it the images to enlarge as low_res"):
        CheckpointScorer(evaluation=EvaluationConfig(), reference_uri=reference_uri).score(uri)
    score = CheckpointScorer(evaluation=EvaluationConfig(), reference_uri=reference_uri, data_uri=digits_uri).score(uri)
    assert score["scores"]["ema_0.99"] == score["scores"]["ema_0.995"]
    result = evaluate(uri, digits_uri, reference_uri, options=EvaluationOptions(batch_size=20, likelihood_num_images=10))
    assert result.protocol["distance"]["low_res"] == "real training images, downsampled by area"
    assert result.likelihood is not None

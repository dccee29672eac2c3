"""Copies of training images: planted ones are found and counted, healthy samples are not accused, and the interval covers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import preflight
from evaluation.evaluate.run import evaluate
from evaluation.features.extractors import load_extractor
from evaluation.memorisation.copied_share import copied_share
from evaluation.memorisation.nearest import Space, feature_space, nearest_images, pixel_space
from evaluation.memorisation.search import KINDS, find_copies, make_copies
from evaluation.records import npz
from evaluation.sampling.trained_model import ModelSpec
from evaluation.studies.memorisation import Request, _samples, as_study, study_memorisation
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import SamplingConfig
from training.data.loading.row_groups import iterate


def _smooth_images(count: int, seed: int) -> Tensor:
    """Random smooth 12x12 colour images of one distribution: noise that is enlarged by interpolation."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=12, mode="bilinear") * 255).to(torch.uint8)


def _batches(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(torch.arange(first, min(first + 150, len(images))), images[first : first + 150]) for first in range(0, len(images), 150)]


@pytest.fixture(scope="module")
def digit_images(digits_uri: str) -> dict[str, Tensor]:
    return {split: torch.cat([images for _, images, _ in iterate(f"{digits_uri}/{split}", 500)]) for split in ("train", "test")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_copy_is_nearest_to_its_original(kind: str) -> None:
    training = _smooth_images(300, seed=0)
    copies = torch.stack([KINDS[kind](image) for image in training[:40]])
    found = nearest_images(copies, _batches(training), pixel_space(), num_training=300)
    assert torch.equal(found.rows, torch.arange(40))
    others = nearest_images(_smooth_images(200, seed=1), _batches(training), pixel_space(), num_training=300)
    assert float(found.ratios.max()) < float(others.ratios.min())


def test_the_relative_distance_is_the_nearest_over_the_mean_of_the_nearest_fifty() -> None:
    space = Space(
        name="plain", of_query=lambda images: images.flatten(1)[:, None].float(), of_training=lambda x: x.flatten(1)[:, None].float()
    )
    training, queries = _smooth_images(400, seed=0), _smooth_images(7, seed=1)
    found = nearest_images(queries, _batches(training), space, num_training=400)
    distances = torch.cdist(queries.flatten(1).double(), training.flatten(1).double()).sort(dim=1).values
    # Float32 squares of 432 pixels up to 255 have an error of about 1e-7 of 1e7, next to squared distances above 1e5: 1e-5 relative.
    torch.testing.assert_close(found.ratios.double(), distances[:, 0] / distances[:, :50].mean(dim=1), rtol=1e-5, atol=0)


def test_a_training_image_is_not_compared_with_itself() -> None:
    training = _smooth_images(100, seed=0)
    training[60] = training[20].flip(-1)
    own = torch.arange(100)
    found = nearest_images(training, _batches(training), pixel_space(), num_training=100, own_rows=own)
    assert not bool((found.rows == own).any())
    assert {int(found.rows[20]), int(found.rows[60])} == {20, 60}
    assert sorted(found.ratios.argsort()[:2].tolist()) == [20, 60], "the only near-duplicates of the set"


def test_the_interval_of_the_share_covers_it_and_healthy_images_are_not_accused() -> None:
    random = np.random.default_rng(0)

    def draw(count: int, share: float) -> Tensor:
        num_copies = random.binomial(count, share)
        found = random.random(num_copies) < 0.9  # the recall
        return torch.from_numpy(np.concatenate([np.where(found, 0.0, 0.9), random.normal(0.8, 0.1, count - num_copies)]))

    for share in (0.0, 0.05, 0.9):
        results = [copied_share(draw(500, share), draw(300, 0.0), draw(500, 1.0)) for _ in range(200)]
        covered = sum(low <= share <= high for low, high in (result.interval for result in results))
        assert covered >= 183, "95% of 200 less 2.3 standard errors of 3.1"
        if share == 0:
            assert sum(result.is_found for result in results) <= 12, "2.5% of 200 and three standard errors of 2.2"
        else:
            assert sum(result.is_found for result in results) >= 190


def test_the_interval_covers_also_where_samples_are_farther_from_the_training_set_than_held_out_images() -> None:
    random = np.random.default_rng(0)
    held_out, copies = torch.from_numpy(random.normal(0.8, 0.1, 300)), torch.zeros(500, dtype=torch.float64)
    for num_copies in (0, 1, 5):  # of 1,000; the other samples raise no false alarm
        images = torch.cat([torch.zeros(num_copies), torch.full((1000 - num_copies,), 2.0)])
        low, high = copied_share(images, held_out, copies).interval
        assert low <= num_copies / 1000 <= high
        assert high < 0.02


def test_nothing_is_claimed_where_artificial_copies_are_not_found() -> None:
    random = np.random.default_rng(0)
    same = [torch.from_numpy(random.normal(1.0, 0.1, 300)) for _ in range(3)]
    result = copied_share(*same)
    assert result.interval[0] == 0
    assert result.interval[1] > 0.9


@pytest.mark.parametrize("space_of", [pixel_space, lambda: feature_space(load_extractor("digits-classifier"))], ids=["pixels", "features"])
def test_planted_copies_of_digits_are_counted_and_real_digits_are_not(
    space_of: Callable[[], Space], digit_images: dict[str, Tensor], digits_uri: str
) -> None:
    healthy = find_copies(digit_images["test"], digits_uri, space_of())
    assert not healthy.samples.is_found
    planted = torch.cat([digit_images["test"][:285], make_copies(digit_images["train"][700:715])])
    found = find_copies(planted, digits_uri, space_of())
    low, high = found.samples.interval
    assert 0 < low < 0.05 < high < 0.12
    if found.space == "pixels":
        assert min(found.recall.values()) > 0.95
        assert {pair.image for pair in found.sample_pairs} <= set(range(285, 300)), "the nearest pairs are the planted ones"


def test_a_model_that_knows_only_twenty_images_is_told_from_a_healthy_one(digit_images: dict[str, Tensor], digits_uri: str) -> None:
    noise = torch.randint(-6, 7, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    samples = (digit_images["train"][:20].repeat(10, 1, 1, 1) + noise).clamp(0, 255).to(torch.uint8)
    found = find_copies(samples, digits_uri, pixel_space())
    assert found.samples.interval[0] > 0.9


def test_the_study_has_the_verdicts_and_the_pairs(
    kept_run_uri: str, digit_images: dict[str, Tensor], digits_uri: str, tmp_path: Path
) -> None:
    samples = str(tmp_path / "samples.npz")
    npz.write_images(samples, make_copies(digit_images["train"][:30]), None)
    request = Request(
        model=ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(kept_run_uri, 200)),
        data_uri=digits_uri,
        samples_uri=samples,
        sampling=SamplingConfig(spacing="4"),
    )
    study = as_study(study_memorisation(request))
    assert "copies of training images are 100.0%" in study.text
    page = study.files["memorisation.html"].decode()
    assert page.count("data:image/png;base64,") == 4
    first, second = json.loads(study.files["memorisation.json"])["searches"]
    assert first["samples"]["interval"][0] > 0.8
    assert second["space"] == "features of digits-classifier"
    assert study.points["copied_share/pixels", 0] == first["samples"]["share"]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_experiment_can_have_is_refused(seed: int) -> None:
    request = Request(model=ModelSpec(checkpoint_uri="unused"), data_uri="unused", seed=seed, sampling=SamplingConfig())
    with pytest.raises(UserError, match=rf"^seed: must be in \[0, 2\^32\), got {seed}"):
        study_memorisation(request)


def test_the_samples_of_a_file_are_chosen_from_all_of_it(tmp_path: Path) -> None:
    samples, by_value = str(tmp_path / "samples.npz"), torch.arange(200, dtype=torch.uint8)
    npz.write_images(samples, by_value[:, None, None, None].expand(-1, 1, 8, 8), None)
    model = ModelSpec(checkpoint_uri="unused")
    request = Request(model=model, data_uri="unused", samples_uri=samples, num_samples=100, sampling=SamplingConfig())
    found, origin = _samples(request, None)  # type: ignore[arg-type]  # the model of a file is not asked
    values = found[:, 0, 0, 0]
    assert len(values.unique()) == 100
    # The mean of a random half has a standard deviation of 57.7 / 10 * (100 / 199) ** 0.5 = 4.1; that of the first half is 49.5.
    assert abs(values.float().mean() - 99.5) < 5 * 4.1
    assert origin == f"100 images of {samples}, chosen at random by a fixed seed"
    everything, _ = _samples(replace(request, num_samples=1000), None)  # type: ignore[arg-type]
    assert sorted(everything[:, 0, 0, 0].tolist()) == by_value.tolist()


def test_an_evaluation_reports_the_share_of_copies_unless_it_is_turned_off(run_uri: str, digits_uri: str, reference_uri: str) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 200)
    options = EvaluationOptions(likelihood=False, batch_size=20, memorisation=True)
    result = evaluate(uri, digits_uri, reference_uri, options=options)
    metric = result.metrics["copied_share"]
    assert metric["interval"][0] <= metric["value"] <= metric["interval"][1]
    assert result.protocol["memorisation"]["false_alarm_rate"] == 0.01
    plain = preflight(ModelSpec(checkpoint_uri=uri), digits_uri, reference_uri, EvaluationOptions(likelihood=False))
    assert not plain.memorisation
    assert "memorisation" not in plain.card


def test_a_search_without_held_out_images_is_refused(digit_images: dict[str, Tensor], digits_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no data set"):
        find_copies(digit_images["test"], str(tmp_path), pixel_space())
    (tmp_path / "train").symlink_to(f"{digits_uri}/train")
    with pytest.raises(UserError, match="has no test images, without which the rate of false alarms is unknown"):
        find_copies(digit_images["test"], str(tmp_path), pixel_space())
    with pytest.raises(UserError, match=r"images of \(1, 6, 6\), the data set .* has \(1, 8, 8\)"):
        find_copies(digit_images["test"][..., 1:-1, 1:-1], digits_uri, pixel_space())

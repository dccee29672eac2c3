"""Batch scores of files in the field's formats: sFID, precision and recall against a small copy of ADM's reference batches."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import U32, rounded
from torch import Tensor
from typer.testing import CliRunner

from evaluation.distances import metrics
from evaluation.distances.frechet import FeatureStatistics, Moments, frechet_distance
from evaluation.distances.metrics import kernel_distance
from evaluation.distances.reference_statistics import (
    compute_reference,
    import_statistics,
    load_reference,
    moments_of,
    provenance_of,
    save_reference,
)
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate
from evaluation.features.digit_classifier import WEIGHTS_SHA256
from evaluation.features.extractors import DigitsExtractor
from evaluation.records import npz
from evaluation.studies.batch_score import as_study, score_batch
from pipelines.cli.main import app
from tests.unit.evaluation.conftest import write_run
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.data.format.manifest import read_manifest
from training.data.loading.row_groups import iterate


def _write_statistics(uri: str, features: FeatureStatistics, spatial: FeatureStatistics | None = None) -> None:
    """Writes what EDM, pytorch-fid and the ADM evaluator write."""
    arrays = {"mu": features.mean.numpy(), "sigma": features.covariance.numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
    npz.write_arrays(uri, arrays)


def _digits(digits_uri: str, split: str, count: int) -> Tensor:
    return next(iter(iterate(f"{digits_uri}/{split}", count)))[1]


@pytest.fixture
def samples(digits_uri: str, tmp_path: Path) -> str:
    uri = str(tmp_path / "samples.npz")
    npz.write_images(uri, _digits(digits_uri, "test", 200), None)
    return uri


@pytest.fixture
def adm_reference(digits_uri: str, tmp_path: Path) -> str:
    """A batch as the ADM evaluator's references are: images, and mu and sigma of many more of them."""
    uri = str(tmp_path / "reference.npz")
    moments, _ = moments_of((images for _, images, _ in iterate(f"{digits_uri}/train", 250)), DigitsExtractor())
    statistics = moments.statistics()
    images = _digits(digits_uri, "train", 300)
    arrays = {"mu": statistics.mean.numpy(), "sigma": statistics.covariance.numpy(), "arr_0": images.permute(0, 2, 3, 1).numpy()}
    npz.write_arrays(uri, arrays, compress=True)
    return uri


def _rounding(sample: Moments) -> float:
    """Return how much a distance changes where float32 features are computed in other batches: some ten u, twice, of their squares."""
    return 2 * 10 * U32 * float(sample.mean().square().sum() + sample.covariance().trace())


def test_a_sample_batch_is_scored_against_a_reference_batch(samples: str, adm_reference: str, digits_uri: str) -> None:
    found = score_batch(samples, adm_reference, extractor="digits-classifier", metrics=("precision_recall", "kid"))
    extractor = DigitsExtractor()
    sample = Moments(extractor.dim)
    sample.update(extractor(_digits(digits_uri, "test", 200)))
    assert found.distance_name == "FD(digits-classifier)"
    assert found.distance == pytest.approx(frechet_distance(load_reference(adm_reference).features, sample), rel=0, abs=_rounding(sample))
    assert found.num_samples == 200
    assert found.standard_error is not None
    assert found.metrics["precision"]["value"] > 0.7
    assert "200 samples, 300 real images" in found.metrics["precision"]["note"]
    assert (found.protocol["samples"], found.protocol["num_samples"]) == (samples, 200)
    assert found.protocol["extractor_sha256"] == WEIGHTS_SHA256
    assert "torch" in found.protocol["versions"]
    expected = kernel_distance(extractor(_digits(digits_uri, "test", 200)), extractor(_digits(digits_uri, "train", 300)))
    # Of other subsets: within two of the errors that these make.
    assert found.metrics["kernel_distance"]["value"] == pytest.approx(expected.value, abs=2 * (expected.standard_error or 0))
    assert "does not record the images" in found.reference
    page = as_study(found).files["score.html"].decode()
    for method in (
        "jackknife over ten blocks of samples, Student",
        "closed form for a share (Wilson)",
        "14 balanced halves of the samples",
    ):
        assert page.count(method) == 1, "each number has its own"


@pytest.mark.parametrize("by_class", ["samples", "reference"])
def test_a_file_that_is_sorted_by_class_is_scored_as_a_shuffled_one(
    by_class: str, digits_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics that compare single images take a quarter of each file, and the jackknife leaves out tenths of the samples."""
    monkeypatch.setattr(metrics, "MAX_FEATURES", 160)
    _, images, labels = next(iter(iterate(f"{digits_uri}/train", 1280)))
    assert labels is not None
    halves = {"samples": slice(0, 640), "reference": slice(640, 1280)}
    found = {}
    for order in ("shuffled", "sorted"):
        for name, half in halves.items():
            rows = labels[half].argsort(stable=True) if (order, name) == ("sorted", by_class) else torch.arange(640)
            npz.write_images(str(tmp_path / f"{name}.npz"), images[half][rows], labels[half][rows])
        uris = (str(tmp_path / f"{name}.npz") for name in halves)
        found[order] = score_batch(*uris, extractor="digits-classifier", metrics=("precision_recall", "kid"))
    mixed, by_label = found["shuffled"], found["sorted"]
    sample = Moments(DigitsExtractor().dim)
    sample.update(DigitsExtractor()(images[:640]))
    assert by_label.distance == pytest.approx(mixed.distance, rel=0, abs=_rounding(sample))
    # An error by ten blocks is wrong by 1 / sqrt(2 x 9) = 24%, the ratio of two by 33%: three times as large is more than three of these.
    assert by_label.standard_error is not None
    assert mixed.standard_error is not None
    assert 1 / 3 < by_label.standard_error / mixed.standard_error < 3
    for name in ("precision", "recall", "kernel_distance"):
        one, other = by_label.metrics[name], mixed.metrics[name]
        # Both draws of samples have an error, and the draws of real images one of about that size: four times the root of all squares.
        assert abs(one["value"] - other["value"]) < 4 * math.hypot(one["standard_error"], other["standard_error"]) * math.sqrt(2)


def test_the_positions_of_a_files_images_are_a_fixed_random_order_of_all(samples: str) -> None:
    parts = list(npz.stream_with_positions(samples, 64))
    positions = torch.cat([some for some, _ in parts])
    assert torch.equal(positions.sort().values, torch.arange(200))
    assert torch.equal(torch.cat([images for _, images in parts]), npz.read_images(samples)[0]), "images stay in the file's order"
    assert torch.equal(positions, torch.cat([some for some, _ in npz.stream_with_positions(samples, 7)]))
    # Another order would change the numbers of every file.
    assert positions[:5].tolist() == [26, 160, 79, 45, 102]
    # The correlation with the place has a standard deviation of 1 / sqrt(199) = 0.07: four of these.
    assert abs(float(torch.corrcoef(torch.stack([positions, torch.arange(200)]).double())[0, 1])) < 0.28


def test_images_without_statistics_can_be_the_reference(samples: str, digits_uri: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "images.npz")
    images = _digits(digits_uri, "train", 300)
    npz.write_images(uri, images, None)
    extractor = DigitsExtractor()
    reference = Moments(extractor.dim)
    reference.update(extractor(images))
    sample = Moments(extractor.dim)
    sample.update(extractor(_digits(digits_uri, "test", 200)))
    found = score_batch(samples, uri, extractor="digits-classifier")
    assert found.distance == pytest.approx(frechet_distance(reference, sample), rel=0, abs=2 * _rounding(sample))


def test_statistics_without_images_give_only_a_distance(adm_reference: str, digits_uri: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "statistics.npz")
    moments, _ = moments_of((images for _, images, _ in iterate(f"{digits_uri}/test", 100)), DigitsExtractor())
    _write_statistics(uri, moments.statistics())
    found = score_batch(uri, adm_reference, extractor="digits-classifier")
    # The same numbers, at another place in memory.
    expected, scale = frechet_distance(load_reference(adm_reference).features, moments), float(moments.covariance().trace())
    assert found.distance == rounded(expected, DigitsExtractor.dim, scale=scale)
    assert found.standard_error is None
    with pytest.raises(UserError, match="has no images"):
        score_batch(uri, adm_reference, extractor="digits-classifier", metrics=("kid",))


def test_comparing_two_statistics_needs_no_extractor_weights(tmp_path: Path) -> None:
    uris = [str(tmp_path / name) for name in ("one.npz", "other.npz")]
    for shift, uri in enumerate(uris):
        npz.write_arrays(uri, {"mu": np.full(2048, shift / 64), "sigma": np.eye(2048)})
    found = score_batch(*uris, extractor="inception", extractor_weights=str(tmp_path / "absent.pth"))
    assert (found.distance_name, found.distance) == ("FID", 2048 / 64**2)


@pytest.mark.parametrize(
    ("changed", "value", "message"),
    [
        ("resize", "adm", "resize: 'none', not 'adm'"),
        ("image_size", 32, "image_size: 8, not 32"),
        ("extractor_sha256", "0" * 64, "extractor_sha256: "),
    ],
)
def test_statistics_whose_recorded_provenance_differs_are_refused(
    reference_uri: str, digits_uri: str, tmp_path: Path, changed: str, value: str | int, message: str
) -> None:
    ours = load_reference(reference_uri)
    assert ours.provenance is not None
    other = str(tmp_path / "other.npz")
    save_reference(other, ours.features, dataclasses.replace(ours.provenance, **{changed: value}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        score_batch(reference_uri, other, extractor="digits-classifier")
    test_images = compute_reference(f"{digits_uri}/test", DigitsExtractor(), str(tmp_path / "test.npz"))
    assert score_batch(test_images.uri, reference_uri, extractor="digits-classifier").distance > 0


class MeanColours:
    """An extractor whose features are an image's mean colour, and its spatial features the mean red of each quarter."""

    name, dim, sha256, provides = "colours", 3, "0" * 64, ("features", "spatial")

    def __call__(self, images: Tensor) -> Tensor:
        return self.outputs(images)["features"]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        red = torch.nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 2)
        return {"features": images.float().mean((2, 3)), "spatial": red.flatten(1)}


def test_spatial_statistics_of_a_reference_batch_give_the_sfid(tmp_path: Path) -> None:
    extractor = MeanColours()  # Inception's 2,048 dimensions would cost a minute of eigenvalues, and show no more
    generator = torch.Generator().manual_seed(3)
    sets = [torch.randint(0, 200 + 40 * k, (24, 3, 32, 32), dtype=torch.uint8, generator=generator) for k in (0, 1)]
    uris = [str(tmp_path / name) for name in ("reference.npz", "samples.npz")]
    moments, spatial = moments_of([sets[0]], extractor)
    assert spatial is not None
    _write_statistics(uris[0], moments.statistics(), spatial.statistics())
    npz.write_images(uris[1], sets[1], None)
    found = score_batch(uris[1], uris[0], extractor=extractor, metrics=("sfid",))
    _, spatial_samples = moments_of([sets[1]], extractor)
    assert spatial_samples is not None
    expected = frechet_distance(spatial, spatial_samples)
    assert found.metrics["sfid"]["value"] == pytest.approx(expected, rel=0, abs=_rounding(spatial_samples))
    assert found.distance_name == "FD(colours)"


def test_an_evaluation_takes_real_images_from_an_adopted_batch(run_uri: str, digits_uri: str, adm_reference: str, tmp_path: Path) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 200)
    with pytest.raises(UserError, match="do not record their images"):
        evaluate(uri, digits_uri, adm_reference)
    adopted = str(tmp_path / "adopted.npz")
    import_statistics(adm_reference, adopted, provenance_of(read_manifest(f"{digits_uri}/train"), DigitsExtractor()))
    options = EvaluationOptions(likelihood=False, metrics=("precision_recall",), num_samples=60)
    result = evaluate(uri, digits_uri, adopted, options=options)
    assert "60 samples, 300 real images" in result.metrics["precision"]["note"]
    with pytest.raises(UserError, match="records its provenance already"):
        import_statistics(adopted, str(tmp_path / "again.npz"), provenance_of(read_manifest(f"{digits_uri}/train"), DigitsExtractor()))


def test_statistics_of_fewer_images_than_the_data_set_has_are_adopted_for_a_protocol_of_as_many(
    experiment: Experiment, digits_uri: str, adm_reference: str, tmp_path: Path
) -> None:
    """The paper's LSUN models have a reference of 50,000 of the three million images."""
    uri = f"{write_run(str(tmp_path / 'run'), experiment.override(['evaluation.num_reference_images=300']))}/checkpoints/step=00000200"
    adopted = str(tmp_path / "adopted.npz")
    command = ["adopt-reference", adm_reference, digits_uri, adopted, "--extractor", "digits-classifier", "--num-images", "300"]
    assert "vouched for as 300 images" in CliRunner().invoke(app, command, catch_exceptions=False).output
    result = evaluate(uri, digits_uri, adopted, options=EvaluationOptions(likelihood=False, num_samples=20))
    assert result.protocol["distance"]["reference"]["num_images"] == 300
    with pytest.raises(UserError, match=r"--num-images 50,000: .* has 1,497 training images"):
        CliRunner().invoke(app, [*command[:-1], "50000"], catch_exceptions=False)


def test_unsuitable_files_are_refused_with_their_names(samples: str, adm_reference: str, reference_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images"):
        score_batch(samples, reference_uri, extractor="digits-classifier", metrics=("precision_recall",))
    other = str(tmp_path / "other.npz")
    npz.write_arrays(other, {"mu": np.zeros(5), "sigma": np.eye(5)})
    with pytest.raises(UserError, match=r"other\.npz has statistics of 5 dimensions, and digits-classifier has 64"):
        score_batch(samples, other, extractor="digits-classifier")
    absent = str(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="extractor: 'digits-classifier', not 'inception'"):  # before its weights are looked for
        score_batch(samples, reference_uri, extractor="inception", extractor_weights=absent)
    with pytest.raises(UserError, match="samples of our own models"):
        score_batch(samples, adm_reference, extractor="digits-classifier", metrics=("label_agreement",))


def test_too_few_images_for_a_metric_are_refused_with_its_name(adm_reference: str, digits_uri: str, tmp_path: Path) -> None:
    few = str(tmp_path / "few.npz")
    npz.write_images(few, _digits(digits_uri, "test", 3), None)
    with pytest.raises(UserError, match=r"3 images in .*few.npz: precision_recall takes 4 at least"):
        score_batch(few, adm_reference, extractor="digits-classifier", metrics=("precision_recall",))


@pytest.mark.parametrize(("count", "fewest"), [(1, "kid takes 2"), (3, "precision_recall takes 4")])
def test_too_few_images_of_a_reference_are_refused_with_the_metrics_name(samples: str, tmp_path: Path, count: int, fewest: str) -> None:
    uri = str(tmp_path / "few.npz")
    npz.write_arrays(uri, {"mu": np.zeros(64), "sigma": np.eye(64), "arr_0": np.zeros((count, 8, 8, 1), np.uint8)})
    with pytest.raises(UserError, match=f"{count} real images: .*{fewest} at least"):
        score_batch(samples, uri, extractor="digits-classifier", metrics=("kid", "precision_recall"))


def test_images_of_another_size_than_the_references_are_refused(reference_uri: str, tmp_path: Path) -> None:
    class AnySize(DigitsExtractor):
        def outputs(self, images: Tensor) -> dict[str, Tensor]:
            return super().outputs(images[:, :1, :8, :8])

    uri = str(tmp_path / "large.npz")
    npz.write_images(uri, torch.zeros(20, 3, 16, 16, dtype=torch.uint8), None)
    with pytest.raises(UserError, match="image_size: 8, not 16; image_channels: 1, not 3"):
        score_batch(uri, reference_uri, extractor=AnySize())


@pytest.mark.parametrize("has_statistics", [True, False])
def test_images_of_another_size_than_those_of_a_reference_batch_are_refused_before_the_network_is_loaded(
    has_statistics: bool, tmp_path: Path
) -> None:
    uri, reference = (str(tmp_path / name) for name in ("large.npz", "reference.npz"))
    npz.write_images(uri, torch.zeros(20, 3, 16, 16, dtype=torch.uint8), None)
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)} if has_statistics else {}
    npz.write_arrays(reference, {"arr_0": np.zeros((20, 32, 32, 3), np.uint8), **statistics})
    with pytest.raises(UserError, match=r"large.npz has images of 16x16x3 .*reference.npz of 32x32x3; a distance is of images of one size"):
        score_batch(uri, reference, extractor="inception", extractor_weights=str(tmp_path / "absent.pth"))


def test_statistics_that_record_another_size_than_the_images_of_a_reference_batch_are_refused(reference_uri: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "images.npz")
    npz.write_images(uri, torch.zeros(20, 3, 16, 16, dtype=torch.uint8), None)
    with pytest.raises(UserError, match="image_size: 8, not 16; image_channels: 1, not 3"):
        score_batch(reference_uri, uri, extractor="digits-classifier")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": -np.eye(64)}, "negative variances"),
        ({"sigma": np.triu(np.ones((64, 64)))}, "not symmetric"),
        ({"mu": np.array(["1"] * 64)}, "mu is <U1; statistics are real numbers"),
        ({"mu": np.zeros(64) + 1j}, "mu is complex128; statistics are real numbers"),
        ({"mu_s": np.zeros(4), "sigma_s": np.eye(4) + 0j}, "sigma_s is complex128; statistics are real numbers"),
        ({"mu": np.array(1.0)}, r"mu \(\) and sigma \(64, 64\) are not .* of shapes \(n,\) and \(n, n\) for n features, 1 or more"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu \(0,\) and sigma \(0, 0\) are not a mean and its covariance"),
        ({"num_images": np.array([1, 2])}, "num_images is no number"),
    ],
)
def test_invalid_statistics_are_refused_with_the_name_of_the_file(samples: str, tmp_path: Path, changes: npz.Arrays, message: str) -> None:
    uri = str(tmp_path / "statistics.npz")
    npz.write_arrays(uri, {"mu": np.zeros(64), "sigma": np.eye(64), **changes})
    with pytest.raises(UserError, match=f"statistics.npz: .*{message}"):
        score_batch(samples, uri, extractor="digits-classifier")


def test_statistics_of_equal_images_may_have_variances_a_little_below_0(tmp_path: Path) -> None:
    moments = Moments(64)
    moments.update(torch.linspace(0.1, 6.4, 64).expand(100, 64))
    equal = moments.statistics()
    assert (equal.covariance.diagonal() < 0).any(), "by rounding"
    uri = str(tmp_path / "equal.npz")
    _write_statistics(uri, equal)
    # A variance is wrong by up to 100 roundings of a square: in 64 dimensions 64 * 100 * 1.1e-16 * 6.4^2 = 3e-11.
    assert frechet_distance(load_reference(uri).features, moments) < 1e-10


def test_a_batch_with_another_number_of_labels_than_images_is_refused(adm_reference: str, digits_uri: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "mixed.npz")
    images = _digits(digits_uri, "test", 20).permute(0, 2, 3, 1).numpy()
    npz.write_arrays(uri, {"arr_0": images, "arr_1": np.arange(19)})
    with pytest.raises(UserError, match=r"19 labels .* do not fit 20 images"):
        score_batch(uri, adm_reference, extractor="digits-classifier")


def test_a_cut_file_and_a_cut_array_are_refused(samples: str, adm_reference: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut.npz"
    cut.write_bytes(Path(samples).read_bytes()[:-100])
    with pytest.raises(UserError, match="is not an npz file, or it is cut short"):
        score_batch(str(cut), adm_reference, extractor="digits-classifier")
    data = bytearray(Path(samples).read_bytes())
    data[400:420] = bytes(20)
    cut.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"arr_0 (is damaged|can't be read)"):
        score_batch(str(cut), adm_reference, extractor="digits-classifier")


def test_a_batch_is_read_in_parts(samples: str) -> None:
    whole, _ = npz.read_images(samples)
    pieces = list(npz.stream_images(samples, 64))
    assert [len(piece) for piece in pieces] == [64, 64, 64, 8]
    assert torch.equal(torch.cat(pieces), whole)
    assert npz.batch_shape(samples) == (200, 8, 8, 1)


def test_each_file_is_counted_once(samples: str, adm_reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a file in S3 downloads it."""
    counted: list[str] = []
    shape = npz.batch_shape
    monkeypatch.setattr(npz, "batch_shape", lambda uri: counted.append(uri) or shape(uri))
    score_batch(samples, adm_reference, extractor="digits-classifier")
    assert sorted(counted) == sorted([samples, adm_reference])


@pytest.mark.parametrize("with_images", ["samples", "reference"])
def test_statistics_of_another_dimension_are_refused_before_any_features_are_computed(
    with_images: str, samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: object) -> None:
        raise AssertionError("features were computed")

    monkeypatch.setattr(DigitsExtractor, "__call__", compute)
    other = str(tmp_path / "other.npz")
    _write_statistics(other, FeatureStatistics(mean=torch.zeros(2048).double(), covariance=torch.eye(2048).double()))
    files = (samples, other) if with_images == "samples" else (other, samples)
    with pytest.raises(UserError, match=r"other\.npz has statistics of 2048 dimensions, and digits-classifier has 64"):
        score_batch(*files, extractor="digits-classifier")

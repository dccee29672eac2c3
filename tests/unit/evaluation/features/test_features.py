"""The feature extractors: the committed digit classifier, and Inception against torch-fidelity's own module."""

import contextlib
import hashlib
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from golden import train_digit_classifier
from torch import Tensor

from evaluation.distances.frechet import Moments, frechet_distance
from evaluation.features import digit_classifier, inception
from evaluation.features.extractors import DigitsExtractor, FeatureExtractor, distance_name, load_extractor
from evaluation.features.inception import InceptionExtractor, load_inception
from training.config.errors import UserError

# 94 layers with up to 2,048 products a sum: independent roundings of eps add up as the root of their number.
_INCEPTION_ROUNDING = (94 * 2048) ** 0.5 * torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def digits_test() -> tuple[Tensor, Tensor]:
    return train_digit_classifier.digits("test")


@pytest.fixture(scope="module")
def seeded_inception() -> dict[str, Tensor]:
    """Weights of the Inception network's shapes, drawn so that features differ from image to image."""
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

    class Unloaded(module.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, state_dict: object, *args: object, **kwargs: object) -> None:
            """Keeps the initial weights."""

    buffer = io.BytesIO()
    torch.save({}, buffer)
    buffer.seek(0)
    network = Unloaded("seeded", ["2048"], feature_extractor_weights_path=buffer)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_mean", "bn.bias")):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.8, 1.2, generator=generator)
    return dict(network.state_dict())


def _images(num: int, size: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_digit_classifier_is_accurate_on_test_digits(digits_test: tuple[Tensor, Tensor]) -> None:
    images, labels = digits_test
    assert len(images) == 300
    assert train_digit_classifier.accuracy(digit_classifier.load_classifier(), images, labels) >= 0.97


def test_the_digit_classifiers_file_is_small_and_has_the_recorded_sha256() -> None:
    data = digit_classifier.WEIGHTS_PATH.read_bytes()
    assert len(data) < 200_000
    assert hashlib.sha256(data).hexdigest() == digit_classifier.WEIGHTS_SHA256


@pytest.mark.slow
def test_training_the_digit_classifier_again_gives_the_same_classifier(digits_test: tuple[Tensor, Tensor]) -> None:
    again = train_digit_classifier.train(*train_digit_classifier.digits("train"))
    images = digits_test[0].float() / 127.5 - 1
    same = again(images).argmax(1) == digit_classifier.load_classifier()(images).argmax(1)
    assert float(same.float().mean()) >= 0.985


def test_a_digit_has_the_same_features_in_any_batch(digits_test: tuple[Tensor, Tensor]) -> None:
    extractor = load_extractor("digits-classifier")
    together = extractor(digits_test[0][:50])
    alone = torch.cat([extractor(image[None]) for image in digits_test[0][:50]])
    assert together.shape == (50, extractor.dim)
    # The largest layer sums 384 float32 products, in an order that depends on the batch: eps each.
    assert float((together - alone).norm() / alone.norm()) < 384 * torch.finfo(torch.float32).eps


def test_every_extractor_keeps_the_protocol(seeded_inception: dict[str, Tensor]) -> None:
    assert isinstance(DigitsExtractor(), FeatureExtractor)
    assert isinstance(InceptionExtractor(seeded_inception, name="seeded", sha256=""), FeatureExtractor)


def test_digits_classifier_refuses_other_images() -> None:
    with pytest.raises(UserError, match="takes 1x8x8 images, not 3x32x32"):
        load_extractor("digits-classifier")(_images(2, 32, 0))


@pytest.mark.slow
def test_inception_features_equal_torch_fidelitys(seeded_inception: dict[str, Tensor]) -> None:
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    buffer = io.BytesIO()
    torch.save(seeded_inception, buffer)
    buffer.seek(0)
    theirs = module.FeatureExtractorInceptionV3("seeded", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer)
    images = _images(6, 32, 1)
    with torch.inference_mode():
        features, logits = theirs(images)
    ours = InceptionExtractor(seeded_inception, name="seeded", sha256="").outputs(images)
    assert float(features.std(0).mean()) > 1e-3, "the seeded network must tell images apart"
    for mine, reference in ((ours["features"], features), (ours["logits"], logits)):
        assert float((mine - reference).norm() / reference.norm()) < _INCEPTION_ROUNDING
    assert ours["spatial"].shape == (6, 17 * 17 * 7)


@pytest.mark.slow
def test_a_grey_image_has_the_features_of_three_equal_colours(seeded_inception: dict[str, Tensor]) -> None:
    extractor = InceptionExtractor(seeded_inception, name="seeded", sha256="")
    grey = _images(2, 8, 2)[:, :1]
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_inception_weights_of_another_hash_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / inception.WEIGHTS.name
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="a distance in other weights is not an FID"):
        load_inception(str(path))


def test_missing_inception_weights_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pth"):
        load_extractor("inception", weights=str(tmp_path / "absent.pth"))


def test_only_the_standard_weights_give_a_distance_named_fid() -> None:
    assert distance_name("inception", inception.WEIGHTS.sha256) == "FID"
    assert distance_name("inception", "0" * 64) == "FD(inception)"
    assert distance_name("digits-classifier", digit_classifier.WEIGHTS_SHA256) == "FD(digits-classifier)"


@pytest.mark.slow
@pytest.mark.inception_weights
def test_the_fid_with_the_standard_weights_equals_torch_fidelitys() -> None:
    metric = importlib.import_module("torch_fidelity.metric_fid")
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    weights = os.environ["IDDPM_INCEPTION_WEIGHTS"]
    ours = load_inception(weights)
    buffer = io.BytesIO(inception.WEIGHTS.read(weights))
    theirs = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=buffer)
    sets = [_images(64, 32, seed) for seed in (1, 2)]
    sets[1] = sets[1] // 2
    moments = []
    features = []
    for images in sets:
        held = Moments(ours.dim)
        held.update(ours(images))
        moments.append(held)
        with torch.inference_mode():
            features.append(theirs(images)[0])
    statistics = [metric.fid_features_to_statistics(part) for part in features]
    expected = metric.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert distance_name(ours.name, ours.sha256) == "FID"
    assert float((ours(sets[0]) - features[0]).norm() / features[0].norm()) < _INCEPTION_ROUNDING
    # The same moments differ by how the root is taken alone; their float32 features differ in the last digits.
    same = [Moments(ours.dim), Moments(ours.dim)]
    for held, part in zip(same, features, strict=True):
        held.update(part)
    assert frechet_distance(*same) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(*moments) == pytest.approx(expected, rel=1e-3)


def test_digits_are_classified_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    @contextlib.contextmanager
    def full_precision(device: str) -> Iterator[None]:
        devices.append(device)
        yield

    monkeypatch.setattr("evaluation.features.extractors.full_precision", full_precision)
    load_extractor("digits-classifier")(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert devices == ["cpu"]

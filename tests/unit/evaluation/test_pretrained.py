"""VGG16 and CLIP as extractors: named, pinned by sha256, and never mistaken for Inception."""

import hashlib
import importlib
import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluation.distances.reference_statistics import compute_reference
from evaluation.features.extractors import FeatureExtractor, distance_name, load_extractor, weights_file
from evaluation.features.pretrained import NETWORKS, PretrainedExtractor, clip, vgg16
from evaluation.features.weights import WeightsFile
from training.config.errors import UserError


def _images(num: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (num, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class _Tower(nn.Module):
    """A small image tower as CLIP's archive holds one: its parameters' names are what is read."""

    def __init__(self) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_clip import VisionTransformer

        self.visual = VisionTransformer(input_resolution=16, patch_size=8, width=64, layers=1, heads=1, output_dim=24)
        self.text_projection = nn.Parameter(torch.zeros(64, 24))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) + self.text_projection.sum()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def archive() -> bytes:
    torch.manual_seed(0)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have no TorchScript; the published archive is what it is
        torch.jit.save(torch.jit.trace(_Tower().eval(), torch.zeros(1, 3, 16, 16)), buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def test_clip_reads_its_archive_and_different_images_have_different_features(archive: bytes) -> None:
    extractor = PretrainedExtractor(clip(archive), name="clip-vit-b-32", sha256="0" * 64)
    assert isinstance(extractor, FeatureExtractor)
    assert extractor.dim == 24
    features = extractor(_images(5))
    assert float(features.std(0).mean()) > 1e-4
    torch.testing.assert_close(extractor(_images(5)[:2]), features[:2], rtol=1e-4, atol=1e-5)
    grey = _images(2, channels=1)
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


@pytest.mark.slow
def test_vgg16_gives_fc2_after_its_relu_from_a_state_dict() -> None:
    torchvision = importlib.import_module("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.vgg16().eval()
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    extractor = PretrainedExtractor(vgg16(buffer.getvalue()), name="vgg16", sha256="0" * 64)
    features = extractor(_images(3))
    assert features.shape == (3, 4096)
    assert float(features.min()) == 0.0
    empty = io.BytesIO()
    torch.save({}, empty)
    with pytest.raises(UserError, match="not the weights of VGG16"):
        vgg16(empty.getvalue())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_other_bytes_are_refused_before_they_are_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / NETWORKS[name].name
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="a distance in other weights is not comparable"):
        load_extractor(name, weights=str(path))  # type: ignore[arg-type]


def test_weights_are_found_in_a_directory_under_their_published_name(tmp_path: Path) -> None:
    data = b"some weights"
    file = WeightsFile(
        network="Inception", name="weights.pth", sha256=hashlib.sha256(data).hexdigest(), url="http://127.0.0.1:9/weights.pth"
    )
    (tmp_path / file.name).write_bytes(data)
    assert file.read(str(tmp_path)) == file.read(f"{tmp_path}/") == file.read(str(tmp_path / file.name)) == data


def test_the_error_of_a_failed_download_names_file_digest_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = WeightsFile(network="Inception", name="weights.pth", sha256="0" * 64, url="http://127.0.0.1:9/weights.pth")
    with pytest.raises(UserError) as refused:
        file.read()
    for part in ("127.0.0.1:9/weights.pth", f"sha256 {'0' * 64}", "extractors/weights.pth below the storage root", str(file.cached)):
        assert part in str(refused.value)
    assert list(file.cached.parent.iterdir()) == [], "no incomplete file is left"


def test_distances_in_their_features_are_not_named_fid() -> None:
    assert {distance_name(name, file.sha256) for name, file in NETWORKS.items()} == {"FD(vgg16)", "FD(clip-vit-b-32)"}
    assert weights_file("digits-classifier") is None


def test_statistics_of_one_network_are_refused_for_another(archive: bytes, digits_uri: str, reference_uri: str, tmp_path: Path) -> None:
    extractor = PretrainedExtractor(clip(archive), name="clip-vit-b-32", sha256="0" * 64)
    with pytest.raises(UserError, match="extractor: 'digits-classifier', not 'clip-vit-b-32'"):
        compute_reference(f"{digits_uri}/train", extractor, reference_uri)
    made = compute_reference(f"{digits_uri}/train", extractor, str(tmp_path), num_images=50)
    assert made.provenance is not None
    assert made.provenance.distance_name == "FD(clip-vit-b-32)"

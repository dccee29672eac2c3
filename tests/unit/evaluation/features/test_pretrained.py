"""Published networks as extractors: they compute what others compute, are pinned by sha256, and never mistaken for Inception."""

import hashlib
import importlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rounding import U32, assert_same_output
from torch import Tensor, nn

from evaluation.distances.reference_statistics import compute_reference
from evaluation.features.dino import DinoFeatures, dino
from evaluation.features.efficientnet_lite import LiteFeatures
from evaluation.features.extractors import FeatureExtractor, distance_name, load_extractor, weights_file
from evaluation.features.pretrained import NETWORKS, PretrainedExtractor, clip, clip_of_cmmd, vgg16
from evaluation.features.resize import CLIP, IMAGENET, bicubic
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
    assert_same_output(extractor(_images(5)[:2]), features[:2])
    grey = _images(2, channels=1)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_cmmds_clip_gives_unit_embeddings_of_bicubically_resized_images(archive: bytes) -> None:
    features = PretrainedExtractor(clip_of_cmmd(archive), name="clip-vit-l-14-336px", sha256="0" * 64)(_images(3))
    tower = clip(archive).network.model.visual  # type: ignore[union-attr]
    with torch.inference_mode():
        expected = tower(bicubic(_images(3), 16, *CLIP))  # type: ignore[operator]
    # The norm of 24 numbers.
    torch.testing.assert_close(features, expected / expected.norm(dim=1, keepdim=True), rtol=24 * U32, atol=0)


@pytest.mark.parametrize("size", [32, 300])
def test_images_are_resized_as_pillow_resizes_them(size: int) -> None:
    image = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pillow = Image.fromarray(image.numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    ours = bicubic(image.permute(2, 0, 1)[None], 224, (0.0,) * 3, (1.0,) * 3)[0].permute(1, 2, 0) * 255
    # Both round after each direction, in fixed point of different widths: here and there by a level.
    assert float((ours - torch.from_numpy(np.asarray(pillow).copy()).float()).abs().max()) <= 2.5


def test_dino_computes_what_torchs_own_transformer_computes() -> None:
    torch.manual_seed(0)
    network, width = DinoFeatures(width=128, depth=2, grid=16).eval(), 128
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.1)
    x = torch.nn.functional.conv2d(bicubic(_images(3), 224, *IMAGENET), network.patch_embed["proj"].weight, stride=14)
    x = (x + network.patch_embed["proj"].bias[:, None, None]).flatten(2).mT
    x = torch.cat([network.cls_token.expand(3, 1, width), x], dim=1) + network.pos_embed
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(
            width, 2, 4 * width, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        ).train()  # in evaluation it fuses its kernels
        own = block.state_dict()
        scaled = {f"{name}.{part}": own[f"{name}.{part}"].mT * own[f"{ls}.gamma"] for name, ls, part in _SCALED if part == "weight"}
        biases = {f"{name}.{part}": own[f"{name}.{part}"] * own[f"{ls}.gamma"] for name, ls, part in _SCALED if part == "bias"}
        theirs = {
            "self_attn.in_proj_weight": own["attn.qkv.weight"],
            "self_attn.in_proj_bias": own["attn.qkv.bias"],
            "self_attn.out_proj.weight": scaled["attn.proj.weight"].mT,
            "self_attn.out_proj.bias": biases["attn.proj.bias"],
            "linear1.weight": own["mlp.fc1.weight"],
            "linear1.bias": own["mlp.fc1.bias"],
            "linear2.weight": scaled["mlp.fc2.weight"].mT,
            "linear2.bias": biases["mlp.fc2.bias"],
        }
        layer.load_state_dict({**theirs, **{name: own[name] for name in own if name.startswith("norm")}})
        x = layer(x)
    features = PretrainedExtractor(network, name="dinov2-vit-l-14", sha256="0" * 64)(_images(3))
    assert_same_output(features, network.norm(x)[:, 0].detach())
    assert float(features.std(0).mean()) > 1e-4


_SCALED = [(name, ls, part) for name, ls in (("attn.proj", "ls1"), ("mlp.fc2", "ls2")) for part in ("weight", "bias")]


def test_dino_has_the_published_parameters_and_resizes_positions_as_the_published_module_does() -> None:
    with torch.device("meta"):
        network = DinoFeatures()
    assert (len(network.state_dict()), sum(p.numel() for p in network.parameters())) == (343, 304_368_640)
    assert network.norm.normalized_shape == (NETWORKS["dinov2-vit-l-14"].dim,)
    small = DinoFeatures(width=64, depth=1)
    ramp = torch.arange(37.0).expand(37, 37)  # a column's number
    small.pos_embed.data[:, 1:] = ramp.reshape(1, -1, 1)
    columns = small._positions()[0, 1:, 0].view(16, 16)[0]
    # Away from the border torch's cubic (a = -0.75) is within 0.05 of a line. The scale is that of 16.1 patches: 16 differ by 0.19.
    torch.testing.assert_close(columns[2:-2], ((torch.arange(16) + 0.5) * 37 / 16.1 - 0.5)[2:-2], rtol=0, atol=0.06)
    empty = io.BytesIO()
    torch.save({}, empty)
    with pytest.raises(UserError, match="not the weights of DINOv2"):
        dino(empty.getvalue())


def test_efficientnet_knows_real_photographs_with_the_weights_of_its_package() -> None:
    extractor = load_extractor("efficientnet-lite0")
    network = extractor.network  # type: ignore[attr-defined]
    assert isinstance(network, LiteFeatures)
    photos = [
        torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        for image in importlib.import_module("sklearn.datasets").load_sample_images().images
    ]
    bell_cote, castle, palace, daisy = 442, 483, 698, 985
    found = [int(network.classify(extractor(photo)).argmax()) for photo in photos]
    assert found[0] in (bell_cote, castle, palace), "a Chinese palace"
    assert found[1] == daisy, "a dahlia, which ImageNet has not"
    assert extractor.provides == ("features",), "a score of its logits would be no Inception score"


@pytest.mark.slow
def test_vgg16_gives_fc2_after_its_relu_from_a_state_dict() -> None:
    torchvision = importlib.import_module("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.vgg16().eval()
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    extractor = PretrainedExtractor(vgg16(buffer.getvalue()), name="vgg16", sha256="0" * 64)
    features = extractor(_images(3))
    assert features.shape == (3, NETWORKS["vgg16"].dim)
    assert float(features.min()) == 0.0
    empty = io.BytesIO()
    torch.save({}, empty)
    with pytest.raises(UserError, match="not the weights of VGG16"):
        vgg16(empty.getvalue())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_other_bytes_are_refused_before_they_are_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / NETWORKS[name].file.name
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
    assert {distance_name(name, network.file.sha256) for name, network in NETWORKS.items()} == {f"FD({name})" for name in NETWORKS}
    assert weights_file("digits-classifier") is None


def test_statistics_of_one_network_are_refused_for_another(archive: bytes, digits_uri: str, reference_uri: str, tmp_path: Path) -> None:
    extractor = PretrainedExtractor(clip(archive), name="clip-vit-b-32", sha256="0" * 64)
    with pytest.raises(UserError, match="extractor: 'digits-classifier', not 'clip-vit-b-32'"):
        compute_reference(f"{digits_uri}/train", extractor, reference_uri)
    made = compute_reference(f"{digits_uri}/train", extractor, str(tmp_path), num_images=50)
    assert made.provenance is not None
    assert made.provenance.distance_name == "FD(clip-vit-b-32)"


def test_a_package_of_another_version_without_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    file = WeightsFile(network="a network", name="absent.pth", sha256="0" * 64, package="torch")
    with pytest.raises(UserError, match=r"the Python package torch has no file absent\.pth"):
        file.read()

"""Other published feature extractors. Neither of their distances is an FID: each has its network's name.

Precision and recall were proposed with VGG16's fc2 (Kynkaanniemi et al. 2019). CLIP and DINOv2 were not trained on ImageNet's classes,
which Inception's distance rewards (Kynkaanniemi et al. 2022, Stein et al. 2023). CMMD is defined on CLIP ViT-L/14 at 336 pixels
(Jayasumana et al. 2024). EfficientNet-Lite0 needs no model hub. Statistics of one network are refused for another.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.features import dino, efficientnet_lite
from evaluation.features.resize import CLIP, bicubic
from evaluation.features.weights import WeightsFile
from evaluation.records.devices import full_precision
from training.config.errors import UserError
from training.shapes import Float32, UInt8

# On a CPU the activations of few images stay in the cache, and below 32 MB, above which the C library returns memory to the system after
# each use: with 64 at a time EfficientNet-Lite0 spends more time on page faults than on arithmetic.
BATCH_SIZE, CPU_BATCH_SIZE = 64, 8


class PretrainedExtractor:
    """Features of a network that maps uint8 images of any size to vectors, in float32: a `FeatureExtractor`."""

    provides: tuple[str, ...] = ("features",)

    def __init__(self, network: nn.Module, *, name: str, sha256: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.sha256 = sha256
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.dim = int(self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1])

    def __call__(self, images: UInt8[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch dim"]:
        """Return the features; a grey image is repeated over the three colours."""
        return self.outputs(images)["features"]

    @torch.inference_mode()
    def outputs(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Return `features` [N, dim]."""
        colour = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        batch_size = CPU_BATCH_SIZE if self.device.type == "cpu" else BATCH_SIZE
        with full_precision(self.device.type):
            parts = [self.network(part.to(self.device)) for part in torch.split(colour, batch_size)]
        return {"features": torch.cat(parts).float()}


def load_pretrained(name: str, weights: str | None = None, device: torch.device | str = "cpu") -> PretrainedExtractor:
    """Load the network of that name, one of `NETWORKS`; refuse weights with another sha256 than the published one."""
    network = NETWORKS[name]
    return PretrainedExtractor(network.build(network.file.read(weights)), name=name, sha256=network.file.sha256, device=device)


def vgg16(data: bytes) -> nn.Module:
    """Return torchvision's VGG16 up to fc2 after its ReLU (4,096 features); refuse the state dict of another network."""
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    # torch-fidelity reads files as pickles, which can run code; it gets only what `weights_only` lets through.
    buffer = io.BytesIO()
    torch.save(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), buffer)
    buffer.seek(0)
    try:
        network: nn.Module = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        raise UserError(
            f"these are not the weights of VGG16 ({str(error).splitlines()[0]}); give the path of {NETWORKS['vgg16'].file.name}"
        ) from error
    return _First(network)


def clip(data: bytes) -> nn.Module:
    """Return CLIP's image tower up to its embedding (512 features), from the published TorchScript archive, which is no pickle."""
    return _First(_clip(data, "clip-vit-b-32"))


def clip_of_cmmd(data: bytes) -> nn.Module:
    """Return CLIP's image tower as CMMD takes it: images resized bicubically, embeddings of length 1 (768 features)."""
    return _UnitEmbedding(_clip(data, "clip-vit-l-14-336px").model.visual)  # type: ignore[arg-type, union-attr]


def _clip(data: bytes, name: str) -> nn.Module:
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

    network: nn.Module = FeatureExtractorCLIP(name, ["clip"], feature_extractor_weights_path=io.BytesIO(data))
    return network


class _First(nn.Module):
    """The first output of one of torch-fidelity's modules."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch dim"]:
        first: Tensor = self.network(images)[0]
        return first


class _UnitEmbedding(nn.Module):
    """The embedding of a CLIP tower, scaled to length 1."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch dim"]:
        return functional.normalize(self.tower(bicubic(images, self.tower.input_resolution, *CLIP)))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A published network.

    Attributes:
        file: Its weights.
        build: Makes a module of the file's bytes.
        dim: Length of a feature vector.
        sees: In a few words, what the features know.
    """

    file: WeightsFile
    build: Callable[[bytes], nn.Module]
    dim: int
    sees: str


_CLIP_SITE = "https://openaipublic.azureedge.net/clip/models"
_CLIP_B_32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_CLIP_L_14_336 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"

NETWORKS: dict[str, Network] = {
    "vgg16": Network(
        file=WeightsFile(
            network="VGG16",
            name="vgg16-397923af.pth",
            sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
        ),
        build=vgg16,
        dim=4096,
        sees="ImageNet's classes; the network of precision and recall",
    ),
    "clip-vit-b-32": Network(
        file=WeightsFile(
            network="CLIP ViT-B/32", name=f"clip-vit-b-32-{_CLIP_B_32}.pt", sha256=_CLIP_B_32, url=f"{_CLIP_SITE}/{_CLIP_B_32}/ViT-B-32.pt"
        ),
        build=clip,
        dim=512,
        sees="what captions say",
    ),
    "clip-vit-l-14-336px": Network(
        file=WeightsFile(
            network="CLIP ViT-L/14 336px",
            name=f"clip-vit-l-14-336px-{_CLIP_L_14_336}.pt",
            sha256=_CLIP_L_14_336,
            url=f"{_CLIP_SITE}/{_CLIP_L_14_336}/ViT-L-14-336px.pt",
        ),
        build=clip_of_cmmd,
        dim=768,
        sees="what captions say; the network of CMMD",
    ),
    "dinov2-vit-l-14": Network(
        file=dino.WEIGHTS,
        build=dino.dino,
        dim=1024,
        sees="objects and their parts, learned without labels; the network of FD-DINOv2",
    ),
    "efficientnet-lite0": Network(
        file=efficientnet_lite.WEIGHTS,
        build=efficientnet_lite.efficientnet_lite,
        dim=1280,
        sees="ImageNet's classes; needs no model hub",
    ),
}

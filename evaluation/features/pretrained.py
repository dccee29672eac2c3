"""Other published feature extractors, through torch-fidelity's modules.

Precision and recall were proposed with VGG16's fc2 (Kynkaanniemi et al. 2019). CLIP was not trained on ImageNet's classes,
which Inception's distance rewards (Kynkaanniemi et al. 2022). Neither distance is an FID: each has its network's name, and
statistics of one are refused for the other. DINOv2 is missing, because torch-fidelity's module downloads code that can't be
pinned.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from evaluation.features.weights import WeightsFile
from evaluation.records.devices import full_precision
from training.config.errors import UserError
from training.shapes import Float32, UInt8

BATCH_SIZE = 64

NETWORKS: dict[str, WeightsFile] = {
    "vgg16": WeightsFile(
        network="VGG16",
        name="vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
    ),
    "clip-vit-b-32": WeightsFile(
        network="CLIP ViT-B/32",
        name="clip-vit-b-32-40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af.pt",
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        url="https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    ),
}


class PretrainedExtractor:
    """Features of one of torch-fidelity's modules, in float32: a `FeatureExtractor`."""

    provides: tuple[str, ...] = ("features",)

    def __init__(self, network: nn.Module, *, name: str, sha256: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.sha256 = sha256
        self.device = torch.device(device)
        self._network = network.to(self.device).eval().requires_grad_(False)
        self.dim = int(self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1])

    def __call__(self, images: UInt8[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch dim"]:
        """Return the features; a grey image is repeated over the three colours."""
        return self.outputs(images)["features"]

    @torch.inference_mode()
    def outputs(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Return `features` [N, dim]."""
        colour = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        with full_precision(self.device.type):
            parts = [self._network(part.to(self.device))[0] for part in torch.split(colour, BATCH_SIZE)]
        return {"features": torch.cat(parts).float()}


def load_pretrained(name: str, weights: str | None = None, device: torch.device | str = "cpu") -> PretrainedExtractor:
    """Load the network of that name, one of `NETWORKS`; `weights` is explained at `WeightsFile.read`.

    Raises:
        UserError: The file can't be read, or its sha256 is not the published one.
    """
    file = NETWORKS[name]
    data = file.read(weights)
    build = vgg16 if name == "vgg16" else clip
    return PretrainedExtractor(build(data), name=name, sha256=file.sha256, device=device)


def vgg16(data: bytes) -> nn.Module:
    """Return torchvision's VGG16 up to fc2 after its ReLU (4,096 features), from the file of a state dict.

    Raises:
        UserError: The file contains something else.
    """
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    # torch-fidelity reads files as pickles, which can run code; it gets only what `weights_only` lets through.
    buffer = io.BytesIO()
    torch.save(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), buffer)
    buffer.seek(0)
    try:
        network: nn.Module = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        raise UserError(
            f"these are not the weights of VGG16 ({str(error).splitlines()[0]}); give the path of {NETWORKS['vgg16'].name}"
        ) from error
    return network


def clip(data: bytes) -> nn.Module:
    """Return CLIP's image tower up to its embedding (512 features), from the published TorchScript archive, which is no pickle."""
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

    network: nn.Module = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=io.BytesIO(data))
    return network

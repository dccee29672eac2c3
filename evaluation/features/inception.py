"""The standard Inception network of the FID, with torch-fidelity's weights and optimised layers.

Images are resized to 299 x 299 as TensorFlow 1 did it; other resizes move the FID of 32-pixel images by whole units.
Features are those of the published graph: pool_3 (2,048), the logits without bias for the Inception score, and the
first seven channels of mixed_6 (17 x 17) for the sFID.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evaluation.features.weights import WeightsFile
from evaluation.records.devices import full_precision
from training.config.errors import UserError
from training.shapes import Float32, UInt8

WEIGHTS = WeightsFile(
    network="Inception",
    name="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
BATCH_SIZE = 64
"""Images of 299 pixels per pass."""

_SPATIAL_CHANNELS = 7
_SIZE = 299
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2")
_BLOCKS = tuple(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"))
"""Names of the network's parts in torch-fidelity, in the order in which an image passes through them, after the stem."""
_STEM_IMAGES = 4
"""Images per pass through the stem on a CPU: their activations, 5.5 MB each, stay in its caches."""
_BRANCHES = {
    "branch5x5_1": (("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")),
    "branch7x7_1": (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        tuple(f"branch7x7dbl_{number}" for number in range(1, 6)),
    ),
}
"""The two kinds of block with an average: a part that only this kind has -> its branches besides the averaged one."""


class InceptionExtractor:
    """Features of the Inception network with the given weights: a `FeatureExtractor`.

    Weights other than the standard ones get another name than "inception", because their distance is not an FID.

    Deviation: BatchNorm is folded into the convolutions, images are resized by two matrix products, averages are taken after
    the 1x1 convolutions that follow them, the memory format is channels last, and a CPU takes a few images at a time through
    the first layers. This changes features by less than 1e-5 of their size; BENCHMARKS.md has the speed.
    """

    dim = 2048
    provides: tuple[str, ...] = ("features", "logits", "spatial")

    def __init__(self, state: Mapping[str, Tensor], *, name: str, sha256: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.sha256 = sha256
        self.device = torch.device(device)
        network: Any = _folded(_network(state))
        self._stem_images = _STEM_IMAGES if self.device.type == "cpu" else BATCH_SIZE
        self._spatial: Tensor | None = None
        network.Mixed_6d.branch1x1.register_forward_hook(self._store_spatial)
        self._stem = _sequential(getattr(network, name) for name in _STEM).to(self.device)
        self._blocks = _sequential(_averaging_last(getattr(network, name)) for name in _BLOCKS).to(self.device)
        self._classes = network.fc.weight.detach().to(self.device)

    def __call__(self, images: UInt8[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch 2048"]:
        """Return the pool_3 features; a grey image is repeated over the three colours."""
        return self.outputs(images)["features"]

    @torch.inference_mode()
    def outputs(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Return all features of one pass: `features` [N, 2048], `logits` [N, 1008] without bias, `spatial` [N, 2023]."""
        parts = [self._pass(part) for part in torch.split(images, BATCH_SIZE)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.provides}

    def _pass(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        with full_precision(self.device.type):
            resized = _resized(images.to(self.device))
            colour = resized if resized.shape[1] == 3 else resized.expand(-1, 3, -1, -1)
            some = torch.split(colour.contiguous(memory_format=torch.channels_last), self._stem_images)
            features = self._blocks(torch.cat([self._stem(part) for part in some])).mean((2, 3))
            logits = features @ self._classes.T
        if self._spatial is None:
            raise RuntimeError("the network has no block Mixed_6d")
        # Channels last, as the published graph flattens them, so that stored sFID statistics can be read.
        spatial = self._spatial[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).reshape(len(images), -1)
        self._spatial = None
        return {"features": features.float(), "logits": logits.float(), "spatial": spatial.float()}

    def _store_spatial(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output


def load_inception(weights: str | None = None, device: torch.device | str = "cpu") -> InceptionExtractor:
    """Load the standard network; refuse weights (`WeightsFile.read`) with another sha256 than the standard ones'."""
    data = WEIGHTS.read(weights)
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return InceptionExtractor(state, name="inception", sha256=WEIGHTS.sha256, device=device)


def _sequential(parts: Iterable[nn.Module]) -> nn.Sequential:
    """Return the parts as one module, in the memory format channels last."""
    return nn.Sequential(*parts).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _network(state: Mapping[str, Tensor]) -> nn.Module:
    """Return torch-fidelity's module with these weights, which it reads from a file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        raise UserError(
            f"these are not the weights of the Inception network ({str(error).splitlines()[0]}); give the path of {WEIGHTS.name}"
        ) from error
    return network


def _resized(images: UInt8[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch channels 299 299"]:
    """Return TensorFlow 1's bilinear resize of (x - 128) / 128, without antialiasing: W_rows x W_columns^T."""
    rows, columns = (_bilinear(size).to(images.device) for size in images.shape[2:])
    return rows @ ((images.float() - 128) / 128) @ columns.T


def _bilinear(size: int) -> Float32[Tensor, "299 size"]:
    """Return the weights of the two pixels on either side of i * size / 299, for each pixel i of the result."""
    position = torch.arange(_SIZE, dtype=torch.float64) * (size / _SIZE)
    before = position.floor().long()
    fraction = position - before
    weights = torch.zeros(_SIZE, size, dtype=torch.float64)
    pixel = torch.arange(_SIZE)
    weights[pixel, before] += 1 - fraction
    weights[pixel, (before + 1).clamp(max=size - 1)] += fraction
    return weights.float()


class _AveragingLast(nn.Module):
    """A block whose averaged branch convolves first, because there are fewer channels to average after the 1x1 convolution.

    The two commute, bias included: both are linear, one acts on channels and the other on positions, and the average's
    weights add up to one.
    """

    def __init__(self, block: Any, branches: tuple[tuple[str, ...], ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(getattr(block, name) for name in names)) for names in branches)
        self.averaged = block.branch_pool.conv

    def forward(self, x: Float32[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch more height width"]:
        # TensorFlow does not count the padding in the average.
        average = nn.functional.avg_pool2d(self.averaged(x), kernel_size=3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([*(branch(x) for branch in self.branches), torch.relu_(average)], dim=1)


def _averaging_last(part: nn.Module) -> nn.Module:
    """Return the part; a block with an average becomes an equivalent one that averages after the convolution."""
    for name, branches in _BRANCHES.items():
        if hasattr(part, name):
            return _AveragingLast(part, branches)
    return part


def _folded(network: nn.Module) -> nn.Module:
    """Fold every BatchNorm into the convolution before it: w' = w g / sqrt(v + e), b' = b_bn - m g / sqrt(v + e)."""
    for module in network.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network.eval()

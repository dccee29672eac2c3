"""The standard Inception network of the FID, weights-compatible through torch-fidelity, and faster than as shipped.

Images are resized to 299 x 299 as TensorFlow 1 did it; other resizes move the FID of 32-pixel images by whole units.
Features are those of the published graph: pool_3 (2,048), the logits without bias for the Inception score, and the
first seven channels of mixed_6 (17 x 17) for the sFID.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evaluation.devices import full_precision
from evaluation.extractor_weights import ExtractorError, WeightsFile
from training.shapes import Float32, UInt8

WEIGHTS = WeightsFile(
    network="Inception",
    name="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
BATCH_SIZE = 64
"""Images of 299 pixels that the network has in memory at a time."""

_SPATIAL_CHANNELS = 7


class InceptionExtractor:
    """Features of the Inception network with the given weights.

    Deviation: BatchNorm is folded into the convolutions and memory is laid out channels last, which changes features by
    less than 1e-5 of their size and is about 1.7 times as fast as torch-fidelity's module as shipped.

    Attributes:
        name: "inception" for the standard weights; anything else for others, whose distance is not an FID.
        sha256: Of the weights' file.
        dim: 2,048.
        provides: What `outputs` gives.
        device: Where it runs.
    """

    dim = 2048
    provides: tuple[str, ...] = ("features", "logits", "spatial")

    def __init__(
        self, state: Mapping[str, Tensor], *, name: str, sha256: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.name = name
        self.sha256 = sha256
        self.device = torch.device(device)
        self.dtype = dtype
        network = _folded(_network(state)).to(self.device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._spatial: Tensor | None = None
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def __call__(self, images: UInt8[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch 2048"]:
        """The pool_3 features; a grey image is repeated over the three colours."""
        return self.outputs(images)["features"]

    @torch.inference_mode()
    def outputs(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """All features of one pass: `features` [N, 2048], `logits` [N, 1008] without bias, `spatial` [N, 2023]."""
        parts = [self._pass(part) for part in torch.split(images, BATCH_SIZE)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.provides}

    def _pass(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        colour = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        with self._arithmetic():
            features, logits = self._network(colour.to(self.device).contiguous(memory_format=torch.channels_last))
        if self._spatial is None:
            raise RuntimeError("the network did not pass through Mixed_6d")
        # Channels last, as the published graph flattens them, so that stored sFID statistics can be read.
        spatial = self._spatial[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).reshape(len(images), -1)
        self._spatial = None
        return {"features": features.float(), "logits": logits.float(), "spatial": spatial.float()}

    def _arithmetic(self) -> contextlib.AbstractContextManager[None]:
        if self.dtype == torch.float32:
            return full_precision(self.device.type)
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _keep_spatial(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output


def load_inception(weights: str | None = None, device: torch.device | str = "cpu") -> InceptionExtractor:
    """The standard network, its weights checked before they are used.

    Args:
        weights: A path or `s3://` URI of the weights' file; None looks in torch's hub cache and downloads it there.
        device: Where it will run.

    Raises:
        ExtractorError: The file can't be had, or its sha256 is not the standard weights'.
    """
    data = WEIGHTS.read(weights)
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return InceptionExtractor(state, name="inception", sha256=WEIGHTS.sha256, device=device)


def _network(state: Mapping[str, Tensor]) -> nn.Module:
    """torch-fidelity's module with these weights, which it insists on reading from a file itself."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        raise ExtractorError(f"these are not the weights of the Inception network: {str(error).splitlines()[0]}") from error
    return network


def _folded(network: nn.Module) -> nn.Module:
    """Every BatchNorm that follows a convolution folded into it: w' = w g / sqrt(v + e), b' = b_bn - m g / sqrt(v + e)."""
    for module in network.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network.eval()

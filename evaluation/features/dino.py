"""DINOv2 ViT-L/14 at 224 pixels: features learned without labels, for the FD-DINOv2 (Stein et al. 2023).

Its Frechet distance agrees with people's judgement better than Inception's, which rewards ImageNet's classes. The network is a
vision transformer with LayerScale, written here because the published module is code from a network address, which can't be
pinned; parameters have the published names. Source: Oquab et al. 2024; resize and normalisation of dgm-eval.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.features.resize import IMAGENET, bicubic
from evaluation.features.weights import WeightsFile
from training.shapes import Float32, UInt8

WEIGHTS = WeightsFile(
    network="DINOv2 ViT-L/14",
    name="dinov2_vitl14_pretrain.pth",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
)
SIZE = 224
_PATCH = 14
_HEAD_DIM = 64


class DinoFeatures(nn.Module):
    """Maps images to the class token after the last norm."""

    def __init__(self, width: int = 1024, depth: int = 24, grid: int = 37) -> None:
        """Make the network with random weights; `grid` is the side of the grid of patches that its positions are stored for."""
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the training; here for the names' sake
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, _PATCH, _PATCH)})
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch dim"]:
        """Return one feature vector per image."""
        patches = self.patch_embed["proj"](bicubic(images, SIZE, *IMAGENET)).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self._positions()
        features: Tensor = self.norm(self.blocks(x))[:, 0]
        return features

    def _positions(self) -> Float32[Tensor, "1 tokens dim"]:
        """Return the positions, resized to the grid of patches of 224 pixels.

        The published module computes its scale from a grid that is 0.1 patches too large; features depend on it.
        """
        own, grid = math.isqrt(self.pos_embed.shape[1] - 1), SIZE // _PATCH
        if own == grid:
            return self.pos_embed
        stored = self.pos_embed[:, 1:].reshape(1, own, own, -1).permute(0, 3, 1, 2)
        resized = functional.interpolate(stored, scale_factor=(grid + 0.1) / own, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).mT], dim=1)


class _Block(nn.Module):
    """Attention and an MLP, each added with a learned scale for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Float32[Tensor, "batch tokens dim"]) -> Float32[Tensor, "batch tokens dim"]:
        query, key, value = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, -1, _HEAD_DIM)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        x = x + self.ls2["gamma"] * self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))
        return x


def dino(data: bytes) -> nn.Module:
    """Return the network with the weights of the published file's bytes; raise UserError if they are something else."""
    with torch.device("meta"):
        network = DinoFeatures()
    WEIGHTS.load_into(network, data)
    return network

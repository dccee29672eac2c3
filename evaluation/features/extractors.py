"""The networks in whose features images are compared, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from evaluation.features import digit_classifier, inception, pretrained
from evaluation.features.weights import ExtractorError, WeightsFile
from training.config.experiment import Extractor
from training.diffusion.pixels import to_model_range
from training.shapes import Float32, UInt8

__all__ = [
    "DigitsExtractor",
    "ExtractorError",
    "FeatureExtractor",
    "Named",
    "distance_name",
    "load_extractor",
    "published",
    "weights_file",
]


@runtime_checkable
class Named(Protocol):
    """What says whose features statistics are of."""

    @property
    def name(self) -> str:
        """As an experiment names it."""

    @property
    def sha256(self) -> str:
        """Of its weights' file."""


@dataclass(frozen=True, slots=True)
class Published:
    """The extractor of a name without its weights, for statistics that were taken already.

    Attributes:
        name: As an experiment names it.
        sha256: Of its published weights.
    """

    name: str
    sha256: str


@runtime_checkable
class FeatureExtractor(Protocol):
    """Images in, feature vectors out; named and hashed, because distances in different features can't be compared.

    Attributes:
        name: As an experiment names it.
        dim: Length of a feature vector.
        sha256: Of its weights' file.
        provides: The names in what `outputs` gives.
    """

    name: str
    dim: int
    sha256: str
    provides: tuple[str, ...]

    def __call__(self, images: UInt8[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch dim"]:
        """One feature vector an image."""

    def outputs(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """`features`, and where the network has them the class `logits` and `spatial` features, from one pass."""


class DigitsExtractor:
    """The 64 features of the committed classifier of 8x8 digits; see `evaluation.features.digit_classifier`."""

    name = "digits-classifier"
    dim = digit_classifier.NUM_FEATURES
    sha256 = digit_classifier.WEIGHTS_SHA256
    provides: tuple[str, ...] = ("features", "logits")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._model = digit_classifier.load_classifier().to(self.device)

    def __call__(self, images: UInt8[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch 64"]:
        """The features of 8x8 grey images.

        Raises:
            ExtractorError: The images are not 8x8 and grey.
        """
        return self.outputs(images)["features"]

    @torch.inference_mode()
    def outputs(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """`features` [N, 64] and `logits` [N, 10].

        Raises:
            ExtractorError: The images are not 8x8 and grey.
        """
        if tuple(images.shape[1:]) != (1, 8, 8):
            shape = "x".join(str(n) for n in images.shape[1:])
            raise ExtractorError(f"the digits classifier sees 1x8x8 images, not {shape}; use the extractor 'inception'")
        features = self._model.features(to_model_range(images.to(self.device)))
        return {"features": features, "logits": self._model.classify(features)}


def load_extractor(name: Extractor, *, weights: str | None = None, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The extractor of that name, its weights checked against their sha256 before anything is computed with them.

    Args:
        name: "inception", whose distance is the FID; "digits-classifier"; "vgg16" or "clip-vit-b-32" (`evaluation.features.pretrained`).
        weights: A path or `s3://` URI of a published network's weights; None uses torch's hub cache, or downloads.
        device: Where it will run.

    Raises:
        ExtractorError: There is no such extractor, or its weights can't be had or are not the right ones.
    """
    if name == "digits-classifier":
        if weights is not None:
            raise ExtractorError("the digits classifier carries its own weights; give none")
        return DigitsExtractor(device)
    if name == "inception":
        return inception.load_inception(weights, device)
    if name in pretrained.NETWORKS:
        return pretrained.load_pretrained(name, weights, device)
    raise ExtractorError(f"there is no extractor {name!r}; use one of {', '.join(get_args(Extractor))}")


def published(name: str) -> Published:
    """The extractor of that name, without its weights.

    Raises:
        ExtractorError: There is no such extractor.
    """
    if name == "digits-classifier":
        return Published(name, digit_classifier.WEIGHTS_SHA256)
    file = weights_file(name)
    if file is None:
        raise ExtractorError(f"there is no extractor {name!r}; use one of {', '.join(get_args(Extractor))}")
    return Published(name, file.sha256)


def weights_file(name: str) -> WeightsFile | None:
    """The published file that an extractor needs; None for one that carries its own."""
    return inception.WEIGHTS if name == "inception" else pretrained.NETWORKS.get(name)


def distance_name(name: str, sha256: str) -> str:
    """What a Frechet distance in these features may be called: "FID" for the standard Inception network alone."""
    if name == "inception" and sha256 == inception.WEIGHTS.sha256:
        return "FID"
    return f"FD({name})"

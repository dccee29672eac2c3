"""Feature extractors by name: the networks in whose features images are compared.

To add one, give it a row in `evaluation.features.pretrained.NETWORKS`, and its name in `training.config.experiment.Extractor`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from evaluation.features import digit_classifier, inception, pretrained
from evaluation.features.weights import WeightsFile
from evaluation.records.devices import full_precision
from training.config.errors import UserError
from training.config.experiment import Extractor
from training.diffusion.pixels import to_model_range
from training.shapes import Float32, UInt8


@dataclass(frozen=True, slots=True)
class ExtractorId:
    """An extractor's name, as in an experiment, and its weights' digest, which together identify its features."""

    name: str
    sha256: str


@runtime_checkable
class ExtractorTraits(Protocol):
    """The traits of an extractor by which metrics are refused.

    Attributes:
        name: As in an experiment.
        dim: Length of a feature vector.
        sha256: Digest of the weights' file.
        provides: Names of the entries that `FeatureExtractor.outputs` returns.
    """

    name: str
    dim: int
    sha256: str
    provides: tuple[str, ...]


@runtime_checkable
class FeatureExtractor(ExtractorTraits, Protocol):
    """Maps images to feature vectors. It carries its name and digest, because distances in different features can't be compared."""

    def __call__(self, images: UInt8[Tensor, "batch channels height width"]) -> Float32[Tensor, "batch dim"]:
        """Return one feature vector per image."""

    def outputs(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Return `features` and, if the network has them, class `logits` and `spatial` features, from one pass."""


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
        """Return the features of 8x8 grey images; see `outputs`."""
        return self.outputs(images)["features"]

    @torch.inference_mode()
    def outputs(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Return `features` [N, 64] and `logits` [N, 10]; raise UserError if the images are not 8x8 and grey."""
        if tuple(images.shape[1:]) != (1, 8, 8):
            shape = "x".join(str(n) for n in images.shape[1:])
            raise UserError(f"the digits classifier takes 1x8x8 images, not {shape}; use the extractor 'inception'")
        with full_precision(self.device.type):
            features = self._model.features(to_model_range(images.to(self.device)))
            return {"features": features, "logits": self._model.classify(features)}


def load_extractor(name: Extractor, *, weights: str | None = None, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Load an extractor and check its weights against their sha256.

    Args:
        name: "inception", whose distance is the FID; "digits-classifier"; or one of `evaluation.features.pretrained.NETWORKS`.
        weights: A published network's weights; see `WeightsFile.read`.
        device: The device that it runs on.

    Raises:
        UserError: There is no such extractor, or its weights can't be read or have another sha256.
    """
    loaders: dict[str, Callable[[], FeatureExtractor]] = {
        "inception": lambda: inception.load_inception(weights, device),
        "digits-classifier": lambda: DigitsExtractor(device),
        **dict.fromkeys(pretrained.NETWORKS, lambda: pretrained.load_pretrained(name, weights, device)),
    }
    if name not in loaders:
        raise UserError(_unknown(name))
    if name == "digits-classifier" and weights is not None:
        raise UserError("the digits classifier's weights are part of this package; leave the extractor weights empty")
    return loaders[name]()


def extractor_id(name: str) -> ExtractorId:
    """Return the name and published digest of an extractor, without loading its weights; refuse an unknown one."""
    if name == "digits-classifier":
        return ExtractorId(name, digit_classifier.WEIGHTS_SHA256)
    file = weights_file(name)
    if file is None:
        raise UserError(_unknown(name))
    return ExtractorId(name, file.sha256)


@dataclass(kw_only=True, slots=True)
class _Traits:
    name: str
    dim: int
    sha256: str
    provides: tuple[str, ...]


def extractor_traits(name: str) -> ExtractorTraits:
    """Return the traits of an extractor without loading its weights; refuse an unknown one."""
    sha256 = extractor_id(name).sha256
    if name in pretrained.NETWORKS:
        return _Traits(name=name, dim=pretrained.NETWORKS[name].dim, sha256=sha256, provides=pretrained.PretrainedExtractor.provides)
    own = inception.InceptionExtractor if name == "inception" else DigitsExtractor
    return _Traits(name=name, dim=own.dim, sha256=sha256, provides=own.provides)


def weights_file(name: str) -> WeightsFile | None:
    """Return the published file that an extractor needs; None for one whose weights are part of this package."""
    return inception.WEIGHTS if name == "inception" else pretrained.NETWORKS[name].file if name in pretrained.NETWORKS else None


def describe_extractors() -> dict[str, dict[str, str]]:
    """Return by name the distance that an extractor gives, what its features know, and the source of its weights."""
    sees = {
        "inception": "ImageNet's classes; the network of FID, KID and MIND",
        "digits-classifier": "the ten digits; 8x8 grey images alone",
    }
    sees |= {name: network.sees for name, network in pretrained.NETWORKS.items()}
    found = {}
    for name in get_args(Extractor):
        file = weights_file(name)
        source = f"{file.url or f'Python package {file.package}'} (sha256 {file.sha256[:12]}...)" if file else "part of this package"
        found[name] = {"distance": distance_name(*dataclasses.astuple(extractor_id(name))), "sees": sees[name], "weights": source}
    return found


def is_published(name: str, sha256: str) -> bool:
    """Return True if these are the weights that were published under this name."""
    file = weights_file(name)
    return file is not None and file.sha256 == sha256


def distance_name(name: str, sha256: str) -> str:
    """Return the name of a Frechet distance in an extractor's features: "FID" only for the standard Inception weights."""
    return "FID" if name == "inception" and is_published(name, sha256) else f"FD({name})"


def _unknown(name: str) -> str:
    return f"there is no extractor {name!r}; use one of {', '.join(get_args(Extractor))}"

"""Bits per dimension of a set of images: its terms, its standard error, and the merge of several workers' parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.config.errors import UserError
from training.config.experiment import LikelihoodForm
from training.shapes import Float64, Int64


@dataclass(frozen=True, kw_only=True, eq=False)
class Likelihood:
    """Bits/dim of a set of images; the parts of several workers or batches merge into the whole.

    Attributes:
        form: "full", "spaced", "stratified" or "learned"; see `evaluation.likelihood.estimate`.
        indices: Indices of the images, increasing.
        prior_per_image: The term KL(q(x_T | x_0) || N(0, I)) of each image.
        decoder_per_image: The term -log p(x_0 | x_1) of each image.
        timesteps: Original timesteps of the chain, increasing; empty for the stratified form.
        term_sums: Sum of L_t over the images, for each of `timesteps`.
    """

    form: LikelihoodForm
    num_evaluations_per_image: int
    indices: Int64[Tensor, " images"]
    per_image: Float64[Tensor, " images"]
    prior_per_image: Float64[Tensor, " images"]
    decoder_per_image: Float64[Tensor, " images"]
    timesteps: tuple[int, ...] = ()
    term_sums: Float64[Tensor, " terms"]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.indices)

    @property
    def bits_per_dim(self) -> float:
        """Mean over the images."""
        return float(self.per_image.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean: over the choice of images, of noise and, if stratified, of timesteps. NaN for one image."""
        return float(self.per_image.std()) / math.sqrt(self.num_images) if self.num_images > 1 else math.nan

    @property
    def prior(self) -> float:
        """Mean prior term, in bits/dim."""
        return float(self.prior_per_image.mean())

    @property
    def decoder(self) -> float:
        """Mean decoder term, in bits/dim."""
        return float(self.decoder_per_image.mean())

    @property
    def per_t(self) -> Float64[Tensor, " terms"]:
        """Mean L_t for each of `timesteps` (index 0 is the decoder); empty for the stratified form."""
        return self.term_sums / self.num_images

    def to_dict(self) -> dict[str, Any]:
        """Return a summary for JSON, without the per-image values; an unknown standard error is null."""
        return {
            "form": self.form,
            "bits_per_dim": self.bits_per_dim,
            "standard_error": self.standard_error if self.num_images > 1 else None,
            "num_images": self.num_images,
            "num_evaluations_per_image": self.num_evaluations_per_image,
            "prior": self.prior,
            "decoder": self.decoder,
            "timesteps": list(self.timesteps),
            "per_t": self.per_t.tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all fields as plain values and tensors, which `torch.load(weights_only=True)` reads back."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Likelihood:
        """Return the likelihood of a `state_dict`."""
        return cls(**{**state, "timesteps": tuple(state["timesteps"])})


def merge(parts: Iterable[Likelihood]) -> Likelihood:
    """Return the likelihood of all images of the parts, however they are split.

    Raises:
        UserError: There is no part, an image is in two of them, or they are of different evaluations.
    """
    parts = list(parts)
    if not parts:
        raise UserError("there are no images to compute the likelihood of")
    protocols = {(part.form, part.num_evaluations_per_image, part.timesteps) for part in parts}
    if len(protocols) > 1:
        words = " and ".join(sorted(f"{form!r} with {evaluations} evaluations" for form, evaluations, _ in protocols))
        raise UserError(f"parts of a likelihood were evaluated differently: {words}")
    indices = torch.cat([part.indices for part in parts])
    order = indices.argsort()
    indices = indices[order]
    twice = indices[1:][indices[1:] == indices[:-1]]
    if len(twice):
        raise UserError(f"image {int(twice[0])} is in two parts of the likelihood; evaluate each image once")
    return Likelihood(
        form=parts[0].form,
        num_evaluations_per_image=parts[0].num_evaluations_per_image,
        indices=indices,
        per_image=torch.cat([part.per_image for part in parts])[order],
        prior_per_image=torch.cat([part.prior_per_image for part in parts])[order],
        decoder_per_image=torch.cat([part.decoder_per_image for part in parts])[order],
        timesteps=parts[0].timesteps,
        term_sums=torch.stack([part.term_sums for part in parts]).sum(0),
    )

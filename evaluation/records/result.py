"""What an evaluation finds: numbers, each with the protocol that it depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluation.records.protocol_card import as_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Numbers and their protocol.

    Attributes:
        checkpoint_uri: What was evaluated.
        weights: Which weights of it.
        step: Training step.
        distance_name: "FID" for the standard Inception network alone.
        distance: The Frechet distance.
        distance_standard_error: Over the draw of the samples; None if unknown.
        distance_without_blocks: The distance without each block of the samples (`evaluation.distances.frechet.without_each_block`), so that
            another model's on the same noise can be compared with it.
        held_out: `num_images` real test images have the distance `real`, as many samples `generated`: no finite sample
            has distance zero, and smaller ones have larger ones. None where there are no test images.
        likelihood: Summary of the bits/dim, with `per_image_uri` where each image's stands; None if it was not taken.
        metrics: Further measures by name: value, standard_error, note.
        grid_uri: Sample grid, PNG.
        images_uri: The drawn images, where they were kept.
        protocol: The card.
        experiment: The experiment.
        created_at: UTC, ISO 8601.
        seconds: How long it took.
    """

    checkpoint_uri: str
    weights: str
    step: int
    distance_name: str
    distance: float
    distance_standard_error: float | None
    distance_without_blocks: list[float] = field(default_factory=list)
    held_out: dict[str, Any] | None = None
    likelihood: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    grid_uri: str = ""
    images_uri: str = ""
    protocol: dict[str, Any]
    experiment: dict[str, Any]
    created_at: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = as_plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EvaluationResult:
        """What `to_dict` gave."""
        return cls(**value)

    def flat_metrics(self, prefix: str = "final") -> dict[str, float]:
        """The numbers as MLflow names metrics, such as "final/distance"."""
        found: dict[str, float | None] = {"distance": self.distance, "distance_standard_error": self.distance_standard_error}
        if self.likelihood is not None:
            found |= {
                "bits_per_dim": self.likelihood["bits_per_dim"],
                "bits_per_dim_standard_error": self.likelihood["standard_error"],
            }
        found |= {name: item["value"] for name, item in self.metrics.items()}
        return {f"{prefix}/{name}": float(value) for name, value in found.items() if value is not None}

"""The result of an evaluation: its numbers, and the protocol that they depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from evaluation.records.score_card import ScoreCardRow, distance_score, likelihood_score, metric_score
from evaluation.records.stored import CheckedAs, Number
from training import storage
from training.config.plain import PlainRecord
from training.config.validation import require


@dataclass(kw_only=True)
class _StoredReference:
    num_images: int = 0
    image_size: int = 0
    data_digest: str = ""
    extractor_sha256: str = ""


@dataclass(kw_only=True)
class _StoredDistance:
    num_samples: int
    sampler: str = ""
    low_res: str | None = None
    precision: str = ""
    arithmetic: str = ""
    reference: _StoredReference = field(default_factory=_StoredReference)


@dataclass(kw_only=True)
class _StoredLikelihoodProtocol:
    num_images: int = 0
    num_timesteps: int = 0
    split: str = ""
    decoder: str = ""


@dataclass(kw_only=True)
class _StoredSearch:
    max_images: int = 0
    false_alarm_rate: float = 0.0


@dataclass(kw_only=True)
class _StoredProtocol:
    distance: _StoredDistance
    likelihood: _StoredLikelihoodProtocol | None = None
    memorisation: _StoredSearch | None = None
    versions: dict[str, str] = field(default_factory=dict)
    model: str = ""
    device: str = ""


@dataclass(kw_only=True)
class _StoredLikelihood:
    bits_per_dim: float | None
    standard_error: float | None
    num_images: int
    timesteps: list[int] = field(default_factory=list)
    per_t: list[float | None] = field(default_factory=list)


@dataclass(kw_only=True)
class _StoredHeldOut:
    num_images: int
    real: float | None = None
    generated: float | None = None


@dataclass(kw_only=True)
class _StoredMetric:
    value: float | None
    standard_error: float | None
    note: str
    interval: list[float | None] | None = None
    method: str = ""
    bias: float | None = None

    def __post_init__(self) -> None:
        require(self.interval is None or len(self.interval) == 2, "interval", "must have two ends")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult(PlainRecord):
    """The numbers of one model and their protocol; stored as JSON.

    Attributes:
        checkpoint_uri: The checkpoint; for an ensemble, that of the middle member. `protocol` has the digests of all inputs.
        distance_name: "FID" only for the standard Inception network.
        distance: A finite number. A result of an earlier version may have null in JSON, for one that is not finite; it is read as NaN.
        distance_standard_error: Standard error over the draw of the samples; None if unknown.
        distance_without_blocks: The distance without each block of samples (`frechet.leave_one_out_distances`), to compare
            it with another model's on the same noise.
        distance_of_halves: Its distances of halves of the samples (`frechet.distances_of_halves`), for the error of a night.
        held_out: Distances of `num_images` real test images (`real`) and of as many samples (`generated`). They show the bias
            of a finite sample, whose distance is never zero. None if there are no test images,
            or for a number that no report is about.
        likelihood: Summary of the bits/dim; `per_image_uri` is the file with the value of each image. None if not computed.
        metrics: Further metrics by name: value, standard_error, interval, method, bias, note (`evaluation.distances.metric_value`).
        images_uri: The drawn images, if they were kept.
        created_at: UTC, ISO 8601.
    """

    checkpoint_uri: str
    weights: str
    step: int
    distance_name: str
    distance: Number
    distance_standard_error: float | None
    distance_without_blocks: list[Number] = field(default_factory=list)
    distance_of_halves: list[list[Number]] = field(default_factory=list)
    held_out: Annotated[dict[str, Any], CheckedAs(_StoredHeldOut)] | None = None
    likelihood: Annotated[dict[str, Any], CheckedAs(_StoredLikelihood)] | None = None
    metrics: Annotated[dict[str, Any], CheckedAs(dict[str, _StoredMetric])] = field(default_factory=dict)
    grid_uri: str = ""
    images_uri: str = ""
    protocol: Annotated[dict[str, Any], CheckedAs(_StoredProtocol)]
    experiment: dict[str, Any]
    created_at: str
    seconds: float

    def __post_init__(self) -> None:
        missing = self.likelihood is not None and self.protocol.get("likelihood") is None
        require(not missing, "protocol.likelihood", "must be there, as likelihood is")

    @property
    def rank(self) -> float:
        """The distance, or infinity if it is NaN (see `distance`), for choosing the smallest."""
        return self.distance if math.isfinite(self.distance) else math.inf

    @classmethod
    def read(cls, uri: str) -> EvaluationResult:
        """Read the result of an evaluation.

        Raises:
            ObjectNotFoundError: There is none.
            StorageError: The file is something else.
        """
        # Not `read_record`: the dictionaries inside keep the file's name, and a missing key is an error that says it.
        return cls.from_dict(storage.read_json(uri, cls))

    def score_card(self) -> list[ScoreCardRow]:
        """Return every number with its interval: the distance, bits/dim, and the further metrics in their order."""
        count = self.protocol["distance"]["num_samples"]
        card = [distance_score(self.distance_name, self.distance, self.distance_standard_error, self.distance_without_blocks, count)]
        if self.likelihood is not None:
            card.append(likelihood_score(self.likelihood, self.protocol["likelihood"]["split"]))
        return card + [metric_score(name, item) for name, item in self.metrics.items()]

    def flat_metrics(self, prefix: str = "final") -> dict[str, float]:
        """Return the numbers and the ends of their intervals under MLflow's names: "final/distance", "final/distance_low" and so on."""
        found: dict[str, float | None] = {}
        for score in self.score_card():
            found[score.name] = score.value
            if score.name in ("distance", "bits_per_dim"):
                found[f"{score.name}_standard_error"] = score.standard_error
            if score.interval is not None:
                found[f"{score.name}_low"], found[f"{score.name}_high"] = score.interval
        return {f"{prefix}/{name}": float(value) for name, value in found.items() if value is not None and math.isfinite(value)}

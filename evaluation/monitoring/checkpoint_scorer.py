"""One checkpoint's score beside training: every decay on common noise, few steps, few images, kept in the run's directory.

The same sample indices and seed at every checkpoint and for every decay: two scores then differ by the models and
hardly by the draw (about a fifteenth of the variance of independent draws was measured on small models). A score ranks
checkpoints of one run; a reported number takes the full protocol, with other seeds (`evaluation.evaluate.run`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.distances.frechet import BlockedMoments, FeatureStatistics, frechet_distance, standard_error
from evaluation.distances.reference_statistics import ReferenceStatistics, load_reference
from evaluation.features.extractors import FeatureExtractor, load_extractor
from evaluation.monitoring import early_stopping
from evaluation.records import grids
from evaluation.records.devices import choose_device, default_batch_size
from evaluation.records.protocol_card import as_plain, derived_seed, describe_sampling, versions
from evaluation.records.run_directory import EVALUATIONS, SAMPLES, checkpoint_digest, run_uri_of, score_uri
from evaluation.sampling.generate import QUANTIZATION, generate
from evaluation.sampling.low_res import LowRes, RealLowRes
from evaluation.sampling.trained_model import TrainedModel, load_model
from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import EvaluationConfig, Experiment, Precision

NUM_GRID_ROWS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointScorer:
    """Scores checkpoints and judges their history; plain data, so that it travels to another process.

    Attributes:
        evaluation: Of the experiment that is trained: counts, sampler, patience.
        reference_uri: Reference statistics.
        extractor_weights: Path or `s3://` URI of the extractor's weights, where it needs some.
        class_names: Names of the labels, for the sample grids.
        data_uri: The data set; an upsampler is given its training images, downsampled.
        batch_size: Images at a time; 0 takes what a network of this image size has room for.
        precision: "bf16" is good enough for a score, and several times as fast on a GPU.
        device: Where.
    """

    evaluation: EvaluationConfig
    reference_uri: str
    extractor_weights: str | None = None
    class_names: tuple[str, ...] = ()
    data_uri: str = ""
    batch_size: int = 0
    precision: Precision = "fp32"
    device: str = "auto"

    def score(self, checkpoint_uri: str) -> dict[str, Any]:
        """The score of one checkpoint; one that is kept for the same weights and protocol is read, not redone."""
        return score_checkpoint(
            checkpoint_uri,
            self.reference_uri,
            extractor_weights=self.extractor_weights,
            class_names=self.class_names,
            data_uri=self.data_uri,
            batch_size=self.batch_size,
            precision=self.precision,
            device=self.device,
        )

    def history(self, run_uri: str) -> list[dict[str, Any]]:
        """The kept scores, by step."""
        return read_history(run_uri)

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        """Why training should stop; None while it should not."""
        decision = early_stopping.decide(history, self.evaluation)
        return decision.reason if decision.stop else None

    def metrics(self, score: Mapping[str, Any]) -> dict[str, float]:
        """The distance of each decay, and the best of them, as MLflow names metrics."""
        finite = {weights: float(value) for weights, value in score["scores"].items() if value is not None}
        best = {"score/best": min(finite.values())} if finite else {}
        return best | {f"score/{weights}": value for weights, value in finite.items()}

    def image(self, score: Mapping[str, Any]) -> grids.Pixels | None:
        """The sample grid of a score, uint8 HWC; None where it is gone."""
        uri = score.get("grid_uri")
        return grids.from_png(storage.read_bytes(uri)) if uri and storage.exists(uri) else None

    def keep(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        """Steps whose checkpoints the final choice may want."""
        return early_stopping.steps_to_keep(history, self.evaluation)


def score_checkpoint(
    checkpoint_uri: str,
    reference_uri: str,
    *,
    extractor_weights: str | None = None,
    class_names: Sequence[str] = (),
    data_uri: str = "",
    batch_size: int = 0,
    precision: Precision = "fp32",
    device: str = "auto",
) -> dict[str, Any]:
    """Scores every decay of a checkpoint by the experiment's scoring protocol, and keeps score and sample grid.

    Args:
        checkpoint_uri: The checkpoint's directory inside the run's.
        reference_uri: Reference statistics; refused if they are of other images or another extractor.
        extractor_weights: Path or `s3://` URI of the extractor's weights.
        class_names: Names of the labels, for the grid.
        data_uri: The data set, for an upsampler.
        batch_size: Images at a time; 0 takes what a network of this image size has room for.
        precision: Of the network.
        device: Where.

    Returns:
        What is stored in `<run>/evaluations/step=NNNNNNNN.json`: `step`, `scores` and `standard_errors` by weights,
        `grid_uri`, `protocol`, `seconds`.

    Raises:
        CheckpointError: There is no such checkpoint.
        UserError: The reference can't be compared with it.
        UserError: The extractor's weights can't be had.
        UserError: It is an upsampler, and `data_uri` is not given.
    """
    started = time.monotonic()
    device = choose_device(device)
    experiment = checkpoint.load_experiment(checkpoint_uri)
    extractor = load_extractor(experiment.evaluation.extractor, weights=extractor_weights, device=device)
    batch_size = batch_size or default_batch_size(experiment.data.image_size)
    reference = load_reference(reference_uri)
    protocol = scoring_protocol(experiment, reference, extractor, precision)
    uri = score_uri(checkpoint_uri)
    identity = checkpoint_digest(checkpoint_uri)
    if storage.exists(uri):
        kept: dict[str, Any] = storage.read_json(uri)
        if kept.get("protocol") == protocol and kept.get("checkpoint_digest") == identity:
            return kept

    low_res_size = experiment.model.low_res_size
    low_res = RealLowRes(storage.join(data_uri, "train"), low_res_size) if data_uri and low_res_size is not None else None
    scores: dict[str, float] = {}
    errors: dict[str, float] = {}
    pictures: dict[str, grids.Pixels] = {}
    for weights in [name for name in checkpoint.weights_names(checkpoint_uri) if name != checkpoint.MODEL]:
        model = load_model(checkpoint_uri, weights, device=device)
        scores[weights], errors[weights], pictures[weights] = _score(
            model, reference.features, extractor, class_names=class_names, batch_size=batch_size, precision=precision, low_res=low_res
        )
    best = min(scores, key=lambda name: (scores[name] != scores[name], scores[name]), default=None)
    grid_uri = ""
    if best is not None:
        grid_uri = storage.join(run_uri_of(checkpoint_uri), SAMPLES, f"step={checkpoint.step_of(checkpoint_uri):08d}.png")
        storage.write_bytes(grid_uri, grids.to_png(pictures[best]))
    score: dict[str, Any] = as_plain(
        {
            "step": checkpoint.step_of(checkpoint_uri),
            "checkpoint_uri": checkpoint_uri,
            "checkpoint_digest": identity,
            "distance_name": protocol["distance"],
            "scores": scores,
            "standard_errors": errors,
            "best_weights": best,
            "grid_uri": grid_uri,
            "protocol": protocol,
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 2),
        }
    )
    storage.write_json(uri, score)
    return score


def _score(
    model: TrainedModel,
    reference: FeatureStatistics,
    extractor: FeatureExtractor,
    *,
    class_names: Sequence[str],
    batch_size: int,
    precision: Precision,
    low_res: LowRes | None,
) -> tuple[float, float, grids.Pixels]:
    evaluation = model.experiment.evaluation
    batches = generate(
        model,
        num_images=evaluation.scoring_num_samples,
        seed=derived_seed(model.experiment.seed, "score"),
        sampling=evaluation.scoring_sampling,
        batch_size=batch_size,
        precision=precision,
        low_res=low_res,
    )
    blocks = BlockedMoments(extractor.dim, evaluation.scoring_num_samples)
    shown = []
    num_shown = 0
    for indices, images, labels in batches:
        blocks.update(indices, extractor(images))
        if num_shown < NUM_GRID_ROWS * max(10, model.num_classes):
            shown.append((images, labels))
            num_shown += len(images)
    images = torch.cat([part for part, _ in shown])
    labels = torch.cat([y for _, y in shown if y is not None]) if model.num_classes else None
    picture = grids.class_grid(images, labels, class_names, num_rows=NUM_GRID_ROWS)
    return frechet_distance(reference, blocks.total()), standard_error(reference, blocks), picture


def scoring_protocol(
    experiment: Experiment, reference: ReferenceStatistics, extractor: FeatureExtractor, precision: Precision
) -> dict[str, Any]:
    """The card of a score: what has to agree for two scores to be of one history.

    Raises:
        UserError: The reference can't be compared with the experiment's images.
    """
    provenance = reference.require(extractor=extractor, experiment=experiment)
    evaluation = experiment.evaluation
    card: dict[str, Any] = as_plain(
        {
            "distance": provenance.distance_name,
            "num_samples": evaluation.scoring_num_samples,
            "sampling": dataclasses.asdict(evaluation.scoring_sampling),
            "sampler": describe_sampling(evaluation.scoring_sampling, experiment.diffusion.num_timesteps),
            "seed": derived_seed(experiment.seed, "score"),
            "labels": "balanced" if experiment.model.class_conditional else None,
            "quantization": QUANTIZATION,
            "precision": precision,
            "reference": provenance.to_dict(),
        }
    )
    return card


def read_history(run_uri: str) -> list[dict[str, Any]]:
    """The scores that are kept in a run's directory, by step."""
    uris = [uri for uri in storage.list_uris(storage.join(run_uri, EVALUATIONS)) if uri.rpartition("/")[2].startswith("step=")]
    return sorted((storage.read_json(uri) for uri in uris), key=lambda score: int(score["step"]))

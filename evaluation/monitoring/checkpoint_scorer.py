"""The score of a checkpoint during training: every EMA decay on common noise, few steps, few images.

All checkpoints and decays use the same sample indices and seed, so two scores differ by the models and hardly by the draw
(measured on small models: a fifteenth of the variance of independent draws). A score ranks checkpoints of one run; a
reported number takes the full protocol and other seeds (`evaluation.evaluate.run`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from evaluation.distances.reference_statistics import ReferenceStatistics, load_reference
from evaluation.distances.sample_scorer import SampleScorer, SampleScores
from evaluation.features.extractors import FeatureExtractor, load_extractor
from evaluation.monitoring import early_stopping
from evaluation.records import grids
from evaluation.records.devices import choose_device
from evaluation.records.not_finite import NotFiniteError
from evaluation.records.protocol_card import derived_seed, describe_sampling, versions
from evaluation.records.run_directory import EVALUATIONS, SAMPLES, run_uri_of
from evaluation.records.stored import finite_scores
from evaluation.sampling.generate import QUANTIZATION, LowRes, RealLowRes, generate
from evaluation.sampling.trained_model import TrainedModel, checkpoint_digest, load_model
from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import EvaluationConfig, Experiment, Precision, SamplingConfig
from training.config.plain import as_plain, as_plain_fields
from training.console import say

_Score = TypeVar("_Score", bound=Mapping[str, Any])


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointScorer:
    """Scores checkpoints and decides when to stop. It is plain data, so that it can be sent to another process.

    Attributes:
        evaluation: Evaluation section of the experiment that is trained: counts, sampler, patience.
        extractor_weights: See `evaluation.features.extractors.load_extractor`.
        class_names: Names of the labels, for the sample grids.
        data_uri: The data set; an upsampler enlarges its training images, downsampled.
        batch_size: Images per batch; 0 takes what suits the device.
        precision: "bf16" is good enough for a score, and several times as fast on a GPU.
        stop_rule: A further rule: it takes the scores, and returns a reason to stop or None. A tuning prunes by it.
    """

    evaluation: EvaluationConfig
    reference_uri: str
    extractor_weights: str | None = None
    class_names: tuple[str, ...] = ()
    data_uri: str = ""
    batch_size: int = 0
    precision: Precision = "fp32"
    device: str = "auto"
    stop_rule: Callable[[Sequence[Mapping[str, Any]]], str | None] | None = None

    def score(self, checkpoint_uri: str) -> dict[str, Any]:
        """Score every decay of a checkpoint by the experiment's scoring protocol, and store score and sample grid.

        A stored score of the same weights and protocol is read, not computed again.

        Returns:
            The content of `<run>/evaluations/step=NNNNNNNN.json`: `step`, `scores`, `standard_errors` and `without_blocks` (the
            distances without each block of samples) by weights, `grid_uri`, `protocol`, `seconds`. A score is null where images or
            their features are not finite.

        Raises:
            CheckpointError: There is no such checkpoint.
            UserError: The reference can't be compared with it, the extractor's weights can't be read, or it is an upsampler
                and `data_uri` is empty.
        """
        started = time.monotonic()
        device = choose_device(self.device)
        experiment = checkpoint.load_experiment(checkpoint_uri)
        extractor = load_extractor(experiment.evaluation.extractor, weights=self.extractor_weights, device=device)
        reference = load_reference(self.reference_uri)
        protocol = scoring_protocol(experiment, reference, extractor, self.precision)
        digest = checkpoint_digest(checkpoint_uri)
        uri = score_uri(checkpoint_uri)
        if storage.exists(uri):
            stored: dict[str, Any] = storage.read_json(uri)
            if stored.get("protocol") == protocol and stored.get("checkpoint_digest") == digest:
                return stored

        low_res_size = experiment.model.low_res_size
        low_res = RealLowRes(storage.join(self.data_uri, "train"), low_res_size) if self.data_uri and low_res_size is not None else None
        scores: dict[str, float] = {}
        errors: dict[str, float | None] = {}
        without_blocks: dict[str, list[float]] = {}
        pictures: dict[str, grids.Pixels] = {}
        averages = [name for name in checkpoint.weights_names(checkpoint_uri) if name != checkpoint.MODEL]
        for weights in averages or [checkpoint.MODEL]:
            model = load_model(checkpoint_uri, weights, device=device)
            try:
                found, pictures[weights] = self._score_weights(model, reference, extractor, low_res)
            except NotFiniteError as error:  # training goes on, and early stopping counts it as no gain
                say(f"{weights} has no score: {error}")
                scores[weights], errors[weights], without_blocks[weights] = math.nan, None, []
                continue
            scores[weights], errors[weights], without_blocks[weights] = found.distance, found.standard_error, found.leave_one_out
        step = checkpoint.step_of(checkpoint_uri)
        best = min(scores, key=lambda name: (math.isnan(scores[name]), scores[name]))
        grid_uri = ""
        if best in pictures:
            grid_uri = storage.join(run_uri_of(checkpoint_uri), SAMPLES, f"step={step:08d}.png")
            storage.write_bytes(grid_uri, grids.to_png(pictures[best]))
        score = as_plain(
            {
                "step": step,
                "checkpoint_uri": checkpoint_uri,
                "checkpoint_digest": digest,
                "distance_name": protocol["distance"],
                "scores": scores,
                "standard_errors": errors,
                "without_blocks": without_blocks,
                "best_weights": best,
                "grid_uri": grid_uri,
                "protocol": protocol,
                "versions": versions(),
                "seconds": round(time.monotonic() - started, 2),
            }
        )
        storage.write_json(uri, score)
        return score

    def history(self, run_uri: str) -> list[dict[str, Any]]:
        """Return the stored scores, by step."""
        return read_history(run_uri)

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        """Return why training should stop, or None. Scores that were taken by other settings don't count."""
        history = comparable(history, self.evaluation)
        decision = early_stopping.decide(history, self.evaluation)
        if decision.stop or self.stop_rule is None:
            return decision.reason if decision.stop else None
        return self.stop_rule(history)

    def metrics(self, score: Mapping[str, Any]) -> dict[str, float]:
        """Return the distance of each decay and the best of them, under MLflow's metric names."""
        finite = finite_scores(score)
        best = {"score/best": min(finite.values())} if finite else {}
        return best | {f"score/{weights}": value for weights, value in finite.items()}

    def image(self, score: Mapping[str, Any]) -> grids.Pixels | None:
        """Return the sample grid of a score, uint8 HWC; None if its file was deleted."""
        uri = score.get("grid_uri")
        return grids.from_png(storage.read_bytes(uri)) if uri and storage.exists(uri) else None

    def keep(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        """Return the steps of the checkpoints that the final choice may need: its candidates, and the one that guides them."""
        guide = self.evaluation.sampling.guidance_step
        candidates = [
            candidate
            for scores in (history, comparable(history, self.evaluation))
            for candidate in early_stopping.best_checkpoints(scores, self.evaluation.rescore_best, after=guide)
        ]
        return {candidate.step for candidate in candidates} | ({guide} if guide else set())

    def _score_weights(
        self, model: TrainedModel, reference: ReferenceStatistics, extractor: FeatureExtractor, low_res: LowRes | None
    ) -> tuple[SampleScores, grids.Pixels]:
        """Return the scores and the sample grid of one set of weights."""
        evaluation = model.experiment.evaluation
        scorer = SampleScorer(extractor, evaluation.scoring_num_samples)
        grid = grids.ClassGrid(self.class_names)
        for indices, images, labels in generate(
            model,
            num_images=evaluation.scoring_num_samples,
            seed=derived_seed(model.experiment.seed, "score"),
            sampling=evaluation.scoring_sampling,
            batch_size=self.batch_size,
            precision=self.precision,
            low_res=low_res,
        ):
            scorer.update(indices, images)
            grid.update(images, labels if model.num_classes else None)
        return scorer.scores(reference), grid.pixels()


def scoring_protocol(
    experiment: Experiment, reference: ReferenceStatistics, extractor: FeatureExtractor, precision: Precision
) -> dict[str, Any]:
    """Return the protocol card of a score, equal for all of a history; refuse a reference of other images than the experiment's."""
    provenance = reference.require(extractor=extractor, experiment=experiment)
    evaluation = experiment.evaluation
    return as_plain(
        {
            "distance": provenance.distance_name,
            "num_samples": evaluation.scoring_num_samples,
            "sampling": as_plain_fields(evaluation.scoring_sampling),
            "sampler": describe_sampling(evaluation.scoring_sampling, experiment.diffusion.num_timesteps),
            "seed": derived_seed(experiment.seed, "score"),
            "labels": "balanced" if experiment.model.class_conditional else None,
            "quantization": QUANTIZATION,
            "precision": precision,
            "reference": provenance.to_dict(),
        }
    )


def score_uri(checkpoint_uri: str) -> str:
    """Return the file of a checkpoint's score."""
    return storage.join(run_uri_of(checkpoint_uri), EVALUATIONS, f"step={checkpoint.step_of(checkpoint_uri):08d}.json")


_NUM_READERS = 16


@dataclass(kw_only=True)
class _StoredProtocol:
    num_samples: int
    sampler: str


@dataclass(kw_only=True)
class StoredScore:
    """Types of the fields of a stored score; scores of earlier versions lack those with a default."""

    step: int
    scores: dict[str, float | None]
    standard_errors: dict[str, float | None] | None = None
    without_blocks: dict[str, list[float | None] | None] | None = None
    distance_name: str = ""
    protocol: _StoredProtocol = field(default_factory=lambda: _StoredProtocol(num_samples=0, sampler=""))


def read_history(run_uri: str) -> list[dict[str, Any]]:
    """Read the scores in a run's directory, by step."""
    uris = [uri for uri in storage.list_uris(storage.join(run_uri, EVALUATIONS)) if uri.rpartition("/")[2].startswith("step=")]
    with ThreadPoolExecutor(_NUM_READERS) as pool:  # there may be a thousand
        return sorted(pool.map(lambda uri: storage.read_json(uri, StoredScore), uris), key=lambda score: int(score["step"]))


def read_comparable(run_uri: str, evaluation: EvaluationConfig) -> list[dict[str, Any]]:
    """Read the scores in a run's directory that were taken by these settings, by step; all scores where none was."""
    history = read_history(run_uri)
    return comparable(history, evaluation) or history


def comparable(history: Iterable[_Score], evaluation: EvaluationConfig) -> list[_Score]:
    """Return the scores that were taken by these settings. A setting that a score of an earlier version does not record fits any.

    A run's directory has scores of several settings if its training went on with others, and scores of fewer samples are larger. The
    data set may have fewer images than wanted, and a given reference more: if no score has the wanted reference, the largest one counts.
    """
    history = list(history)
    sampling = as_plain_fields(evaluation.scoring_sampling)
    defaults = as_plain_fields(SamplingConfig())
    counts = {_num_reference_images(score) or 0 for score in history} | {0}
    wanted = evaluation.num_reference_images
    num_reference_images = wanted if wanted in counts else max(counts)

    def is_comparable(score: Mapping[str, Any]) -> bool:
        protocol = score.get("protocol", {})
        stored, reference = protocol.get("sampling"), protocol.get("reference", {})
        return (
            protocol.get("num_samples") in (None, evaluation.scoring_num_samples)
            and (stored is None or defaults | stored == defaults | sampling)
            and reference.get("extractor") in (None, evaluation.extractor)
            and _num_reference_images(score) in (None, num_reference_images)
        )

    return [score for score in history if is_comparable(score)]


def _num_reference_images(score: Mapping[str, Any]) -> int | None:
    """Return the number of real images behind a score; None where an earlier version did not store it."""
    count: int | None = score.get("protocol", {}).get("reference", {}).get("num_images")
    return count

"""Joint measurements of several trials: the ensemble of two models, and a cascade of two stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from evaluation.ablations.definitions.ablation import Joint
from evaluation.ablations.trials.measures import draw_samples
from evaluation.ablations.trials.record import AblationTrial
from evaluation.ablations.trials.trial_model import TrialModel
from evaluation.evaluate.preflight import preflight
from evaluation.records.run_directory import SAMPLES
from evaluation.sampling import sample_set
from evaluation.sampling.trained_model import ModelSpec, checkpoint_digest
from training import storage

ENDS_SHARE = 40
"""T over the width of the ensemble's ends: the first and last 100 of 4000 timesteps (supplement section 4)."""


def measure_jointly(joint: Joint, models: Mapping[str, TrialModel]) -> AblationTrial:
    """Measure an ensemble or a cascade of the models, given by role. The record lacks the data set, which the caller adds."""
    return ensemble(models) if joint == "ensemble" else cascade(models)


def input_digests(trials: Sequence[AblationTrial]) -> dict[str, dict[str, str]]:
    """Return the digest of each trial's checkpoint and its weights, on which a joint measurement depends.

    A joint record carries them in `data["inputs"]`. A trial that is trained again has another checkpoint at the same URI, and
    makes the joint record outdated.
    """
    return {trial.label: {"checkpoint_digest": checkpoint_digest(trial.checkpoint_uri), "weights": trial.weights} for trial in trials}


def ensemble(models: Mapping[str, TrialModel]) -> AblationTrial:
    """Measure theta_vlb for the first and last T/40 timesteps with theta_hybrid between, on the protocol and noise of its parts.

    Source: supplement section 4, figure 4.

    Raises:
        UserError: The two models cannot form an ensemble.
    """
    middle, ends = models["hybrid"], models["vlb"]
    width = middle.experiment.diffusion.num_timesteps // ENDS_SHARE
    spec = ModelSpec(
        checkpoint_uri=middle.checkpoint_uri,
        weights=middle.weights,
        ends_checkpoint_uri=ends.checkpoint_uri,
        ends_weights=ends.weights,
        ends_width=width,
    )
    result = middle.evaluate(spec, result_name="ensemble")
    measures = {"final": result.to_dict(), "samples": draw_samples(middle, spec=spec, name="ensemble-"), "ends_width": width}
    return AblationTrial(label="ensemble", role="ensemble", **middle.to_record(), measures=measures)


def cascade(models: Mapping[str, TrialModel]) -> AblationTrial:
    """Measure the second stage on the first stage's samples, each stage by its own reported sampler.

    Source: supplement section 3, table 2, figure 2.
    """
    first, second = models["first-stage"], models["second-stage"]
    large = preflight(second.spec, second.data_uri, second.reference_uri, replace(second.options, likelihood=False)).samples
    small = sample_set.plan_samples(
        first.spec,
        first.spec.load(first.options.own_device),
        num_images=large.num_images,
        seed=large.seed,
        sampling=first.experiment.evaluation.sampling,
        labels="balanced",
        class_counts=(),
        data_uri=first.data_uri,
        batch_size=large.batch_size,
    )
    small = replace(small, chunk_size=large.chunk_size)  # so that a chunk of the second stage reads one of the first
    # Another sampler of the first stage, or another seed of the second, must not meet these images.
    key = hashlib.sha256(json.dumps(small.to_dict()).encode()).hexdigest()[:12]
    small_uri = storage.join(first.run_uri, SAMPLES, f"first-stage-{first.step:08d}-{first.weights}-{key}")
    sample_set.draw(small, small_uri, num_workers=first.options.num_workers, device=first.options.worker_device)
    result = second.evaluate(likelihood=False, result_name="two-stage", keep_images=True, low_res_uri=small_uri)
    stages = {"first_uri": sample_set.chunk_uri(small_uri, 0), "second_uri": sample_set.chunk_uri(result.images_uri, 0)}
    measures = {"final": result.to_dict(), "stages": stages}
    return AblationTrial(label="two-stage", role="two-stage", **second.to_record(), measures=measures)

"""What is taken of several trials together: the ensemble of two models, and a cascade of two stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.ablations.trials.measures import NUM_PAIRED_IMAGES, sample_images
from evaluation.ablations.trials.record import TrialModel, TrialRecord
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.preflight import preflight
from evaluation.evaluate.run import evaluate
from evaluation.records.protocol_card import describe_sampling
from evaluation.sampling import sample_set
from evaluation.sampling.trained_model import ModelSpec
from evaluation.selection.final_choice import stored_result
from training import storage

ENDS_SHARE = 40
"""Supplement section 4: the first and last 100 of 4000 timesteps."""


def ensemble(subjects: Mapping[str, TrialModel]) -> TrialRecord:
    """theta_vlb for the first and last T/40 timesteps and theta_hybrid between, by the protocol of its parts and on their noise.

    Source: supplement section 4, figure 4.

    Args:
        subjects: "hybrid" and "vlb".

    Raises:
        EnsembleError: The two don't go together.
    """
    middle, ends = subjects["hybrid"], subjects["vlb"]
    width = middle.experiment.diffusion.num_timesteps // ENDS_SHARE
    spec = ModelSpec(
        checkpoint_uri=middle.checkpoint_uri,
        weights=middle.weights,
        ends_checkpoint_uri=ends.checkpoint_uri,
        ends_weights=ends.weights,
        ends_width=width,
    )
    options = EvaluationOptions(result_name="ensemble")
    result = stored_result(spec, middle.data_uri, middle.reference_uri, options) or evaluate(
        spec, middle.data_uri, middle.reference_uri, options=options
    )
    sampling = middle.experiment.evaluation.sampling
    return _record(
        middle,
        "ensemble",
        {
            "final": result.to_dict(),
            "samples": {
                "images_uri": sample_images(middle, sampling, NUM_PAIRED_IMAGES, spec=spec, name="ensemble-"),
                "sampler": describe_sampling(sampling, middle.experiment.diffusion.num_timesteps),
                "num_images": NUM_PAIRED_IMAGES,
            },
            "ends_width": width,
        },
    )


def cascade(subjects: Mapping[str, TrialModel]) -> TrialRecord:
    """The second stage on the first stage's samples, each by its own reported sampler.

    Source: supplement section 3, table 2, figure 2.

    Args:
        subjects: "first-stage" and "second-stage".
    """
    first, second = subjects["first-stage"], subjects["second-stage"]
    options = EvaluationOptions(likelihood=False, result_name="two-stage", keep_images=True)
    spec = ModelSpec(checkpoint_uri=second.checkpoint_uri, weights=second.weights)
    # The second stage reads the first one's images chunk by chunk, so both are cut alike.
    cut = preflight(spec, second.data_uri, second.reference_uri, options).plan
    small = sample_set.SamplePlan(
        model=ModelSpec(checkpoint_uri=first.checkpoint_uri, weights=first.weights),
        num_images=cut.num_images,
        seed=cut.seed,
        sampling=first.experiment.evaluation.sampling,
        batch_size=cut.batch_size,
        chunk_size=cut.chunk_size,
    )
    small_uri = storage.join(first.run_uri, "samples", f"first-stage-{first.step:08d}-{first.weights}-{cut.num_images}")
    sample_set.draw(small, small_uri)
    options = EvaluationOptions(likelihood=False, result_name="two-stage", keep_images=True, low_res_uri=small_uri)
    result = stored_result(spec, second.data_uri, second.reference_uri, options) or evaluate(
        spec, second.data_uri, second.reference_uri, options=options
    )
    return _record(
        second,
        "two-stage",
        {
            "final": result.to_dict(),
            "stages": {"first_uri": sample_set.chunk_uri(small_uri, 0), "second_uri": sample_set.chunk_uri(result.images_uri, 0)},
        },
    )


def _record(subject: TrialModel, role: str, measures: dict[str, Any]) -> TrialRecord:
    return TrialRecord(
        label=role,
        role=role,
        run_uri=subject.run_uri,
        checkpoint_uri=subject.checkpoint_uri,
        weights=subject.weights,
        step=subject.step,
        experiment=subject.experiment.to_dict(),
        measures=measures,
    )

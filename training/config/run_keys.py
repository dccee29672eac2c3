"""The name of a run: what its training depends on, as ten hexadecimal digits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from training.config.experiment import EvaluationConfig, Experiment
from training.config.presets import PRESETS

EVALUATION_ONLY = (
    "num_samples",
    "sampling",
    "rescore_best",
    "likelihood_split",
    "likelihood_num_images",
    "likelihood_form",
    "likelihood_steps",
)
"""Fields of the evaluation section that neither training nor the scores beside it read."""

# The fields at the time of the first key. They are part of every key; a later field only where it differs from its default, so that
# a new field changes no key.
_FIRST_FIELDS = {
    "": "name data model diffusion optim evaluation seed",
    "data": "name image_size image_channels num_classes resize random_flip disk_budget_bytes",
    "model": "model_channels channel_mult num_res_blocks attention_resolutions num_heads use_scale_shift_norm dropout "
    "class_conditional low_res_size",
    "diffusion": "num_timesteps schedule objective variance prediction vlb_weight stop_gradient timestep_sampler rescale_timesteps",
    "optim": "global_batch_size learning_rate num_steps lr_anneal_steps adam_betas adam_eps weight_decay grad_clip_norm ema_decays "
    "ema_snapshot_stds checkpoint_interval",
    "evaluation": "extractor num_samples num_reference_images sampling scoring_num_samples scoring_sampling patience min_gain min_steps "
    "rescore_best likelihood_split likelihood_num_images likelihood_form likelihood_steps",
    "evaluation.sampling": "method spacing eta clip_denoised",
    "evaluation.scoring_sampling": "method spacing eta clip_denoised",
}


def run_key(experiment: Experiment, data_digest: str) -> str:
    """Return the name of the run's directory and of its MLflow run: the same training on the same data has the same key.

    Args:
        data_digest: Content digest of the data set, from its manifest.

    Returns:
        The experiment's name and ten hexadecimal digits.
    """
    return _key(experiment.name, training_fields(experiment), data_digest)


def run_keys(experiment: Experiment, data_digest: str) -> tuple[str, ...]:
    """Return `run_key`, then the keys that earlier releases gave this experiment, where they differ.

    A run that was made under one of these keys is the same run: look for its directory in this order.
    """
    # All of the evaluation section was part of the key before.
    return tuple(dict.fromkeys((run_key(experiment, data_digest), _key(experiment.name, _fields(experiment, ""), data_digest))))


def training_fields(experiment: Experiment) -> dict[str, Any]:
    """Return the fields that training depends on, as a nested dictionary; equal trainings have equal dictionaries.

    A field that only evaluation reads has the value of the preset, or its default where no preset has this name.
    """
    usual = PRESETS[experiment.name].experiment.evaluation if experiment.name in PRESETS else EvaluationConfig()
    fields, usual_fields = _fields(experiment, ""), _fields(usual, "evaluation")
    fields["evaluation"] |= {name: usual_fields[name] for name in EVALUATION_ONLY}
    return fields


def same_training(first: Experiment, second: Experiment) -> bool:
    """Return True for experiments that differ in nothing that training reads."""
    return training_fields(first) == training_fields(second)


def _key(name: str, fields: dict[str, Any], data_digest: str) -> str:
    identity = json.dumps([fields, data_digest], sort_keys=True)
    return f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


def _fields(section: Any, path: str) -> dict[str, Any]:
    """Return a section as a plain dictionary: all of the first fields, and the later ones that differ from their defaults."""
    first, plain = _FIRST_FIELDS[path].split(), {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = _fields(value, f"{path}.{field.name}" if path else field.name)
        elif field.name in first or value != field.default:
            plain[field.name] = value
    return plain

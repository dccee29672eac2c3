"""The name of a run: what its training depends on, as ten hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from training.config.experiment import EvaluationConfig, Experiment
from training.config.plain import as_plain_fields
from training.config.presets import PRESETS

EVALUATION_ONLY = (
    "num_samples",
    "sampling",
    "rescore_best",
    "likelihood_split",
    "likelihood_num_images",
    "likelihood_form",
    "likelihood_steps",
    "memorisation",
    "metrics",
)
"""Fields of the evaluation section that are left out of the key: those of the reported evaluation.

Of them training reads `rescore_best` and `sampling.guidance_step`, for the checkpoints that it keeps and the step at which it may stop.
"""


def run_key(experiment: Experiment, data_digest: str) -> str:
    """Return the experiment's name and ten hexadecimal digits, which name the run's directory and its MLflow run.

    The same training on the same data (the content digest in its manifest) has the same key.
    """
    return _key(experiment.name, training_fields(experiment), data_digest)


def run_keys(experiment: Experiment, data_digest: str) -> tuple[str, ...]:
    """Return `run_key`, then the keys that earlier releases gave this experiment, where they differ.

    A run that was made under one of these keys is the same run: look for its directory in this order.
    """
    # All of the evaluation section was part of the key before.
    return tuple(dict.fromkeys((run_key(experiment, data_digest), _key(experiment.name, as_plain_fields(experiment), data_digest))))


def training_fields(experiment: Experiment) -> dict[str, Any]:
    """Return the fields that training depends on, as a nested dictionary; equal trainings have equal dictionaries.

    A field of `EVALUATION_ONLY` has the value of the preset, or its default where no preset has this name.
    """
    usual = PRESETS[experiment.name].experiment.evaluation if experiment.name in PRESETS else EvaluationConfig()
    fields, usual_fields = as_plain_fields(experiment), as_plain_fields(usual)
    for name in EVALUATION_ONLY:
        fields["evaluation"].pop(name, None)  # a later field is in the dictionary only where it differs from its default
        if name in usual_fields:
            fields["evaluation"][name] = usual_fields[name]
    return fields


def same_training(first: Experiment, second: Experiment) -> bool:
    """Return True for experiments with equal `training_fields`."""
    return training_fields(first) == training_fields(second)


def _key(name: str, fields: dict[str, Any], data_digest: str) -> str:
    identity = json.dumps([fields, data_digest], sort_keys=True)
    return f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

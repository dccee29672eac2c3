"""What the components call: from names and URIs to objects, and back to a URI.

Nothing here knows Kubeflow, so every step is also a function for Python and for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training import storage
from training.ablations import trials
from training.presets import preset
from training.progress import say


def make_reference(experiment_preset: str, experiment_overrides: Sequence[str], data_uri: str, storage_root_uri: str) -> str:
    """Statistics of the training images in the experiment's extractor; see `evaluation.reference.compute_reference`."""
    from evaluation.features import load_extractor
    from evaluation.reference import compute_reference

    evaluation = preset(experiment_preset, experiment_overrides).evaluation
    extractor = load_extractor(evaluation.extractor)
    statistics = compute_reference(
        storage.join(data_uri, "train"), extractor, storage.join(storage_root_uri, "references"), evaluation.num_reference_images
    )
    say(f"{statistics.features.num_images:,} training images in {extractor.dim} features of {extractor.name}")
    return statistics.uri


def list_trials(ablation_name: str, experiment_preset: str, experiment_overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The trials of an ablation as the pipeline's loop takes them."""
    planned = trials(ablation_name, experiment_preset, experiment_overrides)
    say(f"{ablation_name}: {len(planned)} trials")
    return [{"label": trial.name, "overrides": list(trial.overrides)} for trial in planned]

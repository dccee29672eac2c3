"""The steps around evaluation: reference statistics, the reported numbers, and where they are noted.

Nothing here knows Kubeflow, so every step is also a function for Python and for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from components.training_run import RESULT
from training import storage
from training.config import Experiment
from training.presets import preset
from training.progress import say

LogMetric = Callable[[str, float], None]


def reference_for(experiment: Experiment, data_uri: str, storage_root_uri: str) -> str:
    """Statistics of the training images in the experiment's extractor; see `evaluation.reference.compute_reference`."""
    from evaluation.features import load_extractor
    from evaluation.reference import compute_reference

    evaluation = experiment.evaluation
    extractor = load_extractor(evaluation.extractor)
    statistics = compute_reference(
        storage.join(data_uri, "train"), extractor, storage.join(storage_root_uri, "references"), evaluation.num_reference_images
    )
    say(f"{statistics.features.num_images:,} training images in {extractor.dim} features of {extractor.name}")
    return statistics.uri


def make_reference(experiment_preset: str, experiment_overrides: Sequence[str], data_uri: str, storage_root_uri: str) -> str:
    """`reference_for` in words that a pipeline can carry."""
    return reference_for(preset(experiment_preset, experiment_overrides), data_uri, storage_root_uri)


def evaluate_run(run_uri: str, data_uri: str, reference_uri: str, *, log_metric: LogMetric) -> str:
    """The reported numbers of a run's best checkpoint, in its directory, in MLflow and in the registry.

    Args:
        run_uri: A finished run's directory.
        data_uri: The data set that it was trained on.
        reference_uri: Reference statistics.
        log_metric: Is given every number by name, for the pipeline's page.

    Returns:
        URI of the result.
    """
    from evaluation.run import EvaluationOptions
    from training.registry import register
    from training.tracking import attach

    trained = storage.read_json(storage.join(run_uri, RESULT))
    options = EvaluationOptions()
    result, uri = kept_or_new(trained["best_checkpoint_uri"], trained["best_weights"], data_uri, reference_uri, options)
    for name, value in result.flat_metrics().items():
        log_metric(name.rpartition("/")[2], value)
    tracked = attach(trained["tracking_run_id"])
    tracked.log_metrics(result.flat_metrics(), result.step)
    tracked.set_tags(
        {"iddpm.best_checkpoint_uri": result.checkpoint_uri, "iddpm.best_weights": result.weights, "iddpm.evaluation_uri": uri}
    )
    tracked.flush()
    register(
        result.experiment["name"],
        run_id=tracked.run_id,
        checkpoint_uri=result.checkpoint_uri,
        weights=result.weights,
        distance_name=result.distance_name,
        distance=result.distance,
        data_uri=data_uri,
    )
    return uri


def kept_or_new(checkpoint_uri: str, weights: str | None, data_uri: str, reference_uri: str, options: Any) -> tuple[Any, str]:
    """The kept result where one stands under the same protocol for the same weights, else a new one; and its URI."""
    from evaluation.models import ModelSpec
    from evaluation.preflight import preflight
    from evaluation.result import EvaluationResult
    from evaluation.run import evaluate
    from evaluation.scoring import EVALUATIONS, run_uri_of

    uri = storage.join(run_uri_of(checkpoint_uri), EVALUATIONS, f"{options.result_name}.json")
    if storage.exists(uri):
        kept = EvaluationResult.from_dict(storage.read_json(uri))
        spec = ModelSpec(checkpoint_uri=checkpoint_uri, weights=weights)
        if kept.protocol == preflight(spec, data_uri, reference_uri, options).card and storage.exists(kept.grid_uri):
            say(f"step {kept.step:,} ({kept.weights}) was evaluated by this protocol before: {kept.distance_name} {kept.distance:.4g}")
            return kept, uri
    return evaluate(checkpoint_uri, data_uri, reference_uri, weights=weights, options=options), uri

"""The step that compares models: their evaluations on the same noise, a page in S3, and a run in MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.steps.evaluate import evaluation_options
from components.steps.reference import reference_for
from components.steps.run_messages import End, tell_end
from components.steps.settings import require_no_blanks_around
from components.steps.studies import log_study
from evaluation.records.numbers import format_estimate
from training import storage
from training.config.errors import UserError
from training.console import say
from training.tracking.client import TrackingError

COMPARISONS = "comparisons"
"""Directory of comparisons below the storage root."""


def compare_models(models: Sequence[str], num_samples: int, storage_root_uri: str, resources: Mapping[str, Any]) -> str:
    """Compare models by the protocol of the first one; what an earlier try has evaluated is not evaluated again.

    Args:
        models: Two or more, each `models:/NAME@ALIAS`, `runs:/ID`, a run's key or directory, or a checkpoint's.
        num_samples: Number of images sampled from each; 0 takes that of the first model's experiment.
        storage_root_uri: Where reference statistics and the comparison are stored.
        resources: Number of processes that draw samples; fields of `training.config.experiment.Resources`.

    Returns:
        URI of the page, `<root>/comparisons/<key>/comparison.html`. The step succeeds even if MLflow is away.

    Raises:
        UserError: There is no such model, a name has a blank around it, there are fewer than two, they make different images, or the
            data set is not known.
    """
    from evaluation.selection.resolve import resolve_model
    from evaluation.studies.compare import compare
    from evaluation.studies.comparison_page import as_study
    from training.checkpoints.checkpoint import load_experiment

    for model in models:
        require_no_blanks_around("models", model)
    found = [resolve_model(model) for model in models]
    if not found or not found[0].data_uri:
        raise UserError(f"the data set of {models[0] if models else 'no model'} is not known; name two or more finished runs")
    experiment, specs = load_experiment(found[0].checkpoint_uri), [each.spec() for each in found]
    reference_uri = reference_for(experiment, found[0].data_uri, storage_root_uri, models=specs)
    options = dataclasses.replace(evaluation_options(experiment, storage_root_uri, resources), num_samples=num_samples or None)
    study = as_study(compare(specs, found[0].data_uri, reference_uri, options=options))
    directory = storage.join(storage_root_uri, COMPARISONS, study.key)
    for name, content in study.files.items():
        storage.write_bytes(storage.join(directory, name), content)
    say(study.text)
    try:
        say(f"in MLflow: {log_study(study, [each.tracking_run_id for each in found])}")
    except TrackingError as error:
        say(f"{error}; {directory} has everything")
    return storage.join(directory, "comparison.html")


@dataclass(kw_only=True)
class _StoredNumbers:
    distance_name: str
    distance: float | None
    distance_standard_error: float | None


@dataclass(kw_only=True)
class _StoredModel:
    name: str
    result: _StoredNumbers


@dataclass(kw_only=True)
class _StoredComparison:
    models: list[_StoredModel]


def tell_comparison(page_uri: str, pipeline_run_id: str, storage_root_uri: str) -> None:
    """Tell the webhook that the comparison of that page is done: the distance of each model, and its difference to the first one."""
    models = []
    for row in storage.read_json(storage.join(page_uri.rpartition("/")[0], "comparison.json"), _StoredComparison)["models"]:
        result = row["result"]
        distance = {"distance": result["distance"], "standard_error": result["distance_standard_error"]}
        models.append(
            {"name": row["name"], "distance_name": result["distance_name"], **distance, "difference": row.get("distance_difference")}
        )
    words = "; ".join(
        f"{each['name']} {'not finite' if each['distance'] is None else format_estimate(each['distance'], each['standard_error'])}"
        for each in models
    )
    numbers = {"summary": f"{models[0]['distance_name']} of {words}", "models": models, "page_uri": page_uri}
    tell_end(End(succeeded=True), pipeline_run_id, storage_root_uri, name=f"comparison of {len(models)} models", numbers=numbers)

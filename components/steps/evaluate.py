"""The steps around evaluation: reference statistics, the reported numbers, and where they are noted.

Nothing here knows Kubeflow, so every step is also a function for Python and for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.steps.train import RESULT
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment, Extractor, Resources
from training.config.presets import preset
from training.console import say

if TYPE_CHECKING:
    from evaluation.evaluate.options import EvaluationOptions

REFERENCES = "references"
"""Directory of reference statistics below the storage root."""
LogMetric = Callable[[str, float], None]


def extractor_weights_at(storage_root_uri: str, extractor: Extractor) -> str | None:
    """The extractor's weights where somebody has put them: `extractors/<file name>` below the storage root.

    A cluster without a way to the network finds them there once for all steps; their sha256 says that they are the right
    ones, so that where they lie changes no number.

    Returns:
        Their URI; None where there are none, which leaves torch's cache and the download.
    """
    from evaluation.features.extractors import weights_file

    file = weights_file(extractor)
    if file is None:
        return None
    uri = storage.join(storage_root_uri, "extractors", file.name)
    return uri if storage.exists(uri) else None


def options_for(experiment: Experiment, storage_root_uri: str, resources: Mapping[str, Any]) -> EvaluationOptions:
    """How a pipeline's step evaluates: by the experiment's protocol, with the processes and devices that it has."""
    from evaluation.evaluate.options import EvaluationOptions

    given = Resources.from_dict(resources)
    return EvaluationOptions(
        num_workers=given.num_workers,
        device="cuda" if given.num_gpus_per_worker else "auto",
        extractor_weights=extractor_weights_at(storage_root_uri, experiment.evaluation.extractor),
    )


def reference_for(experiment: Experiment, data_uri: str, storage_root_uri: str) -> str:
    """Statistics of the training images in the experiment's extractor; see `compute_reference`."""
    from evaluation.distances.reference_statistics import compute_reference
    from evaluation.features.extractors import load_extractor
    from evaluation.records.devices import choose_device

    evaluation = experiment.evaluation
    extractor = load_extractor(
        evaluation.extractor, weights=extractor_weights_at(storage_root_uri, evaluation.extractor), device=choose_device("auto")
    )
    statistics = compute_reference(
        storage.join(data_uri, "train"), extractor, storage.join(storage_root_uri, REFERENCES), evaluation.num_reference_images
    )
    return statistics.uri


def make_reference(
    experiment_preset: str,
    experiment_overrides: Sequence[str],
    data_uri: str,
    data_digest: str,
    storage_root_uri: str,
    resources: Mapping[str, Any],
) -> str:
    """`reference_for` in words that a pipeline can carry.

    Args:
        experiment_preset: Name of the experiment.
        experiment_overrides: Its overrides.
        data_uri: The data set.
        data_digest: Of its training images, as the step that made it said.
        storage_root_uri: Where everything is kept.
        resources: What this process may use; fields of `training.config.experiment.Resources`.

    Raises:
        UserError: The images are not those of the digest.
    """
    from training.data.format.shards import read_manifest

    found = read_manifest(storage.join(data_uri, "train")).content_digest
    if found != data_digest:
        raise UserError(f"{data_uri} holds other images than a moment ago ({found}, not {data_digest}); did somebody make it anew?")
    return reference_for(preset(experiment_preset, experiment_overrides), data_uri, storage_root_uri)


def kept_reference(reference_uri: str, storage_root_uri: str, make: Callable[[], str]) -> str:
    """Statistics at an address that an earlier step gave; those that are gone are made anew.

    KFP's cache gives the address that the step once returned, and does not look whether anything is there: the data set
    and the extractor say all that is in it, so it is the same once more.

    Args:
        reference_uri: The address; empty where no statistics are used.
        storage_root_uri: Where everything is kept.
        make: Makes them, and returns their address.

    Raises:
        UserError: They are gone, and somebody else's.
    """
    if not reference_uri or storage.exists(reference_uri):
        return reference_uri
    if not reference_uri.startswith(storage.join(storage_root_uri, REFERENCES) + "/"):
        raise UserError(f"there are no reference statistics at {reference_uri}")
    say(f"{reference_uri} is gone: KFP's cache knows where the statistics were, not that they were deleted; they are made anew")
    return make()


def evaluate_run(run_uri: str, data_uri: str, reference_uri: str, resources: Mapping[str, Any]) -> str:
    """The reported numbers of a run's best checkpoint, in its directory, in MLflow and in the registry.

    Args:
        run_uri: A finished run's directory.
        data_uri: The data set that it was trained on.
        reference_uri: Reference statistics.
        resources: How many processes draw samples; fields of `training.config.experiment.Resources`.

    Returns:
        URI of the result.
    """
    from components.steps.evaluation_notes import note_evaluation
    from evaluation.evaluate.run import evaluate
    from evaluation.records.run_directory import EVALUATIONS
    from evaluation.sampling.trained_model import ModelSpec
    from evaluation.selection.final_choice import choose_best, stored_result
    from training.tracking.registry import register
    from training.tracking.runs import attach

    experiment = Experiment.from_json(storage.read_bytes(storage.join(run_uri, "experiment.json")))
    storage_root_uri = run_uri.rstrip("/").rsplit("/", 2)[0]
    reference_uri = kept_reference(reference_uri, storage_root_uri, lambda: reference_for(experiment, data_uri, storage_root_uri))
    options = options_for(experiment, storage_root_uri, resources)
    choice = choose_best(run_uri, data_uri, reference_uri, options=options)
    model = ModelSpec(checkpoint_uri=choice.checkpoint_uri, weights=choice.weights)
    result = stored_result(model, data_uri, reference_uri, options)
    if result is not None:
        say(f"this checkpoint was evaluated by this protocol before: {result.distance_name} {result.distance:.4g}")
    else:
        result = evaluate(model, data_uri, reference_uri, options=options)
    uri = storage.join(run_uri, EVALUATIONS, f"{options.result_name}.json")
    tracked = attach(storage.read_json(storage.join(run_uri, RESULT))["tracking_run_id"])
    note_evaluation(run_uri, options.result_name, tracked.run_id)
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


def note_result(uri: str, log_metric: LogMetric) -> str:
    """Hands every number of an evaluation to the pipeline's page, by name; returns the evaluation's URI."""
    from evaluation.records.result import EvaluationResult

    for name, value in EvaluationResult.from_dict(storage.read_json(uri)).flat_metrics().items():
        log_metric(name.rpartition("/")[2], value)
    return uri


def report_run(run_uri: str, evaluation_uri: str, page_path: str) -> str:
    """The page about a run, in its directory, in MLflow and as a local file.

    Args:
        run_uri: An evaluated run's directory.
        evaluation_uri: Its evaluation.
        page_path: Local file for the page.

    Returns:
        URI of the page.
    """
    from evaluation.reports.report import write_report
    from training.tracking.runs import attach

    tracked = attach(storage.read_json(storage.join(run_uri, RESULT))["tracking_run_id"])
    result_name = evaluation_uri.rpartition("/")[2].removesuffix(".json")
    uri = write_report(run_uri, result_name=result_name, losses=tracked.metric_history("train/loss"), links={"MLflow run": tracked.url})
    storage.download(uri, page_path)
    tracked.log_file(page_path, "report.html")
    tracked.flush()
    say(f"the report is {uri}")
    return uri

"""The evaluation step and the report step: the reported numbers of a trained run, and a page about them.

Nothing here knows Kubeflow, so each step is also a function for Python and for tests.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from components.launch.logs import step_log_stored
from components.steps.mlflow_sync import shown_as_running, update_mlflow
from components.steps.reference import existing_reference, reference_for, stored_extractor_weights
from components.steps.runs import EXPERIMENT, read_result, storage_root_of
from components.steps.studies import FINAL
from evaluation.records.run_directory import EVALUATIONS, REPLACED, SAMPLES, kept_images, replaced_name, result_uri
from training import storage
from training.checkpoints.experiment_file import read_experiment
from training.config.experiment import Experiment, Resources
from training.console import say

if TYPE_CHECKING:
    from evaluation.evaluate.options import EvaluationOptions

EVALUATE_STEP = "evaluate"
_OF_FINAL = re.compile(r"final\.(json|png)|final-bits-per-dim\.npz|choose-.*\.(json|png)|choice\.json|report\.html")
"""Files of the final evaluation, and of the choice of its checkpoint. A person's evaluation may have a name like "final-50k"."""


def evaluation_options(experiment: Experiment, storage_root_uri: str, resources: Mapping[str, Any]) -> EvaluationOptions:
    """Return the options of a pipeline's evaluation: the experiment's protocol, with the step's number of processes and device."""
    from evaluation.evaluate.options import EvaluationOptions

    given = Resources.from_dict(resources)
    return EvaluationOptions(
        num_workers=given.num_workers,
        device="cuda" if given.num_gpus_per_worker else "auto",
        extractor_weights=stored_extractor_weights(storage_root_uri, experiment.evaluation.extractor),
    )


def evaluate_run(
    run_uri: str, data_uri: str, reference_uri: str, resources: Mapping[str, Any], pipeline_run_id: str = "", force_from: str = ""
) -> str:
    """Evaluate a run's best checkpoint, in its directory, in MLflow and in the registry; return the result's URI.

    The step succeeds even if MLflow is away; see `components.steps.mlflow_sync`.

    Args:
        run_uri: A finished run's directory.
        resources: Number of processes that draw samples; fields of `training.config.experiment.Resources`.
        pipeline_run_id: The pipeline's run that this step belongs to; empty for none.
        force_from: "evaluate" evaluates again what is evaluated; the files of the earlier evaluation get other names.
    """
    with shown_as_running(run_uri, EVALUATE_STEP, pipeline_run_id):
        if force_from == EVALUATE_STEP:
            set_aside(run_uri, pipeline_run_id)
        return _evaluate_run(run_uri, data_uri, reference_uri, resources)


def _evaluate_run(run_uri: str, data_uri: str, reference_uri: str, resources: Mapping[str, Any]) -> str:
    from evaluation.evaluate.run import evaluate_once
    from evaluation.sampling.trained_model import ModelSpec
    from evaluation.selection.final_choice import choose_best

    experiment = read_experiment(storage.join(run_uri, EXPERIMENT))
    storage_root_uri = storage_root_of(run_uri)
    reference_uri = existing_reference(reference_uri, storage_root_uri, lambda: reference_for(experiment, data_uri, storage_root_uri))
    options = evaluation_options(experiment, storage_root_uri, resources)
    choice = choose_best(run_uri, data_uri, reference_uri, options=options)
    model = ModelSpec(checkpoint_uri=choice.checkpoint_uri, weights=choice.weights)
    evaluate_once(model, data_uri, reference_uri, dataclasses.replace(options, memorisation=experiment.evaluation.memorisation))
    update_mlflow(run_uri)
    return result_uri(run_uri, FINAL)


def set_aside(run_uri: str, pipeline_run_id: str) -> None:
    """Rename the files of the final evaluation, `final.before-ID.json` and so on, and delete what an unfinished one left.

    Images that a result keeps stay.

    It is done once for each run of the pipeline: a second try of its step goes on with what the first one has done.
    """
    done_uri = storage.join(run_uri, EVALUATIONS, f"forced-by-{pipeline_run_id}")
    if storage.exists(done_uri):
        return
    there = [uri for folder in (EVALUATIONS, SAMPLES) for uri in storage.list_uris(storage.join(run_uri, folder))]
    found = {uri: uri.rpartition("/")[2] for uri in there}
    renamed = {
        uri: f"{uri.rpartition('/')[0]}/{replaced_name(name, pipeline_run_id)}"
        for uri, name in found.items()
        if _OF_FINAL.fullmatch(name) and REPLACED not in name
    }
    for uri, new in renamed.items():
        data = storage.read_bytes(uri)
        if uri.endswith(".json"):  # a result names its grid, and the file with the bits/dim of each image
            for named, name in renamed.items():
                data = data.replace(named.encode(), name.encode())
        storage.write_bytes(new, data)
    # Results first. After an interruption, a result that is still there is copied again, and gets new names of files that are still there.
    for uri in sorted(renamed, key=lambda uri: not uri.endswith(".json")):
        storage.delete(uri)
    kept = tuple(kept_images(run_uri))
    for folder in (f"{EVALUATIONS}/work-", f"{SAMPLES}/images-"):
        for uri in there:
            if uri.startswith(storage.join(run_uri, folder)) and not uri.startswith(kept):
                storage.delete(uri)
    storage.write_bytes(done_uri, b"")
    if renamed:
        say(f"evaluating again; the earlier evaluation is {renamed.get(result_uri(run_uri, FINAL), next(iter(renamed.values())))}")


def log_result(uri: str, log_metric: Callable[[str, float], None]) -> str:
    """Log every number of an evaluation to the pipeline's page, by name; return the evaluation's URI."""
    from evaluation.records.result import EvaluationResult

    for name, value in EvaluationResult.read(uri).flat_metrics().items():
        log_metric(name.rpartition("/")[2], value)
    return uri


def report_run(run_uri: str, evaluation_uri: str, page_path: str, pipeline_run_id: str = "") -> str:
    """Write the report of a run, into its directory, to MLflow and to a local file; return the page's URI.

    Args:
        run_uri: An evaluated run's directory.
        pipeline_run_id: The pipeline's run that this step belongs to; empty for none.
    """
    from evaluation.reports.report import write_report

    result_name = evaluation_uri.rpartition("/")[2].removesuffix(".json")
    with step_log_stored(run_uri, "report"), shown_as_running(run_uri, "report", pipeline_run_id):
        losses, links = _losses_and_links(run_uri)
        uri = write_report(run_uri, result_name=result_name, losses=losses, links=links)
        storage.download(uri, page_path)
        update_mlflow(run_uri)
        say(f"the report is {uri}")
    return uri


def _losses_and_links(run_uri: str) -> tuple[list[tuple[int, float]], dict[str, str]]:
    """Return the loss curve and a link to the MLflow run; MLflow's curve is preferred, and there is no link if MLflow is away."""
    from training.tracking.metrics_file import read_metric
    from training.tracking.runs import TrackingError, attach

    losses = read_metric(run_uri, "train/loss")
    try:
        run = attach(read_result(run_uri)["tracking_run_id"])
        # A run of an earlier version has no metrics.jsonl, or one that begins in the middle.
        return run.metric_history("train/loss") or losses, {"MLflow run": run.url}
    except TrackingError as error:
        say(f"{error}; the report has no link to the MLflow run")
        return losses, {}

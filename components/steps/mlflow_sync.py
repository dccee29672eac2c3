"""Bring MLflow up to a training run's directory, which holds everything that MLflow shows.

A step whose work is done does not fail because MLflow is away: its numbers are in the directory, and the next step, the pipeline's last
step or the reaper sends them. A mark below the storage root names each run and each sweep of which MLflow lacks something.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from components.steps.runs import EXPERIMENT, read_result, storage_root_of
from components.steps.studies import FINAL, log_evaluation, read_evaluation
from evaluation.records.run_directory import result_uri
from training import storage
from training.checkpoints.experiment_file import read_experiment
from training.config.errors import UserError
from training.console import say
from training.tracking.client import TrackingError
from training.tracking.registry import RegisteredModel, register
from training.tracking.runs import RUN_URI_TAG, TRAIN_STEP, FoundRun, attach, end_if_running, locate, open_again

if TYPE_CHECKING:
    from evaluation.records.result import EvaluationResult
    from training.tracking.tracked_run import Status, TrackedRun

_SECONDS_TO_FAIL = 5.0
"""A step that failed or was stopped gives MLflow this long to hear of it; the pipeline's last step or the reaper tells it then."""
_MARKS = "mlflow_behind"
_GRID = re.compile(r"/step=(\d+)\.png$")


def update_mlflow(run_uri: str, run_id: str = "") -> bool:
    """Call `bring_up_to_date`; if MLflow does not answer, log that, leave a mark for the reaper, and return False."""
    try:
        bring_up_to_date(run_uri, run_id)
    except TrackingError as error:
        say(f"{error}; {run_uri} has everything, and MLflow gets it from the next step, the reaper or the same command")
        leave_mark(run_uri, {"run_uri": run_uri, "run_id": run_id})
        return False
    remove_mark(run_uri)
    return True


@contextlib.contextmanager
def call_at_end(end: Callable[[Status], object]) -> Iterator[None]:
    """Call `end` after the block with its status: KILLED by a signal, FAILED by an error, or FINISHED."""
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        end(status)


@contextlib.contextmanager
def shown_as_running(run_uri: str, step: str, pipeline_run_id: str = "") -> Iterator[None]:
    """Show a trained run as running in MLflow while a later step works on it, and then as this step ended.

    A step that is killed leaves it open; the pipeline's last step or the reaper closes it. Where MLflow is away, work goes on.

    Args:
        step: The step, like "evaluate".
        pipeline_run_id: The pipeline's run that it belongs to; empty for none.
    """
    run_id = read_result(run_uri).get("tracking_run_id", "")
    is_open = False
    try:
        if run_id and locate(run_id):
            open_again(run_id, step, pipeline_run_id)
            is_open = True
    except TrackingError as error:
        say(f"{error}; MLflow does not show that {step} works on this run")

    def end(status: Status) -> None:
        try:
            end_if_running(run_id, status, step, seconds=None if status == "FINISHED" else _SECONDS_TO_FAIL)
        except TrackingError as error:
            say(f"{error}; the pipeline's last step or the reaper closes this run")

    with call_at_end(end) if is_open else contextlib.nullcontext():
        yield


def update_open_run(run: FoundRun) -> None:
    """Call `update_mlflow` for a training that MLflow shows as running; skip a trial's run, which names the directory of its training."""
    run_uri = run.tags.get(RUN_URI_TAG, "")
    if run_uri.rpartition("/")[2] != run.key:
        return
    try:
        update_mlflow(run_uri, run.run_id)
    except (storage.StorageError, UserError) as error:  # one damaged directory must not keep other runs open
        say(f"{error}; MLflow may lack the last metrics of {run.key}")


def leave_mark(directory_uri: str, arguments: Mapping[str, str]) -> None:
    """Record that MLflow may lack something of a run or sweep; never fail. `arguments` are those of the function that sends it."""
    try:
        storage.write_json(_mark_uri(directory_uri), dict(arguments))
    except storage.StorageError as error:
        say(f"{error}; the reaper does not learn that MLflow lacks something of {directory_uri}")


def read_marks(storage_root_uri: str) -> list[dict[str, str]]:
    """Return the arguments that the marks below a storage root have; name those that can't be read."""
    marks: list[dict[str, str]] = []
    for uri in storage.list_uris(storage.join(storage_root_uri, _MARKS)):
        try:
            marks.append(storage.read_json(uri, dict[str, str]))
        except storage.StorageError as error:
            say(str(error))
    return marks


def remove_mark(directory_uri: str) -> None:
    """Remove the mark of a run or sweep, if it has one."""
    storage.delete(_mark_uri(directory_uri))


def bring_up_to_date(run_uri: str, run_id: str = "") -> None:
    """Send to MLflow what it lacks of a run: parameters, metrics, the final evaluation, the registered model, the end, sample grids.

    Doing it again changes nothing.

    Args:
        run_id: The MLflow run; empty reads it from the result of a finished training.

    Raises:
        StorageError: The directory can't be read.
    """
    result = read_result(run_uri)
    run_id = run_id or result.get("tracking_run_id", "")
    if not run_id:
        return
    if locate(run_id) is None:
        say(
            f"MLflow gets nothing of {run_uri}: its run {run_id} was deleted there, or is unknown. Restore it there, or `iddpm gc` deletes "
            "the directory too"
        )
        return
    experiment_uri = storage.join(run_uri, EXPERIMENT)
    experiment = read_experiment(experiment_uri) if storage.exists(experiment_uri) else None
    final = _final_evaluation(run_uri)
    run = attach(run_id, check=False, run_uri=run_uri)  # after reading the files: it sends metrics at once, for seconds even after an error
    if experiment is not None:
        run.log_params(experiment.every_field())
    if final is not None:
        log_evaluation(run_uri, FINAL, run_id)
        run.set_tags(
            {
                "iddpm.best_checkpoint_uri": final.checkpoint_uri,
                "iddpm.best_weights": final.weights,
                "iddpm.evaluation_uri": result_uri(run_uri, FINAL),
            }
        )
    elif result:
        run.set_tags({"iddpm.best_checkpoint_uri": result["best_checkpoint_uri"], "iddpm.best_weights": result["best_weights"]})
    if not run.close():
        raise TrackingError("MLflow does not answer")
    if final is not None and not math.isfinite(final.distance):
        say(f"{final.checkpoint_uri} ({final.weights}) is not registered: its distance is not finite")
    elif final is not None and result:  # an interrupted `iddpm gc` may leave an evaluation without the result
        _register(final, run_id, result["data_uri"])
    if result:
        end_if_running(run_id, "FINISHED", TRAIN_STEP)  # a later step that works on it ends it itself
    _log_sample_grids(run, run_uri)  # last, as an MLflow that can't keep files has all the rest then


def _register(final: EvaluationResult, run_id: str, data_uri: str) -> None:
    model = RegisteredModel(
        name=final.experiment["name"],
        run_id=run_id,
        checkpoint_uri=final.checkpoint_uri,
        weights=final.weights,
        data_uri=data_uri,
        distance_name=final.distance_name,
        distance=final.distance,
        protocol=_protocol(final),
        description=_description(final),
    )
    register(model, loader_module="evaluation.sampling.pyfunc")


def _protocol(final: EvaluationResult) -> str:
    """Return how the distance was measured, as a nightly check records it, without the fields that belong to one model or machine."""
    from evaluation.monitoring.nightly import protocol_of

    own = ("checkpoint", "numbers_version", "precision")
    return json.dumps({name: value for name, value in protocol_of(final).items() if name not in own}, sort_keys=True)


def _description(final: EvaluationResult) -> str:
    from evaluation.records.score_card import as_markdown

    sampled = final.protocol["distance"]
    return as_markdown(
        final.score_card(), f"Step {final.step:,}, {final.weights}; {sampled['num_samples']:,} samples, {sampled['sampler']}."
    )


def _final_evaluation(run_uri: str) -> EvaluationResult | None:
    try:
        return read_evaluation(run_uri, FINAL)
    except storage.ObjectNotFoundError:
        return None


def _log_sample_grids(run: TrackedRun, run_uri: str) -> None:
    """Log the grid of each scored step that MLflow lacks: `samples/step=NNNNNNNN.png`."""
    found = {uri: _GRID.search(uri) for uri in storage.list_uris(storage.join(run_uri, "samples"))}
    grids = {int(match[1]): uri for uri, match in found.items() if match}  # the other files belong to evaluations
    try:
        lacking = sorted(grids.keys() - (run.image_steps("samples") if grids else set()))
    except TrackingError as error:
        say(f"{error}; MLflow may lack sample grids of {run_uri}, which the next step or the same command sends")
        return
    for step in lacking:
        run.log_png("samples", storage.read_bytes(grids[step]), step)
    if not run.flush():
        raise TrackingError("MLflow does not answer")


def _mark_uri(directory_uri: str) -> str:
    return storage.join(storage_root_of(directory_uri), _MARKS, f"{directory_uri.rstrip('/').rpartition('/')[2]}.json")

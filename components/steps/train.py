"""The training step: find or make the run's directory and its MLflow run, train with scores beside training, store the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.cluster.names import SERVICES_CONFIG_MAP
from components.launch.lease import LeaseLostError, leased
from components.launch.step import run_on_cluster
from components.steps.mlflow_sync import leave_mark, update_mlflow
from components.steps.reference import existing_reference, stored_extractor_weights
from components.steps.registry import REFERENCE
from components.steps.runs import (
    Run,
    claim_directory,
    identify,
    note_attempt,
    read_result,
    require_likelihood_images,
    storage_root_of,
)
from evaluation.records.run_directory import RESULT
from training import storage
from training.config.addresses import is_cluster_internal
from training.config.experiment import Experiment, Resources
from training.console import say
from training.distributed.signals import StopFlag, run_stoppable, stop_flag
from training.tracking.runs import NUM_WORKERS_TAG, PRUNED_TAG, STEP_TAG, TRAIN_STEP, TRIAL_TAG

if TYPE_CHECKING:
    from training.loop.interfaces import Scorer
    from training.tracking.tracked_run import Status, TrackedRun

_QUICK_SECONDS = 5.0
"""Time in which a healthy MLflow has received the end of a run."""
_LAST_SECONDS = 60.0
"""Time to wait for an MLflow that does not answer, before the reaper has to close the run."""

StopRule = Callable[[Sequence[Mapping[str, Any]]], str | None]


def train_run(
    experiment: str,
    data_uri: str,
    reference_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
    resources: Mapping[str, Any],
    pipeline_run_id: str = "",
    parent_run_id: str = "",
    force_from: str = "",
    *,
    ray_address: str | None = "local",
    trial: str = "",
    prune: StopRule | None = None,
) -> str:
    """Train an experiment, resume it, or find it trained. While another process trains it, wait for that one's end.

    Args:
        experiment: The experiment, as JSON.
        data_uri: Data set with a `train` split.
        reference_uri: Reference statistics for the scores beside training; empty scores nothing.
        storage_root_uri: Where everything is stored; the run's directory is `<root>/runs/<run key>`.
        resources: Fields of `training.config.experiment.Resources`.
        pipeline_run_id: The pipeline's run, whose last step closes the MLflow run if this step could not.
        parent_run_id: The MLflow run of the sweep's trial that this training belongs to; empty for a training of its own.
        force_from: "train" trains again, in a directory of its own, what this pipeline's run found trained or begun.
        ray_address: "local", or a Ray cluster's address; None trains in this process, without Ray, as one worker that nothing starts again.
        trial: The label of the tuning's trial that this training is; `parent_run_id` is then the tuning's run.
        prune: Takes the scores so far, and returns why the training is given up, or None. It then ends after a checkpoint, without a
            result, and a later call resumes it. It is sent to the process that trains.

    Returns:
        The run's directory; `result.json` in it says how training ended, and names the weights that scored best.

    Raises:
        UserError: The experiment or the data set does not fit.
        SystemExit: SIGTERM ended training early, after a last checkpoint; the code is 143.
        TrainingError: Training cannot go on.
        LeaseLostError: Another training of the run has begun meanwhile, as this one could not reach the storage for minutes.
    """
    worker_resources = Resources.from_dict(resources)
    forced_by = pipeline_run_id if force_from == TRAIN_STEP else ""
    run = identify(Experiment.from_json(experiment), data_uri, storage_root_uri, forced_by=forced_by, pipeline_run_id=pipeline_run_id)
    if pipeline_run_id and not parent_run_id and not read_result(run.uri):  # an ablation's trials need not measure bits/dim
        require_likelihood_images(run.experiment, data_uri)
    claim_directory(run)
    if _is_trained(run):
        return run.uri
    reference_arguments = {
        "experiment": experiment,
        "data_uri": data_uri,
        "data_digest": run.manifest.content_digest,
        "storage_root_uri": storage_root_uri,
        "resources": {"num_gpus_per_worker": worker_resources.num_gpus_per_worker},
    }
    reference_uri = _existing_reference(reference_uri, reference_arguments, ray_address)
    status: Status = "FAILED"
    tracked: TrackedRun | None = None
    owner = f"{pipeline_run_id} {parent_run_id} {trial}" if pipeline_run_id else ""
    with stop_flag() as stop, leased(run.uri, owner, stop, is_done=lambda: bool(read_result(run.uri))):
        if _is_trained(run):  # by the other owner of the lease
            return run.uri
        try:
            tags = {
                "iddpm.data_uri": data_uri,
                NUM_WORKERS_TAG: str(worker_resources.num_workers),
                STEP_TAG: TRAIN_STEP,
                PRUNED_TAG: "",
            }
            tags |= {TRIAL_TAG: trial} if trial else {}
            tracked = run_stoppable(lambda: _open_tracked(run, tracking_experiment, tags, pipeline_run_id, parent_run_id), stop)
            note_attempt(run.uri, data_uri, pipeline_run_id)
            result, pruned = _train(run, worker_resources, data_uri, reference_uri, tracked.run_id, ray_address, stop, prune)
            if pruned:
                tracked.set_tags({PRUNED_TAG: pruned})
                status = "KILLED"
            else:
                result |= {"tracking_run_id": tracked.run_id, "run_key": run.key, "data_uri": data_uri}
                run_stoppable(lambda: storage.retry(lambda: storage.write_json(storage.join(run.uri, RESULT), result)), stop)
                status = "FINISHED"
        except (SystemExit, KeyboardInterrupt):
            status = "KILLED"
            raise
        except LeaseLostError:
            tracked = None  # its run in MLflow is the other training's now
            raise
        finally:
            if tracked is not None:
                _finish(tracked, status, run.uri, stop)
    return run.uri


def _is_trained(run: Run) -> bool:
    """Return True if the run has its result; then say so, and bring MLflow up to it."""
    result = read_result(run.uri)
    if result:
        say(f"run {run.key} is already trained to step {result['step']:,}; nothing to do")
        update_mlflow(run.uri)
    return bool(result)


def _finish(tracked: TrackedRun, status: Status, run_uri: str, stop: StopFlag) -> None:
    """Close the MLflow run, within five seconds if MLflow answers; a second Ctrl-C ends the wait for an MLflow that is away.

    The reaper's mark comes first: a program that was stopped may be killed while it waits.
    """
    was_stopped = status == "KILLED" and stop.is_set  # a pruned run is killed too, but has time
    leave_mark(run_uri, {"run_uri": run_uri, "run_id": tracked.run_id})
    delivered = tracked.finish(status, timeout_seconds=_QUICK_SECONDS)
    deadline = time.monotonic() + _LAST_SECONDS
    while not delivered and time.monotonic() < deadline and not (stop.is_urgent if was_stopped else stop.is_set):
        delivered = tracked.flush(timeout_seconds=1.0)
    if not delivered:
        say(f"MLflow does not answer and shows this run as running; the reaper or the same command closes it as {status}")
    elif not was_stopped:
        try:
            update_mlflow(run_uri, tracked.run_id)  # the workers may have recorded more than they could send
        except storage.StorageError as error:
            say(f"{error}; MLflow may lack the last metrics of this run")


def _open_tracked(run: Run, tracking_experiment: str, tags: Mapping[str, str], pipeline_run_id: str, parent_run_id: str) -> TrackedRun:
    from training.tracking.client import PUBLIC_VARIABLE
    from training.tracking.runs import PIPELINE_RUN_TAG, RUN_URI_TAG, open_run

    tracked = open_run(
        run_key=run.key,
        experiment_name=tracking_experiment,
        run_name=run.key,
        tags={
            "iddpm.preset": run.experiment.name,
            RUN_URI_TAG: run.uri,
            **tags,
            PIPELINE_RUN_TAG: pipeline_run_id,  # also if empty: the run now belongs to the pipeline that resumes it, or to none
        },
        params=run.experiment.every_field(),  # also defaults: a later field that goes back to its own would be missing otherwise
        parent_run_id=parent_run_id,
    )
    tracked.log_dataset(run.manifest.name, run.manifest.content_digest, storage.join(tags["iddpm.data_uri"], "train"))
    say(f"run {run.key}, followed at {tracked.url}")
    if is_cluster_internal(tracked.url):
        say(f"to get links that a browser opens, set {PUBLIC_VARIABLE} in the ConfigMap {SERVICES_CONFIG_MAP}")
    return tracked


def _existing_reference(reference_uri: str, arguments: Mapping[str, Any], ray_address: str | None) -> str:
    """Return the reference statistics; if they are gone, run the reference step again, on a worker, as a driver has no GPU."""

    def make() -> str:
        made: str = REFERENCE(**arguments) if ray_address in (None, "local") else run_on_cluster(REFERENCE, arguments, ray_address)
        return made

    return existing_reference(reference_uri, arguments["storage_root_uri"], make)


def _scorer(run: Run, resources: Resources, data_uri: str, reference_uri: str, prune: StopRule | None) -> Scorer:
    from evaluation.monitoring.checkpoint_scorer import CheckpointScorer

    evaluation, on_gpu = run.experiment.evaluation, resources.num_gpus_per_worker > 0
    return CheckpointScorer(
        evaluation=evaluation,
        reference_uri=reference_uri,
        extractor_weights=stored_extractor_weights(storage_root_of(run.uri), evaluation.extractor),
        class_names=run.manifest.class_names,
        data_uri=data_uri,
        device="cuda" if on_gpu else "cpu",
        precision="bf16" if on_gpu else "fp32",
        stop_rule=prune,
    )


def _train(
    run: Run,
    resources: Resources,
    data_uri: str,
    reference_uri: str,
    tracking_run_id: str,
    ray_address: str | None,
    stop: StopFlag,
    prune: StopRule | None,
) -> tuple[dict[str, Any], str]:
    """Return the result, and why the training was pruned; one of them is empty."""
    from evaluation.monitoring import early_stopping
    from evaluation.monitoring.checkpoint_scorer import comparable, read_history
    from training.checkpoints import checkpoint
    from training.loop.interfaces import STOP_REQUESTED, Job
    from training.models.ema import average_name

    experiment, run_uri = run.experiment, run.uri
    job = Job(
        experiment=experiment,
        resources=resources,
        data_uri=data_uri,
        run_uri=run_uri,
        tracking_run_id=tracking_run_id,
        scorer=_scorer(run, resources, data_uri, reference_uri, prune) if reference_uri else None,
    )
    if ray_address is None:
        from training.launch import in_process

        outcome = in_process.train(job, stop=stop)
    else:
        from training.distributed.ray_session import set_defaults

        set_defaults()
        from training.launch import ray_train

        outcome = ray_train.train(job, ray_address=ray_address, stop=stop)
    if outcome.stop_reason == STOP_REQUESTED:
        say(f"stopped on request: saved at step {outcome.step:,}; the same command resumes from there")
        stop.raise_if_set()
    history = run_stoppable(lambda: storage.retry(lambda: read_history(run_uri)), stop)
    history = comparable(history, experiment.evaluation) or history  # a finished run may be scored by earlier settings alone
    decision = early_stopping.decide(history, experiment.evaluation)
    pruned = prune(history) if prune is not None and outcome.stop_reason and not decision.stop else None
    if pruned:
        say(f"pruned at step {outcome.step:,} of {experiment.optim.num_steps:,}: {pruned}")
        return {}, pruned
    best_step = decision.best_step if decision.best_step is not None else outcome.step
    usual_weights = average_name(experiment.optim.ema_decays[0]) if experiment.optim.ema_decays else "model"
    if outcome.stop_reason:
        say(f"stopped at step {outcome.step:,} of {experiment.optim.num_steps:,}: {outcome.stop_reason}")
    result = {
        "step": outcome.step,
        "stop_reason": outcome.stop_reason,
        "best_step": best_step,
        "best_weights": decision.best_weights or usual_weights,
        "best_score": decision.best_score if decision.best_step is not None else None,
        "best_checkpoint_uri": checkpoint.checkpoint_uri(run_uri, best_step),
        "num_scored": len(history),
    }
    return result, ""

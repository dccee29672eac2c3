"""The training step: the run's directory and MLflow run found or made, training with scores beside it, the outcome kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment, Resources
from training.config.presets import preset
from training.config.run_keys import run_keys, same_training
from training.console import say
from training.distributed.signals import StopFlag, run_stoppable, stop_flag

if TYPE_CHECKING:
    from training.tracking.tracked_run import Status, TrackedRun

RESULT = "result.json"
EXPERIMENT = "experiment.json"
_PROMPT_SECONDS = 5.0
"""In which an MLflow that is there has taken what is told it."""
PIPELINE_RUN_TAG = "kfp.pipeline_run_id"
"""Of an MLflow run: the pipeline's run that works on it. The name is the one that KFP's own MLflow plugin uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run of training, by what it is made of.

    Attributes:
        experiment: The experiment.
        manifest: Of the data set's training images.
        key: Names the run, in S3 as in MLflow.
        uri: Its directory.
    """

    experiment: Experiment
    manifest: Any
    key: str
    uri: str


def identify(experiment_preset: str, experiment_overrides: Sequence[str], data_uri: str, storage_root_uri: str) -> Run:
    """The run of an experiment on a data set; the same two are the same run.

    Raises:
        UserError: The preset, an override or the data set does not fit.
        DatasetError: The data set is not there.
    """
    from training.data.format.shards import read_manifest

    experiment = preset(experiment_preset, experiment_overrides)
    manifest = read_manifest(storage.join(data_uri, "train"))
    require_data_fits(experiment, manifest)
    key, uri = run_directory(experiment, manifest.content_digest, storage_root_uri)
    return Run(experiment=experiment, manifest=manifest, key=key, uri=uri)


def run_directory(experiment: Experiment, data_digest: str, storage_root_uri: str) -> tuple[str, str]:
    """Return the key and the directory of a run; one that an earlier release made under another key is found."""
    keys = run_keys(experiment, data_digest)
    uris = [storage.join(storage_root_uri, "runs", key) for key in keys]
    return next((found for found in zip(keys, uris, strict=True) if storage.exists(storage.join(found[1], EXPERIMENT))), (keys[0], uris[0]))


def run_files(arguments: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the run's key, its directory and the URI of its result, from the arguments of `train_run`."""
    run = identify(arguments["experiment_preset"], arguments["experiment_overrides"], arguments["data_uri"], arguments["storage_root_uri"])
    return run.key, run.uri, storage.join(run.uri, RESULT)


def train_run(
    experiment_preset: str,
    experiment_overrides: Sequence[str],
    data_uri: str,
    reference_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
    resources: Mapping[str, Any],
    pipeline_run_id: str = "",
    *,
    ray_address: str = "local",
) -> str:
    """Trains an experiment, or goes on with it, or finds it done.

    Args:
        experiment_preset: Name of the experiment.
        experiment_overrides: Its overrides.
        data_uri: Data set with a `train` split.
        reference_uri: Reference statistics for the scores beside training; empty scores nothing.
        storage_root_uri: Where everything is kept; the run's directory is `<root>/runs/<run key>`.
        tracking_experiment: MLflow experiment.
        resources: Fields of `training.config.experiment.Resources`.
        pipeline_run_id: The pipeline's run that trains it, which sees to it that the MLflow run is closed in the end.
        ray_address: "local", or a Ray cluster's address.

    Returns:
        The run's directory; `result.json` in it says how training ended, and which weights scored best.

    Raises:
        UserError: The preset, an override or the data set does not fit.
        SystemExit: SIGTERM ended training early, after a last checkpoint; the code is `STOPPED_EXIT_CODE`.
        KeyboardInterrupt: Ctrl-C did.
        TrainingError: Training cannot go on.
    """
    wanted = Resources.from_dict(resources)
    run = identify(experiment_preset, experiment_overrides, data_uri, storage_root_uri)
    _claim_directory(run)
    result_uri = storage.join(run.uri, RESULT)
    if storage.exists(result_uri):
        result = storage.read_json(result_uri)
        say(f"run {run.key} is already trained to step {result['step']:,}; nothing to do")
        _close_finished(run, result["tracking_run_id"], tracking_experiment)
        return run.uri
    same = {
        "experiment_preset": experiment_preset,
        "experiment_overrides": list(experiment_overrides),
        "data_uri": data_uri,
        "data_digest": run.manifest.content_digest,
        "storage_root_uri": storage_root_uri,
        "resources": {"num_gpus_per_worker": wanted.num_gpus_per_worker},
    }
    reference_uri = _kept_reference(reference_uri, same, ray_address)
    status: Status = "FAILED"
    tracked: TrackedRun | None = None
    with stop_flag() as stop:
        try:
            tracked = run_stoppable(lambda: _open_tracked(run, tracking_experiment, data_uri, pipeline_run_id), stop)
            result = _train(run, wanted, data_uri, reference_uri, tracked.run_id, ray_address, stop)
            complete = {**result, "tracking_run_id": tracked.run_id, "run_key": run.key, "data_uri": data_uri}
            run_stoppable(lambda: storage.retry(lambda: storage.write_json(result_uri, complete)), stop)
            tracked.set_tags({"iddpm.best_checkpoint_uri": result["best_checkpoint_uri"], "iddpm.best_weights": result["best_weights"]})
            status = "FINISHED"
        except (SystemExit, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            if tracked is not None:
                _finish(tracked, status, stop)
    return run.uri


def _finish(tracked: TrackedRun, status: Status, stop: StopFlag) -> None:
    """Close the MLflow run, within five seconds where MLflow answers; only the wait for an MLflow that is away ends by a second Ctrl-C."""
    arrived = tracked.finish(status, timeout_seconds=_PROMPT_SECONDS)
    deadline = time.monotonic() + (60.0 if status == "KILLED" else storage.OUTAGE_SECONDS)
    while not arrived and time.monotonic() < deadline and not (stop.is_urgent if status == "KILLED" else stop.is_set):
        arrived = tracked.flush(timeout_seconds=1.0)
    if not arrived:
        say(f"MLflow stayed away, where this run is still marked as running; the same command closes it as {status}")


def _close_finished(run: Run, tracking_run_id: str, tracking_experiment: str) -> None:
    """Completes and closes the MLflow run of a training that is done, where MLflow was away when it ended."""
    from training.tracking.runs import RUN_KEY_TAG, TrackingError, close_left_open, deliver_kept_metrics

    try:
        deliver_kept_metrics(tracking_run_id, run.uri)
        close_left_open(tracking_experiment, {RUN_KEY_TAG: run.key}, lambda tags: "FINISHED")
    except TrackingError as error:
        say(f"{error}; whether its MLflow run is whole and closed was not looked up")


def _claim_directory(run: Run) -> None:
    """Write the experiment into the run's directory; one that trains the same but is evaluated otherwise takes the place of the old.

    Raises:
        UserError: The directory is another experiment's.
    """
    uri = storage.join(run.uri, EXPERIMENT)
    ours = run.experiment.to_json().encode()
    if storage.write_bytes(uri, ours, if_absent=True):
        return
    stored = storage.read_bytes(uri)
    if stored == ours:
        return
    if same_training(Experiment.from_json(stored), run.experiment):
        storage.write_bytes(uri, ours)
    else:
        raise UserError(f"{uri}: is another experiment than the one that belongs there, so it was changed; remove it, or restore it")


def _open_tracked(run: Run, tracking_experiment: str, data_uri: str, pipeline_run_id: str) -> TrackedRun:
    from training.tracking.runs import open_run

    tracked = open_run(
        run_key=run.key,
        experiment_name=tracking_experiment,
        run_name=run.key,
        tags={
            "iddpm.preset": run.experiment.name,
            "iddpm.run_uri": run.uri,
            "iddpm.data_uri": data_uri,
            PIPELINE_RUN_TAG: pipeline_run_id,  # also where it is empty: who goes on with a run takes it over
        },
        params=run.experiment.to_dict(),
    )
    tracked.log_dataset(run.manifest.name, run.manifest.content_digest, storage.join(data_uri, "train"))
    say(f"run {run.key}, followed at {tracked.url}")
    return tracked


def _kept_reference(reference_uri: str, arguments: Mapping[str, Any], ray_address: str) -> str:
    """The reference statistics; where they are gone, the reference step once more, on a worker, as a driver has no GPU."""
    from components.launch.step import run_on_cluster
    from components.steps.evaluate import kept_reference
    from components.steps.registry import REFERENCE

    def make() -> str:
        made: str = REFERENCE(**arguments) if ray_address == "local" else run_on_cluster(REFERENCE, arguments, ray_address)
        return made

    return kept_reference(reference_uri, arguments["storage_root_uri"], make)


def _train(
    run: Run, resources: Resources, data_uri: str, reference_uri: str, tracking_run_id: str, ray_address: str, stop: StopFlag
) -> dict[str, Any]:
    from components.steps.evaluate import extractor_weights_at
    from evaluation.monitoring import early_stopping
    from evaluation.monitoring.checkpoint_scorer import CheckpointScorer, read_history
    from training.checkpoints import checkpoint
    from training.distributed.ray_session import set_defaults

    set_defaults()
    from training.launch.ray_train import train
    from training.loop.interfaces import STOP_REQUESTED
    from training.loop.job import Job

    experiment, run_uri = run.experiment, run.uri
    on_gpu = resources.num_gpus_per_worker > 0
    scorer = CheckpointScorer(
        evaluation=experiment.evaluation,
        reference_uri=reference_uri,
        extractor_weights=extractor_weights_at(run_uri.rsplit("/", 2)[0], experiment.evaluation.extractor),
        class_names=run.manifest.class_names,
        data_uri=data_uri,
        device="cuda" if on_gpu else "cpu",
        precision="bf16" if on_gpu else "fp32",
    )
    job = Job(
        experiment=experiment,
        resources=resources,
        data_uri=data_uri,
        run_uri=run_uri,
        tracking_run_id=tracking_run_id,
        scorer=scorer if reference_uri else None,
    )
    outcome = train(job, ray_address=ray_address, stop=stop)
    if outcome.stop_reason == STOP_REQUESTED:
        say(f"told to stop: saved at step {outcome.step:,}; the same command goes on from there")
        stop.raise_if_set()
    history = run_stoppable(lambda: storage.retry(lambda: read_history(run_uri)), stop)
    decision = early_stopping.decide(history, experiment.evaluation)
    best_step = decision.best_step if decision.best_step is not None else outcome.step
    best_weights = decision.best_weights or f"ema_{experiment.optim.ema_decays[0]}" if experiment.optim.ema_decays else "model"
    if outcome.stop_reason:
        say(f"stopped at step {outcome.step:,} of {experiment.optim.num_steps:,}: {outcome.stop_reason}")
    return {
        "step": outcome.step,
        "stop_reason": outcome.stop_reason,
        "best_step": best_step,
        "best_weights": best_weights,
        "best_score": decision.best_score if decision.best_step is not None else None,
        "best_checkpoint_uri": checkpoint.checkpoint_uri(run_uri, best_step),
        "num_scored": len(history),
    }


def require_data_fits(experiment: Experiment, manifest: Any) -> None:
    """Refuses a data set that the experiment was not written for.

    Raises:
        UserError: Name, size, channels or labels differ; the message says which.
    """
    data = experiment.data
    differences = [
        f"data.{name} is {ours!r}, the data set's is {theirs!r}"
        for name, ours, theirs in (
            ("name", data.name, manifest.name),
            ("image_size", data.image_size, manifest.image_size),
            ("image_channels", data.image_channels, manifest.image_channels),
            ("num_classes", data.num_classes, manifest.num_classes),
            ("resize", data.resize, manifest.resize),
        )
        if ours != theirs
    ]
    if differences:
        raise UserError(f"the data set does not fit the experiment: {'; '.join(differences)}")

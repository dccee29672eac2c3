"""The training step: the run's directory and MLflow run found or made, training with scores beside it, the outcome kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training import storage
from training.config import ConfigError, Experiment, Resources, run_key
from training.presets import preset
from training.progress import say

RESULT = "result.json"
PIPELINE_RUN_TAG = "kfp.pipeline_run_id"
"""Of an MLflow run: the pipeline's run that works on it. The name is the one that KFP's own MLflow plugin uses."""

STOPPED_EXIT_CODE = 128 + 15
"""Of a step that SIGTERM ended in good order, with a checkpoint: what a shell makes of a process that SIGTERM ended."""


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
        ConfigError: The preset, an override or the data set does not fit.
        DatasetError: The data set is not there.
    """
    from training.data.shards import read_manifest

    experiment = preset(experiment_preset, experiment_overrides)
    manifest = read_manifest(storage.join(data_uri, "train"))
    require_data_fits(experiment, manifest)
    key = run_key(experiment, manifest.content_digest)
    return Run(experiment=experiment, manifest=manifest, key=key, uri=storage.join(storage_root_uri, "runs", key))


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
        resources: Fields of `training.config.Resources`.
        pipeline_run_id: The pipeline's run that trains it, which sees to it that the MLflow run is closed in the end.
        ray_address: "local", or a Ray cluster's address.

    Returns:
        The run's directory; `result.json` in it says how training ended, and which weights scored best.

    Raises:
        ConfigError: The preset, an override or the data set does not fit.
        SystemExit: SIGTERM ended training early, after a last checkpoint; the code is `STOPPED_EXIT_CODE`.
        TrainingError: Training cannot go on.
    """
    from training.tracking import open_run

    run = identify(experiment_preset, experiment_overrides, data_uri, storage_root_uri)
    experiment, manifest, key, run_uri = run.experiment, run.manifest, run.key, run.uri
    result_uri = storage.join(run_uri, RESULT)
    if storage.exists(result_uri):
        say(f"run {key} is already trained to step {storage.read_json(result_uri)['step']:,}; nothing to do")
        return run_uri
    same = {
        "experiment_preset": experiment_preset,
        "experiment_overrides": list(experiment_overrides),
        "data_uri": data_uri,
        "data_digest": manifest.content_digest,
        "storage_root_uri": storage_root_uri,
        "resources": {"num_gpus_per_worker": resources.get("num_gpus_per_worker", 0)},
    }
    reference_uri = _kept_reference(reference_uri, same, ray_address)
    storage.write_bytes(storage.join(run_uri, "experiment.json"), experiment.to_json().encode())
    tracked = open_run(
        run_key=key,
        experiment_name=tracking_experiment,
        run_name=key,
        tags={
            "iddpm.preset": experiment.name,
            "iddpm.run_uri": run_uri,
            "iddpm.data_uri": data_uri,
            PIPELINE_RUN_TAG: pipeline_run_id,  # also where it is empty: who goes on with a run takes it over
        },
        params=experiment.to_dict(),
    )
    tracked.log_dataset(manifest.name, manifest.content_digest, storage.join(data_uri, "train"))
    say(f"run {key}, followed at {tracked.url}")
    status = "FAILED"
    try:
        result = _train(experiment, Resources.from_dict(resources), data_uri, reference_uri, run_uri, tracked.run_id, manifest, ray_address)
        if result["stop_reason"] == "SIGTERM":
            status = "KILLED"
            say(f"told to stop: saved at step {result['step']:,}; the same command goes on from there")
            raise SystemExit(STOPPED_EXIT_CODE)
        told = {**result, "tracking_run_id": tracked.run_id, "run_key": key, "data_uri": data_uri}
        storage.patiently(lambda: storage.write_json(result_uri, told))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracked.finish(status)  # type: ignore[arg-type]
    return run_uri


def _kept_reference(reference_uri: str, arguments: Mapping[str, Any], ray_address: str) -> str:
    """The reference statistics; where they are gone, the reference step once more, on a worker, as a driver has no GPU."""
    from components.cluster_steps import run_here, run_on_cluster
    from components.evaluation_run import kept_reference

    def make() -> str:
        made: str = run_here("reference", arguments) if ray_address == "local" else run_on_cluster("reference", arguments, ray_address)
        return made

    return kept_reference(reference_uri, arguments["storage_root_uri"], make)


def _train(
    experiment: Experiment,
    resources: Resources,
    data_uri: str,
    reference_uri: str,
    run_uri: str,
    tracking_run_id: str,
    manifest: Any,
    ray_address: str,
) -> dict[str, Any]:
    from components.evaluation_run import extractor_weights_at
    from evaluation import early_stopping
    from evaluation.scoring import CheckpointScorer, read_history
    from training import checkpoint
    from training.ray_session import set_defaults

    set_defaults()
    from training.job import Job
    from training.launch import train

    on_gpu = resources.num_gpus_per_worker > 0
    scorer = CheckpointScorer(
        evaluation=experiment.evaluation,
        reference_uri=reference_uri,
        extractor_weights=extractor_weights_at(run_uri.rsplit("/", 2)[0], experiment.evaluation.extractor),
        class_names=manifest.class_names,
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
    outcome = train(job, ray_address=ray_address)
    history = storage.patiently(lambda: read_history(run_uri))
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
        ConfigError: Name, size, channels or labels differ; the message says which.
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
        raise ConfigError(f"the data set does not fit the experiment: {'; '.join(differences)}")

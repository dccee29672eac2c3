"""Averages of a run's weights that it did not keep, from the snapshots that it stored with its checkpoints.

The sweep of supplement figure 7 from a single run: each rebuilt average is a checkpoint of its own, for sampling and
scoring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import Experiment
from training.models.posthoc_ema import ReconstructionError, Snapshot, combine, reconstruct
from training.models.unet import make_model

DIRECTORY = "averages"
_PREFIX = "power_ema_"


def snapshots_uri(run_uri: str) -> str:
    """Where a run keeps its snapshots: apart from its checkpoints, of which only some are kept."""
    return storage.join(run_uri, DIRECTORY)


def keep_snapshot(run_uri: str, step: int, files: Mapping[str, Any]) -> None:
    """Stores what of a checkpoint's files is a snapshot, if anything is."""
    found = snapshot_files(files)
    if found:
        checkpoint.save(snapshots_uri(run_uri), step, found)


def snapshot_files(files: Mapping[str, Any]) -> dict[str, Any]:
    """What of a checkpoint's files is a snapshot of the averages, and what says whose it is."""
    averages = {name: value for name, value in files.items() if name.startswith(_PREFIX)}
    return {checkpoint.EXPERIMENT: files[checkpoint.EXPERIMENT], **averages} if averages else {}


def snapshots(run_uri: str) -> list[Snapshot]:
    """The power-function averages that the run stored, earliest first."""
    run_uri = snapshots_uri(run_uri)
    found = []
    for step in checkpoint.steps(run_uri):
        uri = checkpoint.checkpoint_uri(run_uri, step)
        present = checkpoint.file_names(uri)
        stds = checkpoint.load_experiment(uri).optim.ema_snapshot_stds
        found += [Snapshot(step=step, std=std) for std in stds if _file_name(std) in present]
    return found


def initial_weights(experiment: Experiment) -> dict[str, Tensor]:
    """The weights before the first update, which the experiment's seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        return make_model(experiment).state_dict()


def rebuild_average(run_uri: str, out_run_uri: str, *, decay: float, step: int | None = None, max_error: float = 0.005) -> dict[str, Any]:
    """Makes a checkpoint that holds an exponential average of any decay, as if training had kept it.

    Args:
        run_uri: A run that stored snapshots (`optim.ema_snapshot_stds`).
        out_run_uri: Another run's directory, which gets the checkpoint; one for each decay.
        decay: Of the wanted average.
        step: Number of updates; None is the last snapshot's.
        max_error: Largest expected error, in units of the distance from the weights to the average.

    Returns:
        Plain data: `checkpoint_uri`, `weights` (the name under which evaluation finds the average), `step`, `error` (the
        expected one) and `num_snapshots`.

    Raises:
        ReconstructionError: The snapshots do not determine the average to `max_error`, or it would overwrite the run's.
        CheckpointError: A checkpoint is damaged or can't be written.
    """
    if out_run_uri.rstrip("/") == run_uri.rstrip("/"):
        raise ReconstructionError(f"{out_run_uri}: a rebuilt average goes into a directory of its own, not into the run's")
    stored = snapshots(run_uri)
    if not stored:
        raise ReconstructionError(f"{run_uri}: has no snapshots; set optim.ema_snapshot_stds (such as 0.01,0.05,0.1,0.2) before training")
    step = step if step is not None else stored[-1].step
    source_uri = snapshots_uri(run_uri)
    experiment = checkpoint.load_experiment(checkpoint.checkpoint_uri(source_uri, stored[-1].step))

    def load(snapshot: Snapshot) -> dict[str, Tensor]:
        return checkpoint.load(checkpoint.checkpoint_uri(source_uri, snapshot.step), _file_name(snapshot.std))

    state = reconstruct(stored, load, step=step, decay=decay, initial=initial_weights(experiment), max_error=max_error)
    rebuilt = dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, ema_decays=(decay,)))
    error = combine(stored, step=step, decay=decay, with_initial=True).error
    uri = checkpoint.save(
        out_run_uri,
        step,
        {
            checkpoint.EXPERIMENT: rebuilt.to_json().encode(),
            f"ema_{decay}.pt": state,
            "state.json": {"step": step, "rebuilt": {"decay": decay, "error": error, "num_snapshots": len(stored)}},
        },
    )
    return {"checkpoint_uri": uri, "weights": f"ema_{decay}", "step": step, "error": error, "num_snapshots": len(stored)}


def _file_name(std: float) -> str:
    return f"{_PREFIX}{std}.pt"

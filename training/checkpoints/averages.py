"""Rebuild averages of a run's weights that training did not keep, from the snapshots that it stored with its checkpoints.

This gives the sweep of supplement figure 7 from a single run: each rebuilt average is a checkpoint of its own, for sampling and scoring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.models.ema import SNAPSHOT_PREFIX, average_name, snapshot_name
from training.models.posthoc_ema import ReconstructionError, Snapshot, reconstruct, sufficient
from training.models.unet import initial_model

DIRECTORY = "averages"
REBUILT_DIRECTORY = "rebuilt"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RebuiltAverage:
    """A rebuilt average: a checkpoint, the name of the weights in it, and their expected relative error."""

    checkpoint_uri: str
    weights: str
    error: float


def snapshots_uri(run_uri: str) -> str:
    """Return the directory of a run's snapshots. It is not that of the checkpoints, because most checkpoints are removed."""
    return storage.join(run_uri, DIRECTORY)


def keep_snapshot(run_uri: str, step: int, files: Mapping[str, Any]) -> None:
    """Store the power-function averages among a checkpoint's files, if there are any, with the experiment."""
    averages = {name: value for name, value in files.items() if name.startswith(SNAPSHOT_PREFIX)}
    if averages:
        checkpoint.save(snapshots_uri(run_uri), step, {checkpoint.EXPERIMENT: files[checkpoint.EXPERIMENT], **averages})


def snapshots(run_uri: str) -> list[Snapshot]:
    """Return the power-function averages that the run stored, earliest first."""
    run_uri = snapshots_uri(run_uri)
    found = []
    for step in checkpoint.steps(run_uri):
        uri = checkpoint.checkpoint_uri(run_uri, step)
        present = checkpoint.file_names(uri)
        stds = checkpoint.load_experiment(uri).optim.ema_snapshot_stds
        found += [Snapshot(step=step, std=std) for std in stds if _file_name(std) in present]
    return found


def initial_weights(experiment: Experiment) -> dict[str, Tensor]:
    """Return the weights before the first update, which follow from the experiment's seed."""
    return initial_model(experiment).state_dict()


def find_or_rebuild(run_uri: str, *, decay: float, step: int, max_error: float = 0.005) -> RebuiltAverage:
    """Return the average with this decay at this step; rebuild it where the run's directory has none.

    Args:
        max_error: Largest expected error, in units of the distance from the weights to the average.

    Raises:
        ReconstructionError: The snapshots do not determine the average to `max_error`.
    """
    directory = storage.join(run_uri, REBUILT_DIRECTORY, f"decay={decay}")
    for candidate in (directory, storage.join(run_uri, REBUILT_DIRECTORY, average_name(decay))):  # the second is that of earlier ablations
        uri = checkpoint.checkpoint_uri(candidate, step)
        if step in checkpoint.steps(candidate):
            break
    else:
        uri = checkpoint.checkpoint_uri(directory, step)
        try:
            rebuild_average(run_uri, directory, decay=decay, step=step, max_error=max_error)
        except checkpoint.CheckpointError:
            if step not in checkpoint.steps(directory):  # else another process has made it meanwhile
                raise
    error = float(checkpoint.load(uri, "state.json")["rebuilt"]["error"])
    if error > max_error:  # an earlier call allowed a larger error
        raise ReconstructionError(f"the rebuilt average of decay {decay:g} at step {step} is off by {error:.2%} (allowed: {max_error:.2%})")
    return RebuiltAverage(checkpoint_uri=uri, weights=average_name(decay), error=error)


def rebuild_average(run_uri: str, out_run_uri: str, *, decay: float, step: int | None = None, max_error: float = 0.005) -> dict[str, Any]:
    """Make a checkpoint that contains an exponential average of any decay, as if training had kept it.

    Args:
        out_run_uri: Directory of another run for the checkpoint; each decay needs its own.
        step: Number of updates; None is the last snapshot's.
        max_error: Largest expected error, in units of the distance from the weights to the average.

    Returns:
        Plain data: `checkpoint_uri`, `weights` (the name under which evaluation finds the average), `step`, `error` (the
        expected one) and `num_snapshots` (those that were read).

    Raises:
        UserError: The decay is not in (0, 1), or there is another checkpoint of that step in the directory.
        ReconstructionError: The snapshots do not determine the average to `max_error`, or the two directories are the same.
    """
    if not 0 < decay < 1:
        raise UserError(f"a decay is a number between 0 and 1, such as 0.9999; got {decay:g}")
    if storage.is_same(out_run_uri, run_uri):
        raise ReconstructionError(f"{out_run_uri}: a rebuilt average goes into a directory of its own, not into the run's")
    stored = snapshots(run_uri)
    if not stored:
        raise ReconstructionError(
            f"{run_uri}: has no snapshots; name a run that was trained with optim.ema_snapshot_stds, such as 0.01,0.05,0.1,0.2"
        )
    step = step if step is not None else stored[-1].step
    source_uri = snapshots_uri(run_uri)
    experiment = checkpoint.load_experiment(checkpoint.checkpoint_uri(source_uri, stored[-1].step))

    def load(snapshot: Snapshot) -> dict[str, Tensor]:
        return checkpoint.load(checkpoint.checkpoint_uri(source_uri, snapshot.step), _file_name(snapshot.std))

    used = sufficient(stored, step=step, decay=decay, max_error=max_error)
    state, error = reconstruct(used, load, step=step, decay=decay, initial=initial_weights(experiment), max_error=max_error)
    rebuilt = dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, ema_decays=(decay,)))
    files: dict[str, Any] = {
        checkpoint.EXPERIMENT: rebuilt.to_json().encode(),
        f"{average_name(decay)}.pt": state,
        "state.json": {"step": step, "rebuilt": {"decay": decay, "error": error, "num_snapshots": len(used)}},
    }
    uri = checkpoint.save(out_run_uri, step, files, replace=False)
    return {"checkpoint_uri": uri, "weights": average_name(decay), "step": step, "error": error, "num_snapshots": len(used)}


def _file_name(std: float) -> str:
    return f"{snapshot_name(std)}.pt"

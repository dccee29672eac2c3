"""Import networks from files of the released code, and export them to files that it and other programs read.

It is not documented whether the published weights are averages, so an imported checkpoint contains them as "model" and no average.
"""

from __future__ import annotations

import pickle
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.published import (
    describe_difference,
    expected_shapes,
    recognise,
    reference_flags,
    shapes_of,
    step_of,
)
from training.config.errors import UserError
from training.config.experiment import Experiment


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A network from a file.

    Attributes:
        experiment: Its experiment.
        step: Number of updates in the file's name; where there is none, the experiment's last.
        state: Its weights, float32.
    """

    experiment: Experiment
    step: int
    state: dict[str, Tensor]


def read_weights(file_uri: str, *, preset: str | None = None, overrides: Iterable[str] = ()) -> Imported:
    """Read a network from a `.pt` file of the released code, or from a file that `export_checkpoint` wrote.

    Args:
        file_uri: A path or s3:// URI.
        preset: The preset of the network, where neither the file nor its name shows it.
        overrides: Changes to the preset.

    Raises:
        UserError: The file does not contain the weights of one network, or they fit no preset or several.
        StorageError: The file can't be read.
    """
    file_name = file_uri.rstrip("/").rpartition("/")[2]
    with storage.open_local(file_uri) as path:
        state, embedded = _read(path, file_name)
        # Copied here: tensors that map the file must not outlive it.
        state = {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}
    overrides = tuple(overrides)
    if embedded is not None and preset is None:
        experiment = embedded.override(overrides)
        difference = describe_difference(expected_shapes(experiment), shapes_of(state))
        if difference:
            raise UserError(f"{file_name}: is not a network of the experiment that it contains: {difference}")
    else:
        experiment = recognise(shapes_of(state), file_name, preset=preset, overrides=overrides)
    return Imported(experiment=experiment, step=step_of(file_name, experiment), state=state)


def import_checkpoint(file_uri: str, run_uri: str, *, preset: str | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Make a checkpoint of ours from a published file; it serves sampling and scoring, and training can't resume from it.

    Args:
        file_uri: A path or s3:// URI.
        run_uri: Directory of the run in which the checkpoint is stored.
        preset: The preset of the network, where neither the file nor its name shows it.
        overrides: Changes to the preset.

    Returns:
        Plain data: `checkpoint_uri`, `preset`, `step`, `parameters`, `tensors`, `diffusion` (the settings that sampling
        depends on) and `weights`.

    Raises:
        UserError: The file does not contain the weights of one network, or they fit no preset or several.
        StorageError: The file can't be read.
        CheckpointError: The checkpoint can't be written.
    """
    imported = read_weights(file_uri, preset=preset, overrides=overrides)
    experiment = imported.experiment
    origin = {"file": file_uri.rstrip("/").rpartition("/")[2], "preset": experiment.name}
    uri = checkpoint.save(
        run_uri,
        imported.step,
        {
            checkpoint.EXPERIMENT: experiment.to_json().encode(),
            f"{checkpoint.MODEL}.pt": imported.state,
            "state.json": {"step": imported.step, "imported": origin},
        },
    )
    return {
        "checkpoint_uri": uri,
        "preset": experiment.name,
        "step": imported.step,
        "parameters": sum(tensor.numel() for tensor in imported.state.values()),
        "tensors": len(imported.state),
        "diffusion": experiment.to_dict()["diffusion"],
        "weights": checkpoint.MODEL,
    }


def export_checkpoint(checkpoint_uri: str, file_uri: str, *, weights: str | None = None) -> dict[str, Any]:
    """Write the weights of a checkpoint as one file.

    `.pt` is a bare state dict, which the released code reads; `.safetensors` also contains the experiment, in its metadata.

    Args:
        checkpoint_uri: A checkpoint of ours.
        file_uri: A path or s3:// URI that ends in .pt or .safetensors.
        weights: "ema_0.9999" or "model"; None takes the experiment's first average.

    Returns:
        Plain data: `file_uri`, `weights`, `parameters`, `tensors`, `num_bytes`, and `reference_flags`, with which the
        released code builds this network (None where it can't).

    Raises:
        UserError: The file's name has another ending.
        CheckpointError: There is no such checkpoint, or no such weights in it.
        StorageError: The file can't be written.
    """
    suffix = Path(file_uri).suffix
    if suffix not in (".pt", ".safetensors"):
        raise UserError(f"{file_uri}: a file to export to ends in .pt (read by the released code) or .safetensors")
    experiment = checkpoint.load_experiment(checkpoint_uri)
    chosen = weights or checkpoint.weights_names(checkpoint_uri)[0]
    state = {name: tensor.contiguous() for name, tensor in checkpoint.load_model_state(checkpoint_uri, chosen).items()}
    with tempfile.TemporaryDirectory(prefix="iddpm-export-") as directory:
        path = Path(directory) / f"weights{suffix}"
        if suffix == ".pt":
            torch.save(state, path)
        else:
            from safetensors.torch import save_file

            save_file(state, path, metadata={"experiment": experiment.to_json(), "weights": chosen})
        num_bytes = path.stat().st_size
        storage.upload(path, file_uri)
    return {
        "file_uri": file_uri,
        "weights": chosen,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "tensors": len(state),
        "num_bytes": num_bytes,
        "reference_flags": reference_flags(experiment),
    }


def _read(path: Path, file_name: str) -> tuple[dict[str, Tensor], Experiment | None]:
    """Return the tensors by name, and the experiment if the file contains one."""
    if file_name.endswith(".safetensors"):
        return _read_safetensors(path, file_name)
    try:
        # A file in the zip format is memory-mapped. Only tensors are unpickled, no code.
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:  # PyTorch's own message recommends to load the file in spite of it
        raise UserError(
            f"{file_name}: can't be read as plain tensors: it is no file of torch.save, or contains other objects, which could run code; "
            "save the network's state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise UserError(f"{file_name}: can't be read as plain tensors; it is damaged or cut short ({reason})") from error
    if not isinstance(value, Mapping) or not value or not all(isinstance(item, Tensor) for item in value.values()):
        raise UserError(f"{file_name}: does not contain the weights of a network (a dictionary of tensors); optimiser files do not")
    return {str(name): tensor for name, tensor in value.items()}, None


def _read_safetensors(path: Path, file_name: str) -> tuple[dict[str, Tensor], Experiment | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            embedded = (file.metadata() or {}).get("experiment")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise UserError(f"{file_name}: is not a safetensors file, or is damaged ({error})") from error
    try:
        return state, Experiment.from_json(embedded) if embedded is not None else None
    except UserError as error:
        raise UserError(f"{file_name}: contains an experiment that this program does not know ({error}); name a preset") from error

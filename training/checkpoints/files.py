"""Read and write a checkpoint's files on this machine's disk: plain tensors, numbers, strings and JSON."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config.errors import UserError

Files = Mapping[str, Mapping[str, Any] | bytes]
"""Contents by file name: a state dict for `.pt`, a JSON object for `.json`, or the bytes themselves."""

_FULL_DISK_BYTES = 2**20
"""After a failed write, a disk with fewer free bytes than this counts as full."""


class CheckpointError(UserError):
    """A checkpoint that is missing, half-written, damaged or can't be written; the message names the remedy.

    A class of its own, because a run that resumes catches it: it removes the damaged checkpoint and takes the one before.
    """


def describe(path: Path) -> dict[str, Any]:
    """Return the size and sha256 of a file, as `complete.json` lists them."""
    with path.open("rb") as file:
        return {"num_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_file(path: Path, value: Mapping[str, Any] | bytes) -> dict[str, Any]:
    """Write a value in the format of its file's suffix.

    Returns:
        The file's description, as `describe`.

    Raises:
        CheckpointError: The value is neither tensors nor plain data, or the disk is full.
    """
    try:
        if isinstance(value, bytes):
            path.write_bytes(value)
        elif path.suffix == ".json":
            path.write_text(json.dumps(value, indent=2) + "\n")
        else:
            torch.save(plain(value, path.name, copy=False), path)
    except TypeError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError about itself
        full = shutil.disk_usage(path.parent).free < _FULL_DISK_BYTES
        reason = "the disk is full" if full else f"can't be written ({' '.join(str(error).split())})"
        raise CheckpointError(f"{path}: {reason}; free some space there, or point TMPDIR elsewhere") from error
    return describe(path)


def plain(value: Any, path: str, *, copy: bool) -> Any:
    """Return the value with every tensor on the CPU and without the rest of its storage (torch would save the whole storage of a view).

    Args:
        value: Tensors, numbers, strings, and dictionaries, lists and tuples of them.
        path: Name of the value, for the message.
        copy: Return tensors that share no memory with `value`.

    Raises:
        CheckpointError: The value contains something else.
    """
    if isinstance(value, Tensor):
        detached = value.detach()
        moved = detached.cpu()
        shares = moved.data_ptr() == detached.data_ptr()
        larger = moved.untyped_storage().nbytes() > moved.numel() * moved.element_size()
        return moved.clone() if larger or (copy and shares) else moved
    if isinstance(value, Mapping):
        return {key: plain(item, f"{path}:{key}", copy=copy) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item, f"{path}:{index}", copy=copy) for index, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise CheckpointError(f"{path}: a {type(value).__name__} is neither a tensor nor plain data, so that reading it would run code")


def read_file(path: Path, uri: str) -> dict[str, Any]:
    """Return the state dict (tensors on the CPU) or JSON object in a file.

    Args:
        path: The file.
        uri: Its address, for the message.

    Raises:
        CheckpointError: It contains something else.
    """
    try:
        value = json.loads(path.read_bytes()) if uri.endswith(".json") else torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # PyTorch's own message recommends to run the code in the file.
        reason = "it contains something else" if isinstance(error, pickle.UnpicklingError) else str(error).splitlines()[0]
        raise CheckpointError(f"{uri}: can't be read as plain tensors and data ({reason})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{uri}: contains a {type(value).__name__} instead of a dictionary")
    return value

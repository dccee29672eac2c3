"""Checkpoints in a run's directory: complete or absent, plain tensors and JSON, with the experiment inside.

    <run>/checkpoints/step=00010000/experiment.json  model.pt  ema_0.9999.pt  optimizer.pt  state.json  complete.json

`complete.json` lists the other files with their sizes and sha256 and is written last: a directory without it is incomplete
and is never read. `.pt` files are state dicts of tensors, numbers and strings, read with `weights_only=True`, so that a
checkpoint can't run code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from training import storage
from training.checkpoints.experiment_file import WRONG_VERSION, read_experiment
from training.config.errors import UserError, lines_of
from training.config.experiment import Experiment
from training.config.run_keys import same_training
from training.config.validation import parse_json
from training.console import say
from training.models.ema import average_name

DIRECTORY = "checkpoints"
COMPLETE = "complete.json"
EXPERIMENT = "experiment.json"
MODEL = "model"
Files = Mapping[str, Mapping[str, Any] | bytes]
"""Contents by file name: a state dict for `.pt`, a JSON object for `.json`, or the bytes themselves."""

_FULL_DISK_BYTES = 2**20
"""After a failed write, a disk with fewer free bytes than this counts as full."""


class CheckpointError(UserError):
    """A checkpoint that is missing, half-written, damaged or can't be written; the message names the remedy.

    A class of its own, because a run that resumes catches it: it removes the damaged checkpoint and takes the one before.
    """


def checkpoint_uri(run_uri: str, step: int) -> str:
    """Return the directory of the checkpoint after `step` updates."""
    if not 0 <= step < 10**8:
        raise CheckpointError(f"step {step} is not in 0..99,999,999")
    return storage.join(run_uri, DIRECTORY, f"step={step:08d}")


def step_of(uri: str) -> int:
    """Return the number of updates of the checkpoint in that directory; raise CheckpointError if it is none."""
    match = re.search(r"step=(\d{8})/*$", uri)
    if match is None:
        raise CheckpointError(f"{uri}: is not a checkpoint's directory; it ends in step= and eight digits")
    return int(match[1])


def save(run_uri: str, step: int, files: Files, *, replace: bool = True) -> str:
    """Write a checkpoint; readers find all of it or nothing.

    The same content is not written again. Other content for the same step (after a roll-back) replaces the old content, which is marked
    as incomplete first.

    Args:
        replace: False refuses to replace a complete checkpoint of other content.

    Raises:
        CheckpointError: A value is neither tensor nor plain data, the local disk is full, or another checkpoint may not be replaced.
    """
    uri = checkpoint_uri(run_uri, step)
    wrong = [name for name in files if "/" in name or name == COMPLETE]
    if wrong:
        raise CheckpointError(f"{wrong[0]!r} can't be the name of a checkpoint's file")
    with storage.scratch_directory("checkpoint") as directory:
        listing = {name: write_file(directory / name, value) for name, value in sorted(files.items())}
        complete = {"step": step, "files": listing}
        present = _read_complete(uri)
        if present == complete:
            return uri
        if present is not None and not replace:
            raise CheckpointError(f"{uri}: there is another checkpoint already; name a new run's directory")
        storage.delete(storage.join(uri, COMPLETE))
        for name in listing:
            storage.upload(directory / name, storage.join(uri, name))
        storage.write_json(storage.join(uri, COMPLETE), complete)
    return uri


def steps(run_uri: str) -> list[int]:
    """Return the steps of the complete checkpoints, in increasing order."""
    return sorted(step for step, complete in _found(run_uri).items() if complete)


def latest(run_uri: str) -> str | None:
    """Return the directory of the complete checkpoint with the most updates, or None."""
    complete = steps(run_uri)
    return checkpoint_uri(run_uri, complete[-1]) if complete else None


def clean(run_uri: str) -> list[int]:
    """Remove incomplete checkpoints, then damaged ones from the latest backwards until one is intact; return the steps of the removed ones.

    Only the run itself may call this, when it starts: to another process, a checkpoint that is being written looks incomplete.
    """
    storage.delete_partial_files(storage.join(run_uri, DIRECTORY))
    found = _found(run_uri)
    broken = [step for step, complete in found.items() if not complete]
    for step in broken:
        storage.delete_prefix(checkpoint_uri(run_uri, step))
    for step in sorted(found.keys() - broken, reverse=True):
        uri = checkpoint_uri(run_uri, step)
        try:
            for name in file_names(uri):
                with _checked(uri, name):
                    pass
        except CheckpointError as error:
            say(f"{error}: this one is removed")
            remove(run_uri, {step})
            broken.append(step)
        else:
            break
    return sorted(broken)


def remove(run_uri: str, unwanted: Collection[int]) -> None:
    """Remove the checkpoints of some steps; after an interruption the rest is incomplete, and `clean` removes it."""
    for step in sorted(unwanted):
        uri = checkpoint_uri(run_uri, step)
        storage.delete(storage.join(uri, COMPLETE))
        storage.delete_prefix(uri)


def file_names(uri: str) -> tuple[str, ...]:
    """Return the names of a complete checkpoint's files; raise CheckpointError if there is no complete checkpoint."""
    return tuple(_complete(uri)["files"])


def load_bytes(uri: str, name: str) -> bytes:
    """Return one file of a complete checkpoint, checked against its sha256.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    with _checked(uri, name) as path:
        return path.read_bytes()


def load(uri: str, name: str) -> dict[str, Any]:
    """Return one state dict (`.pt`, on the CPU) or JSON object (`.json`) of a checkpoint. Raises as `load_bytes`."""
    with _checked(uri, name) as path:
        return read_file(path, storage.join(uri, name))


def load_experiment(uri: str) -> Experiment:
    """Return the experiment of the checkpoint.

    The evaluation section is read from the run's `experiment.json`, which may have changed after the checkpoint was written.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or this program does not know the experiment's fields.
    """
    try:
        experiment = Experiment.from_json(load_bytes(uri, EXPERIMENT))
    except CheckpointError:  # names the checkpoint
        raise
    except UserError as error:
        raise CheckpointError(f"{storage.join(uri, EXPERIMENT)}: {error}; {WRONG_VERSION}") from error
    run_uri = _run_of(uri)
    try:
        current = read_experiment(storage.join(run_uri, EXPERIMENT)) if run_uri else experiment
    except storage.ObjectNotFoundError:
        return experiment  # a checkpoint is complete without its run
    except UserError as error:
        raise CheckpointError(str(error)) from error
    return dataclasses.replace(experiment, evaluation=current.evaluation) if same_training(experiment, current) else experiment


def weights_names(uri: str) -> tuple[str, ...]:
    """Return the names that `load_model_state` accepts: the experiment's averages in its order, then "model"."""
    present = file_names(uri)
    names = [average_name(decay) for decay in load_experiment(uri).optim.ema_decays] + [MODEL]
    return tuple(name for name in names if f"{name}.pt" in present)


def choose_weights(uri: str, weights: str | None = None) -> str:
    """Return the name of the weights to load: `weights`, or else the first of `weights_names`.

    Raises:
        CheckpointError: There is no such checkpoint, or it has no such weights.
    """
    names = weights_names(uri)
    if not names:
        raise CheckpointError(f"{uri}: has no weights of a network; it has {', '.join(file_names(uri))}; name one of the run's checkpoints")
    chosen = weights or names[0]
    if chosen not in names:
        raise CheckpointError(f"{uri}: has no weights {chosen!r}; it has {', '.join(names)}")
    return chosen


def load_model_state(uri: str, weights: str | None = None) -> dict[str, Tensor]:
    """Return the network's weights.

    Args:
        weights: "ema_0.9999" (an average, by its decay) or "model" (the weights that the optimiser updates); None takes the experiment's
            first average.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or it has no such weights.
    """
    return load(uri, f"{choose_weights(uri, weights)}.pt")


class AsyncWriter:
    """Writes checkpoints in one background thread, from copies, so that training continues meanwhile.

    If the store does not take a checkpoint, it is left out and the next one is written: ending the attempt would lose the updates since
    the checkpoint before. A second failure in a row is raised by the next call, as is any other error. At most one checkpoint is being
    written, so memory contains one copy. A store that is slower than the checkpoint interval slows one worker down; of several workers, the
    others wait for rank 0 in a collective, and a wait beyond `collective_timeout_seconds` ends the attempt.
    """

    def __init__(
        self,
        run_uri: str,
        *,
        first: Callable[[int, Files], None] = lambda step, files: None,
        retry_seconds: float = storage.OUTAGE_SECONDS,
        required_step: int = 0,
    ) -> None:
        """Start no thread yet.

        Args:
            first: Writes what must be stored before the checkpoint; called in the background, and again after a failure.
            retry_seconds: Seconds of retries while the store does not answer.
            required_step: The checkpoint of this step can't be left out.
        """
        self._run_uri = run_uri
        self._first = first
        self._retry_seconds = retry_seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="iddpm-checkpoint")
        self._pending: Future[None] | None = None
        self._required_step = required_step
        self._step = 0
        self._is_left_out = False

    def save(self, step: int, files: Files, on_saved: Callable[[str], None] | None = None) -> None:
        """Copy the values now and write them later.

        Args:
            on_saved: Called in the background thread with the directory, once the checkpoint is complete.

        Raises:
            CheckpointError: The previous checkpoint could not be written.
            StorageError: The store took neither of the previous two, or not that of the required step.
        """
        try:
            self.wait()
            self._is_left_out = False
        except storage.StorageError:
            if self._is_left_out or self._step == self._required_step:
                raise
            self._is_left_out = True
            say(f"the checkpoint of step {self._step} is left out; if that of step {step} can't be written, this attempt ends")
        self._step = step
        copies = {name: value if isinstance(value, bytes) else plain(value, name, copy=True) for name, value in files.items()}
        self._pending = self._pool.submit(self._write, step, copies, on_saved)

    def wait(self) -> None:
        """Return once nothing is being written; raise the error of the last write."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(self, step: int, files: Files, on_saved: Callable[[str], None] | None) -> None:
        def attempt() -> str:
            self._first(step, files)
            return save(self._run_uri, step, files)

        try:
            uri = storage.retry(attempt, seconds=self._retry_seconds)  # one budget for both: the ranks may be waiting for it
        except (storage.StorageError, UserError) as error:  # raised where training waits for it, which may be hours later
            say(f"the checkpoint of step {step} was not written: {error}")
            raise
        if on_saved is not None:
            on_saved(uri)


def _found(run_uri: str) -> dict[int, bool]:
    """Return every step that has a file, and whether its checkpoint is complete."""
    found: dict[int, bool] = {}
    for uri in storage.list_uris(storage.join(run_uri, DIRECTORY)):
        match = re.search(rf"/{DIRECTORY}/step=(\d{{8}})/([^/]+)$", uri)
        if match is not None:
            step = int(match[1])
            found[step] = found.get(step, False) or match[2] == COMPLETE
    return found


def _read_complete(uri: str) -> Any:
    """Return the content of `complete.json`; None where it is missing or damaged."""
    try:
        complete = parse_json(storage.read_bytes(storage.join(uri, COMPLETE)))
    except (storage.ObjectNotFoundError, ValueError):
        return None
    return complete if isinstance(complete, dict) and isinstance(complete.get("files"), dict) else None


def _run_of(uri: str) -> str:
    """Return the directory of a checkpoint's run; empty for a checkpoint that is in none."""
    match = re.search(rf"^(.*/)?{DIRECTORY}/", uri)
    return "" if match is None else match[1] or "."


def _complete(uri: str) -> Any:
    """Return the content of `complete.json`; raise CheckpointError, which names the run's complete checkpoints, if there is none."""
    own_step = step_of(uri)
    complete = _read_complete(uri)
    if complete is None:
        run_uri = _run_of(uri)
        others = [f"{step:,}" for step in (steps(run_uri) if run_uri else ()) if step != own_step]
        remedy = f"complete are those of step {', '.join(others)}" if others else "the run has none that is complete"
        raise CheckpointError(f"{uri}: there is no complete checkpoint ({COMPLETE} is missing or damaged); {remedy}")
    return complete


@contextlib.contextmanager
def _checked(uri: str, name: str) -> Iterator[Path]:
    """Provide a local copy of a checkpoint's file, after checking its size and sha256."""
    files = _complete(uri)["files"]
    if name not in files:
        raise CheckpointError(f"{uri}: has no file {name!r}; it has {', '.join(files)}")
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(storage.open_local(storage.join(uri, name)))
        except storage.ObjectNotFoundError as error:
            raise CheckpointError(f"{storage.join(uri, name)}: is missing, but {COMPLETE} lists it; take an earlier checkpoint") from error
        if size_and_sha256(path) != files[name]:
            raise CheckpointError(f"{storage.join(uri, name)}: is damaged (size or sha256 differs); take an earlier checkpoint")
        yield path


def size_and_sha256(path: Path) -> dict[str, Any]:
    """Return the size and sha256 of a file, as `complete.json` lists them."""
    with path.open("rb") as file:
        return {"num_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_file(path: Path, value: Mapping[str, Any] | bytes) -> dict[str, Any]:
    """Write a value in the format of its file's suffix.

    Raises:
        CheckpointError: The value is neither tensors nor plain data, or the disk is full.
    """
    try:
        with _explain_full_disk(path):
            if isinstance(value, bytes):
                path.write_bytes(value)
            elif path.suffix == ".json":
                path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
            else:
                torch.save(plain(value, path.name, copy=False), path)
    except TypeError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    return size_and_sha256(path)


def export_file(file_uri: str, name: str, write: Callable[[Path], object]) -> int:
    """Store under `file_uri` what `write` puts into a temporary file of that name, and return its size in bytes.

    Raises:
        CheckpointError: The temporary disk is full.
    """
    with storage.scratch_directory("export") as directory:
        path = directory / name  # a `.pt` file contains it
        with _explain_full_disk(path):
            write(path)
        storage.upload(path, file_uri)
        return path.stat().st_size


@contextlib.contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    """Turn the errors of writing a file on the temporary disk into a `CheckpointError` with the remedy."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer reports a full disk as a RuntimeError about itself
        full = shutil.disk_usage(path.parent).free < _FULL_DISK_BYTES or os.strerror(errno.ENOSPC) in str(error)
        reason = "the disk is full" if full else f"can't be written ({' '.join(str(error).split())})"
        raise CheckpointError(f"{path}: {reason}; free some space there, or point TMPDIR elsewhere") from error


def plain(value: Any, path: str, *, copy: bool) -> Any:
    """Return the value with every tensor on the CPU and without the rest of its storage (torch would save the whole storage of a view).

    Args:
        value: Tensors, numbers, strings, and dictionaries, lists and tuples of them.
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
    """Return the state dict (tensors on the CPU) or JSON object in a file; raise CheckpointError if it contains neither.

    `uri` is the file's address, for the message, and its ending says which of the two it is.
    """
    try:
        value = parse_json(path.read_bytes()) if uri.endswith(".json") else torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # PyTorch's own message recommends to run the code in the file.
        reason = "it contains something else" if isinstance(error, pickle.UnpicklingError) else lines_of(error)[0]
        raise CheckpointError(f"{uri}: can't be read as plain tensors and data ({reason})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{uri}: contains a {type(value).__name__} instead of a dictionary")
    return value

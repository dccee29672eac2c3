"""Import networks from files of the released code, and export them to files that it and other programs read.

It is not documented whether the published weights are averages, so an imported checkpoint contains them as "model" and no average.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.network import Shapes, describe_difference, expected_shapes, load_state, shapes_of
from training.config import presets
from training.config.errors import UserError, lines_of
from training.config.experiment import Experiment
from training.config.files import named_experiment


class Tensors(NamedTuple):
    """The tensors of a file by name; the experiment and the number of updates, where it contains them."""

    state: dict[str, Tensor]
    experiment: Experiment | None = None
    step: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A network from a file, and the number of updates in the file or its name; where there is none, the experiment's last."""

    experiment: Experiment
    step: int
    state: dict[str, Tensor]


def read_weights(file_uri: str, *, preset: str | None = None, overrides: Iterable[str] = ()) -> Imported:
    """Read a network from a `.pt` file of the released code, or from a file that `export_checkpoint` wrote.

    Args:
        preset: The preset or the experiment file (TOML) of the network, where neither the file nor its name shows it.

    Raises:
        UserError: The file does not contain the weights of one network, or they fit no preset or several, or are not finite.
    """
    file_name = file_uri.rstrip("/").rpartition("/")[2]
    if not storage.is_s3(file_uri) and storage.local_path(file_uri).is_dir():
        raise UserError(f"{file_uri}: is a folder, and none of diffusers (it has no model_index.json); name a file in it")
    with storage.open_local(file_uri) as path:
        found, embedded, step = read_tensors(path, file_name)
        # Copied here: tensors that map the file must not outlive it.
        state = {name: tensor.to(torch.float32, copy=True) for name, tensor in found.items()}
    overrides = tuple(overrides)
    if embedded is not None and preset is None:
        experiment = embedded.override(overrides)
        difference = describe_difference(expected_shapes(experiment), shapes_of(state))
        if difference:
            raise UserError(f"{file_name}: is not a network of the experiment that it contains: {difference}")
    else:
        experiment = recognise(shapes_of(state), file_name, preset=preset, overrides=overrides)
    return Imported(experiment=experiment, step=step_in_name(file_name, experiment) if step is None else step, state=state)


def import_checkpoint(file_uri: str, run_uri: str, *, preset: str | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Make a checkpoint of ours from a published file; it serves sampling and scoring, and training can't resume from it.

    Returns:
        Plain data: that of `save_imported`, `tensors`, and `diffusion` (the settings that sampling depends on).

    Raises:
        UserError: As `read_weights` and `save_imported`.
    """
    imported = read_weights(file_uri, preset=preset, overrides=overrides)
    made = save_imported(imported, run_uri, {"file": file_uri.rstrip("/").rpartition("/")[2]})
    return made | {"tensors": len(imported.state), "diffusion": imported.experiment.to_dict()["diffusion"]}


def save_imported(imported: Imported, run_uri: str, origin: Mapping[str, str]) -> dict[str, Any]:
    """Make a checkpoint of an imported network, whose `state.json` names the origin.

    Returns:
        Plain data: `checkpoint_uri`, `preset`, `step`, `parameters`, `weights`.

    Raises:
        CheckpointError: The run has another checkpoint of that step.
    """
    experiment, step, state = imported.experiment, imported.step, imported.state
    files: dict[str, Any] = {
        checkpoint.EXPERIMENT: experiment.to_json().encode(),
        f"{checkpoint.MODEL}.pt": state,
        "state.json": {"step": step, "imported": {**origin, "preset": experiment.name}},
    }
    return {
        "checkpoint_uri": checkpoint.save(run_uri, step, files, replace=False),
        "preset": experiment.name,
        "step": step,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "weights": checkpoint.MODEL,
    }


def export_checkpoint(checkpoint_uri: str, file_uri: str, *, weights: str | None = None) -> dict[str, Any]:
    """Write the weights of a checkpoint as one file.

    `.pt` is a bare state dict, which the released code reads; `.safetensors` also contains the experiment and the step, in its metadata.

    Args:
        weights: "ema_0.9999" or "model"; None takes the experiment's first average.

    Returns:
        Plain data: `file_uri`, `weights`, `parameters`, `tensors`, `num_bytes`, and `reference_flags`, with which the
        released code builds this network (None where it can't).

    Raises:
        UserError: The file's name has another ending.
        CheckpointError: The weights are not those of the checkpoint's experiment.
    """
    suffix = Path(file_uri).suffix
    if suffix not in (".pt", ".safetensors"):
        raise UserError(
            f"{file_uri}: a file to export to ends in .pt (read by the released code), .pt2 (torch.export) or .safetensors; a name without "
            "an ending is a folder for diffusers"
        )
    experiment = checkpoint.load_experiment(checkpoint_uri)
    chosen = checkpoint.choose_weights(checkpoint_uri, weights)
    storage.check_destination(file_uri)
    state = {name: tensor.contiguous() for name, tensor in load_state(checkpoint_uri, chosen, experiment).items()}
    metadata = {"experiment": experiment.to_json(), "weights": chosen, "step": str(checkpoint.step_of(checkpoint_uri))}

    def write(path: Path) -> None:
        if suffix == ".pt":
            torch.save(state, path)
        else:
            save_file(state, path, metadata=metadata)

    num_bytes = checkpoint.export_file(file_uri, f"weights{suffix}", write)
    return {
        "file_uri": file_uri,
        "weights": chosen,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "tensors": len(state),
        "num_bytes": num_bytes,
        "reference_flags": reference_flags(experiment),
    }


_UNREADABLE = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
"""Errors of reading a file that is damaged, or none of torch's: it reads text as pickled objects, too."""


def read_tensors(path: Path, file_name: str) -> Tensors:
    """Return what a file contains; the tensors may map it.

    Raises:
        UserError: The file is damaged, is a program of torch.export, does not contain dense tensors of floating-point numbers alone, or
            has NaN or infinity in one of them.
    """
    if file_name.endswith(".pt2"):
        raise UserError(f"{file_name}: is a program of torch.export, which can't be imported; export the model to .safetensors or a folder")
    found = _read_safetensors(path, file_name) if file_name.endswith(".safetensors") else _read_pt(path, file_name)
    for name, tensor in found.state.items():
        is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
        if not (is_dense and tensor.is_floating_point()):
            raise UserError(
                f"{file_name}: {name} is {tensor.dtype}, {tensor.layout}, and weights are dense tensors of floating-point numbers; "
                "save the network's state_dict() in float32"
            )
        if not tensor.to(torch.float32).isfinite().all():  # the type that an import gives them: a double may be too large for it
            raise UserError(f"{file_name}: {name} contains NaN or infinity; take another copy of the file, or an earlier checkpoint")
    return found


def _read_pt(path: Path, file_name: str) -> Tensors:
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_crcs(path)
        # A file in the zip format is memory-mapped. Only tensors are unpickled, no code.
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a pickle of another protocol; an error says more
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:  # PyTorch's own message recommends to load the file in spite of it
        raise UserError(
            f"{file_name}: can't be read as plain tensors: it is no file of torch.save, or contains other objects, which could run code; "
            "save the network's state_dict() alone"
        ) from error
    except _UNREADABLE as error:
        reason = lines_of(error)[0].rpartition("] . ")[2].partition(". ")[0]  # without torch's line of C++ and its advice
        if isinstance(error, LookupError):  # text, which was read as pickled objects
            reason = f"it begins with {path.open('rb').read(8)!r}"
        remedy = "fetch it again, or name a file of torch.save"
        raise UserError(f"{file_name}: can't be read as plain tensors; it is damaged or cut short ({reason}); {remedy}") from error
    if not isinstance(value, Mapping) or not value or not all(isinstance(item, Tensor) for item in value.values()):
        raise UserError(f"{file_name}: does not contain the weights of a network (a dictionary of tensors); optimiser files do not")
    return Tensors({str(name): tensor for name, tensor in value.items()})


def _check_crcs(path: Path) -> None:
    """Raise BadZipFile for a part of a zip file that differs from its CRC, which torch does not compare; torch may write 0 for all CRCs."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip() if any(part.CRC for part in archive.infolist()) else None
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} has another checksum")


def _read_safetensors(path: Path, file_name: str) -> Tensors:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise UserError(f"{file_name}: is not a safetensors file, or is damaged ({error})") from error
    embedded, step = metadata.get("experiment"), metadata.get("step", "")
    try:
        experiment = Experiment.from_json(embedded) if embedded is not None else None
    except UserError as error:
        raise UserError(f"{file_name}: contains an experiment that this program does not know ({error}); name a preset") from error
    if step.isdecimal() and len(step.lstrip("0")) > 8:
        raise UserError(f"{file_name}: its step {step:.20} is not in 0..99,999,999; export the checkpoint again")
    return Tensors(state, experiment, int(step) if step.isdecimal() else None)


@dataclass(frozen=True, slots=True)
class Published:
    """A published checkpoint: its preset, and its number of updates."""

    preset: str
    step: int


PUBLISHED = {
    "imagenet64_uncond_100M_1500K": Published("imagenet64-hybrid-cosine-1500k", 1_500_000),
    "imagenet64_uncond_vlb_100M_1500K": Published("imagenet64-vlb-cosine-1500k", 1_500_000),
    "cifar10_uncond_50M_500K": Published("cifar10-hybrid-cosine", 500_000),
    "cifar10_uncond_vlb_50M_500K": Published("cifar10-vlb-cosine", 500_000),
    "imagenet64_cond_270M_250K": Published("imagenet64-cond-hybrid-cosine-large", 250_000),
    "upsample_cond_500K": Published("imagenet256-upsampler-hybrid-linear", 500_000),
    "lsun_uncond_100M_1200K_bs128": Published("lsun-bedroom-hybrid-linear-bs128-released", 1_200_000),
    "lsun_uncond_100M_2400K_bs64": Published("lsun-bedroom-hybrid-linear-bs64-released", 2_400_000),
}


def recognise(shapes: Shapes, file_name: str, *, preset: str | None = None, overrides: Iterable[str] = ()) -> Experiment:
    """Return the experiment that a state dict belongs to.

    Args:
        file_name: The file's name, which may be that of a published checkpoint.
        preset: The preset or the experiment file (TOML) of the network, where the file's name does not show it.

    Raises:
        UserError: The tensors are not the named experiment's, or fit none or several of the published ones; there is no such preset, or an
            override is invalid.
    """
    overrides = tuple(overrides)
    known = max((name for name in PUBLISHED if name in file_name), key=len, default=None)
    named = preset or (PUBLISHED[known].preset if known else None)
    if named is not None:
        experiment = named_experiment(named, overrides)
        difference = describe_difference(expected_shapes(experiment), shapes)
        if difference:
            raise UserError(f"{file_name}: is not a network of {named}: {difference}")
        return experiment
    if overrides:
        raise UserError("overrides change a preset or an experiment file; name it too")
    candidates = {published.preset: expected_shapes(presets.preset(published.preset)) for published in PUBLISHED.values()}
    fitting = [name for name, expected in candidates.items() if expected == dict(shapes)]
    if len(fitting) == 1:
        return presets.preset(fitting[0])
    if fitting:
        raise UserError(
            f"{file_name}: its tensors fit several presets ({', '.join(fitting)}); name the right one, "
            f"or keep the published file name ({', '.join(name for name, published in PUBLISHED.items() if published.preset in fitting)})"
        )
    nearest = min(candidates, key=lambda name: _num_differences(candidates[name], shapes))
    raise UserError(
        f"{file_name}: its tensors are no published network's; the nearest, {nearest}, differs: "
        f"{describe_difference(candidates[nearest], shapes)}. If it was trained with other settings, name its experiment file, or a preset "
        "and overrides"
    )


def step_in_name(file_name: str, experiment: Experiment) -> int:
    """Return the number of updates in a file's name; without one, the experiment's `num_steps`."""
    known = max((name for name in PUBLISHED if name in file_name), key=len, default=None)
    if known is not None:
        return PUBLISHED[known].step
    written = re.search(r"(?:model|ema_[\d.]+_)(\d{6,8})\.pt$", file_name)  # the released code's names; digits elsewhere may be a date
    return int(written[1]) if written else experiment.optim.num_steps


def reference_flags(experiment: Experiment) -> str | None:
    """Return the command-line flags with which the released code builds this network and process; None where it can't.

    The released code has fixed stages for each image size (an upsampler's are 64 and 256), one kind of GroupNorm, time embedding and
    downsampling, RGB images and 1,000 labels. Sampling needs no lambda.
    """
    data, model, diffusion = experiment.data, experiment.model, experiment.diffusion
    stages = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
    if (
        data.image_channels != 3
        or model.channel_mult != stages.get(data.image_size)
        or model.norm_groups != 32
        or (model.norm_eps, model.time_embedding, model.downsample_padding) != (1e-5, "cos_sin", "symmetric")
        or (model.class_conditional and (data.num_classes != 1000 or model.label_dropout > 0))
        or (model.low_res_size is not None and (data.image_size == 32 or diffusion.variance == "fixed_small"))
    ):
        return None
    sizes = (
        {"image_size": data.image_size} if model.low_res_size is None else {"large_size": data.image_size, "small_size": model.low_res_size}
    )
    flags = sizes | {
        "num_channels": model.model_channels,
        "num_res_blocks": model.num_res_blocks,
        "num_heads": model.num_heads,
        # It can't read an empty list; no stage has one pixel, so this too is attention in the middle alone.
        "attention_resolutions": ",".join(map(str, model.attention_resolutions)) or "1",
        "use_scale_shift_norm": model.use_scale_shift_norm,
        "dropout": model.dropout,
        "class_cond": model.class_conditional,
        "learn_sigma": diffusion.variance == "learned_range",
        "diffusion_steps": diffusion.num_timesteps,
        "noise_schedule": diffusion.schedule,
        "rescale_timesteps": diffusion.rescale_timesteps,
    }
    if diffusion.variance == "fixed_small":
        flags["sigma_small"] = True
    if diffusion.prediction == "x_0":
        flags["predict_xstart"] = True
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def _num_differences(expected: Shapes, found: Shapes) -> int:
    return len(expected.keys() ^ found.keys()) + sum(found.get(name, shape) != shape for name, shape in expected.items())

"""Export a checkpoint as a folder that diffusers loads, and import such a folder, ours or one that diffusers wrote.

    README.md  model_index.json  experiment.json
    unet/config.json  unet/diffusion_pytorch_model.safetensors  scheduler/scheduler_config.json

The published folders of 2022 (`google/ddpm-*`) have no directories inside, weights that end in .bin, and older names of the attention.

diffusers itself is not needed. Its `UNet2DModel` is the paper's network except for three things. It begins with the width of its first
stage, so that this has to be C; the size of a head is one number, so the same number of heads at several widths can't be expressed; and
the network is fed integers. A model that was trained with t * 1000/T gets a scheduler of 1000 timesteps, whose alpha_bar at t' is ours at
t = t' * T/1000, interpolated in log between two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.diffusers_experiment import experiment_of
from training.checkpoints.experiment_file import read_experiment
from training.checkpoints.import_export import Imported, read_tensors, save_imported
from training.checkpoints.network import describe_difference, expected_shapes, load_state, shapes_of
from training.config.errors import UserError
from training.config.experiment import DiffusionConfig, Experiment, ModelConfig
from training.config.files import named_experiment
from training.diffusion.schedules import beta_schedule

CONFIG = "unet/config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
OLD_WEIGHTS = "unet/diffusion_pytorch_model.bin"
SCHEDULER = "scheduler/scheduler_config.json"
_VERSION = "0.35.0"
_NUM_SCALED_TIMESTEPS = 1000


def export_diffusers(checkpoint_uri: str, folder_uri: str, *, weights: str | None = None) -> dict[str, Any]:
    """Write a checkpoint's network and scheduler as a folder for diffusers, with a model card.

    Args:
        weights: "ema_0.9999" or "model"; None takes the experiment's first average.

    Returns:
        Plain data: `folder_uri`, `weights`, `parameters`, `num_train_timesteps` (of the scheduler).

    Raises:
        UserError: diffusers can't express the network, or something is in the folder.
        CheckpointError: The weights are not those of the checkpoint's experiment.
    """
    experiment = checkpoint.load_experiment(checkpoint_uri)
    config = unet_config(experiment)
    if storage.list_uris(folder_uri):
        raise UserError(f"{folder_uri}: is not empty; name another folder, or delete it if an earlier export was stopped there")
    chosen = checkpoint.choose_weights(checkpoint_uri, weights)
    storage.check_destination(storage.join(folder_uri, CONFIG))
    state = to_diffusers(load_state(checkpoint_uri, chosen, experiment), experiment.model)
    step = checkpoint.step_of(checkpoint_uri)
    scheduler = scheduler_config(experiment.diffusion)
    texts = {CONFIG: config, SCHEDULER: scheduler, checkpoint.EXPERIMENT: experiment.to_dict()}
    if not experiment.model.class_conditional:  # DDPMPipeline passes no labels
        parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        texts["model_index.json"] = {"_class_name": "DDPMPipeline", "_diffusers_version": _VERSION, **parts}
    # The weights first: where there is no room for them, the folder stays empty.
    metadata = {"format": "pt", "step": str(step)}
    checkpoint.export_file(storage.join(folder_uri, WEIGHTS), "weights.safetensors", lambda path: save_file(state, path, metadata=metadata))
    for name, value in texts.items():
        storage.write_json(storage.join(folder_uri, name), value)
    card = _model_card(experiment, step, chosen)
    storage.write_bytes(storage.join(folder_uri, "README.md"), card.encode())
    return {
        "folder_uri": folder_uri,
        "weights": chosen,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "num_train_timesteps": scheduler["num_train_timesteps"],
    }


def import_diffusers(folder_uri: str, run_uri: str, *, preset: str | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Make a checkpoint of ours from a folder of diffusers; it serves sampling and scoring, and training can't resume from it.

    Args:
        preset: The preset or the experiment file (TOML) of the network; None reads `experiment.json`, which `export_diffusers` wrote, or
            else the configurations.

    Returns:
        Plain data, that of `save_imported`.

    Raises:
        UserError: The network or the scheduler is not that of the experiment (the message names what differs), or as `save_imported`.
    """
    folder, experiment_uri = folder_uri.rstrip("/").rpartition("/")[2], storage.join(folder_uri, checkpoint.EXPERIMENT)
    experiment = None
    if preset is not None:
        experiment = named_experiment(preset, overrides)
    elif storage.exists(experiment_uri):
        experiment = read_experiment(experiment_uri).override(overrides)
    config_uri, scheduler_uri = _find(folder_uri, CONFIG), _find(folder_uri, SCHEDULER)
    unet, scheduler = storage.read_json(config_uri), storage.read_json(scheduler_uri)
    _require_class(config_uri, unet, "UNet2DModel", "no other network can be imported")
    writes_one = f"DDPMScheduler.from_config(pipeline.scheduler.config).save_pretrained('{scheduler_uri.rpartition('/')[0]}') writes one"
    _require_class(scheduler_uri, scheduler, "DDPMScheduler", f"in diffusers, {writes_one} for the same network")
    unet, scheduler = _complete_unet(config_uri, unet), _complete_scheduler(scheduler_uri, scheduler)
    if experiment is None:
        try:
            experiment = experiment_of(unet, scheduler, folder=folder)
        except UserError as error:
            raise UserError(f"{config_uri}: is no network of ours: {error}") from error
        experiment = experiment.override(overrides)
    _require_equal(config_uri, unet, unet_config(experiment) | {"mid_block_scale_factor": 1})
    expected = scheduler_config(experiment.diffusion)
    if _is_close(scheduler.get("trained_betas"), _trained_betas(experiment.diffusion, is_flat_at_end=True)):  # exported earlier
        expected["trained_betas"] = scheduler["trained_betas"]
    _require_equal(scheduler_uri, scheduler, expected)
    uri = _find(folder_uri, WEIGHTS, OLD_WEIGHTS)
    try:
        with storage.open_local(uri) as path:
            found = read_tensors(path, uri)
            state = from_diffusers(_with_current_names(found.state), experiment)
    except KeyError as error:
        raise UserError(f"{uri}: is not the weights of {config_uri}: {error} is missing") from error
    step = experiment.optim.num_steps if found.step is None else found.step  # diffusers and earlier versions of this program store none
    imported = Imported(experiment=experiment, step=step, state=state)
    return save_imported(imported, run_uri, {"folder": folder})


def is_diffusers_folder(uri: str) -> bool:
    """Return True for a folder that holds the configuration of a network."""
    return any(storage.exists(storage.join(uri, name)) for name in (CONFIG, CONFIG.rpartition("/")[2]))


def _find(folder_uri: str, *names: str) -> str:
    """Return the first of these files that the folder has, each in its directory or in the folder itself; if none, the first name's."""
    places = [storage.join(folder_uri, place) for name in names for place in (name, name.rpartition("/")[2])]
    return next((uri for uri in places if storage.exists(uri)), places[0])


def unet_config(experiment: Experiment) -> dict[str, Any]:
    """Return the configuration of diffusers' `UNet2DModel` that is an experiment's network.

    Raises:
        UserError: There is none.
    """
    model, data = experiment.model, experiment.data
    if model.low_res_size is not None:
        raise UserError(f"{experiment.name} is an upsampler, and diffusers' UNet2DModel takes no second image; export it as .safetensors")
    if model.channel_mult[0] != 1:
        raise UserError(
            f"{experiment.name} has a first stage of {model.channel_mult[0]} times model.model_channels, and diffusers' UNet2DModel begins "
            "with the width of its first stage; export it as .safetensors"
        )
    widths = tuple(model.model_channels * mult for mult in model.channel_mult)
    attends = [data.image_size // 2**stage in model.attention_resolutions for stage in range(len(widths))]
    attended = sorted({width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]})
    if model.num_heads > 1 and len(attended) > 1:
        raise UserError(
            f"{experiment.name} has {model.num_heads} attention heads at each of the widths {', '.join(map(str, attended))}, and those of "
            "diffusers' UNet2DModel have one size, so their number would follow the width; export it as .safetensors"
        )
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": _VERSION,
        "sample_size": data.image_size,
        "in_channels": data.image_channels,
        "out_channels": experiment.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 0 if model.time_embedding == "cos_sin" else 1,
        "flip_sin_to_cos": model.time_embedding == "cos_sin",
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "block_out_channels": list(widths),
        "layers_per_block": model.num_res_blocks,
        "downsample_padding": 1 if model.downsample_padding == "symmetric" else 0,  # at 0 diffusers pads right and bottom
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": model.dropout,
        "act_fn": "silu",
        "attention_head_dim": None if model.num_heads == 1 else widths[-1] // model.num_heads,
        "norm_num_groups": model.norm_groups,
        "attn_norm_num_groups": model.norm_groups,
        "norm_eps": model.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if model.use_scale_shift_norm else "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": experiment.num_label_embeddings or None,
    }


def scheduler_config(diffusion: DiffusionConfig) -> dict[str, Any]:
    """Return the configuration of diffusers' `DDPMScheduler` that is a diffusion process, in the timesteps that the network is fed."""
    betas = _trained_betas(diffusion)
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": len(betas),
        "trained_betas": betas,
        "variance_type": diffusion.variance,
        "prediction_type": "epsilon" if diffusion.prediction == "eps" else "sample",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def _trained_betas(diffusion: DiffusionConfig, *, is_flat_at_end: bool = False) -> list[float]:
    """Return beta in the timesteps that the network is fed; `is_flat_at_end` has 0 beyond the last of training, as earlier exports."""
    betas = beta_schedule(diffusion.schedule, diffusion.num_timesteps)
    if diffusion.rescale_timesteps and diffusion.num_timesteps != _NUM_SCALED_TIMESTEPS:
        log_alpha_bars = torch.log1p(-betas).cumsum(0).tolist()
        at = [scaled * diffusion.num_timesteps / _NUM_SCALED_TIMESTEPS for scaled in range(_NUM_SCALED_TIMESTEPS)]
        logs = [_interpolate(log_alpha_bars, min(t, len(betas) - 1) if is_flat_at_end else t) for t in at]
        betas = torch.tensor([-math.expm1(late - early) for early, late in zip([0.0, *logs], logs, strict=False)])
    found: list[float] = betas.tolist()
    return found


def _interpolate(values: list[float], position: float) -> float:
    """Return the value at a position between two indices, linearly; beyond the last one, on the line through the last two."""
    low = min(int(position), len(values) - 2)
    return values[low] + (position - low) * (values[low + 1] - values[low])


def to_diffusers(state: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return a state dict of ours under diffusers' names; its attention keeps q, k and v apart, ours interleaves them by head."""
    mapped = {}
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        new = _name_in_diffusers(module, model)
        if module.endswith(".qkv"):
            rows = tensor.squeeze(-1)
            heads = rows.reshape(model.num_heads, 3, -1, *rows.shape[1:])
            for part, letter in enumerate("qkv"):
                mapped[f"{new}.to_{letter}.{kind}"] = heads[:, part].flatten(0, 1).contiguous()
        else:
            mapped[f"{new}.{kind}"] = (tensor.squeeze(-1) if module.endswith(".proj_out") else tensor).contiguous()
    return mapped


def from_diffusers(state: dict[str, Tensor], experiment: Experiment) -> dict[str, Tensor]:
    """Return the state dict of ours that `to_diffusers` maps to this one.

    Raises:
        KeyError: A tensor is missing.
        UserError: A tensor has another shape, or there are too many.
    """
    model, mapped, used = experiment.model, {}, set()
    for name, shape in expected_shapes(experiment).items():
        module, kind = name.rsplit(".", 1)
        new = _name_in_diffusers(module, model)
        sources = [f"{new}.to_{letter}.{kind}" for letter in "qkv"] if module.endswith(".qkv") else [f"{new}.{kind}"]
        used.update(sources)
        parts = [state[source].to(torch.float32, copy=True) for source in sources]  # those of a file may map it
        if len(parts) == 3:
            parts = [torch.stack([part.reshape(model.num_heads, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 2)]
        mapped[name] = parts[0].unsqueeze(-1) if len(shape) > parts[0].ndim else parts[0]
    difference = describe_difference(expected_shapes(experiment), shapes_of(mapped))
    if difference or state.keys() - used:
        raise UserError(f"the weights are not those of {experiment.name}: {difference or f'{min(state.keys() - used)} is not expected'}")
    return mapped


def _with_current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the attention's names since diffusers 0.16."""
    current = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return {re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.\w+$)", lambda old: current[old[0]], name): state[name] for name in state}


_IN_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "qkv": "",
}
_MODULE_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def _name_in_diffusers(module: str, model: ModelConfig) -> str:
    """Return diffusers' name of one of our modules; of a `qkv`, that of its attention."""
    if module in _MODULE_NAMES:
        return _MODULE_NAMES[module]
    if module.startswith("middle_block."):
        first, second, rest = module.split(".", 2)
        return f"{_MODULE_NAMES[f'{first}.{second}']}.{_IN_BLOCK[rest]}".rstrip(".")
    side, number, position, rest = module.split(".", 3)
    blocks = model.num_res_blocks
    if side == "input_blocks":
        stage, block = divmod(int(number) - 1, blocks + 1)
        if rest == "op":
            return f"down_blocks.{stage}.downsamplers.0.conv"
        place = f"down_blocks.{stage}"
    else:
        stage, block = divmod(int(number), blocks + 1)
        if rest == "conv":
            return f"up_blocks.{stage}.upsamplers.0.conv"
        place = f"up_blocks.{stage}"
    return f"{place}.{'attentions' if position == '1' else 'resnets'}.{block}.{_IN_BLOCK[rest]}".rstrip(".")


def _complete_unet(uri: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a `UNet2DModel` with what diffusers takes for fields that it leaves open or an older version has not."""
    found = _UNET_DEFAULTS | config
    _require_kinds(uri, found, "block_out_channels", "down_block_types", "attention_head_dim")
    if found["attn_norm_num_groups"] is None and found["resnet_time_scale_shift"] == "default":
        found["attn_norm_num_groups"] = found.get("norm_num_groups")
    if found["attention_head_dim"] == max(found["block_out_channels"]):  # one head, which None says too
        found["attention_head_dim"] = None
    return found


def _complete_scheduler(uri: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a `DDPMScheduler` with its betas, which diffusers computes from a schedule's name, and defaults."""
    found = _SCHEDULER_DEFAULTS | config
    _require_kinds(uri, found, "num_train_timesteps", "trained_betas")
    if found["trained_betas"] is None:
        _require_kinds(uri, found, "beta_start", "beta_end")
        steps, schedule = found["num_train_timesteps"], found["beta_schedule"]
        known = _SCHEDULES.get(str(schedule))
        found["trained_betas"] = known(found["beta_start"], found["beta_end"], steps).tolist() if known else f"of {schedule}"
    return found


def _require_kinds(uri: str, config: dict[str, Any], *names: str) -> None:
    """Refuse a configuration in which one of these fields has a value of another kind: they are computed with, all others only compared."""
    for name in names:
        is_right, kind = _KINDS[name]
        if not is_right(config[name]):
            raise UserError(f"{uri}: {name} is {_shown(config[name])[:200]}, but must be {kind}; correct it, or save the folder again")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_count(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value <= _MOST


_MOST = 1_000_000
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "block_out_channels": (lambda value: isinstance(value, list) and value != [] and all(map(_is_count, value)), "a list of whole numbers"),
    "down_block_types": (lambda value: isinstance(value, list), "a list of names"),
    "attention_head_dim": (lambda value: value is None or _is_count(value), "a whole number or null"),
    "num_train_timesteps": (lambda value: _is_count(value, 2), f"a whole number from 2 to {_MOST:,}"),
    "trained_betas": (
        lambda value: value is None or (isinstance(value, list) and value != [] and all(map(_is_number, value))),
        "a list of numbers or null",
    ),
    "beta_start": (_is_number, "a number"),
    "beta_end": (_is_number, "a number"),
}
"""Each field that is computed with: a function that returns True for a value of its kind, and that kind in words."""


_UNET_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "add_attention": True,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "resnet_time_scale_shift": "default",
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "variance_type": "fixed_small",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
_SCHEDULES: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": lambda start, end, steps: torch.linspace(start, end, steps, dtype=torch.float64),
    "squaredcos_cap_v2": lambda start, end, steps: beta_schedule("cosine", steps),
}
"""Betas by the names of diffusers' schedules."""


def _require_class(uri: str, config: dict[str, Any], name: str, remedy: str) -> None:
    """Refuse the configuration of another class of diffusers than the named one."""
    if config.get("_class_name") != name:
        raise UserError(f"{uri}: is of the class {config.get('_class_name')}, and only {name} is taken; {remedy}")


def _require_equal(uri: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a configuration that differs from the expected one in a field that changes samples."""
    different = [
        f"{name} is {_shown(found.get(name))}, ours is {_shown(value)}"
        for name, value in expected.items()
        if name not in ("_diffusers_version", "dropout") and not _is_close(found.get(name), value)
    ]
    if different:
        raise UserError(f"{uri}: is not the experiment's: {'; '.join(text[:200] for text in different[:3])}")


def _shown(value: Any) -> str:
    """Return a value as a message shows it; of a long list, such as the betas, its length and its ends."""
    return f"{len(value):,} values, {value[0]!r} to {value[-1]!r}" if isinstance(value, list) and len(value) > 20 else repr(value)


def _is_close(found: Any, expected: Any) -> bool:
    if isinstance(expected, list) and isinstance(found, list) and expected and isinstance(expected[0], float):
        return len(found) == len(expected) and all(
            math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-9) for a, b in zip(found, expected, strict=True)
        )
    return bool(found == expected)


def _example(experiment: Experiment) -> str:
    """Return Python that draws four images with diffusers."""
    num_timesteps = experiment.diffusion.num_timesteps
    num_steps = max(steps for steps in (250, 100, 50, 25, 10, 5, 2, 1) if math.gcd(_NUM_SCALED_TIMESTEPS, num_timesteps) % steps == 0)
    labels = f", class_labels=torch.arange(4) % {experiment.data.num_classes}" if experiment.model.class_conditional else ""
    return f"""import torch
from diffusers import DDPMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained(".", subfolder="unet").eval()
scheduler = DDPMScheduler.from_pretrained(".", subfolder="scheduler")
scheduler.set_timesteps({num_steps})
x = torch.randn(4, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t{labels}).sample, t, x).prev_sample
images = ((x.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)  # NCHW
"""


def _model_card(experiment: Experiment, step: int, weights: str) -> str:
    data, diffusion = experiment.data, experiment.diffusion
    labels = f"conditioned on {data.num_classes} classes" if experiment.model.class_conditional else "unconditional"
    num_timesteps = diffusion.num_timesteps
    scale = (
        f"Training had {num_timesteps:,} timesteps t, and the network is fed t * 1000/{num_timesteps}. The scheduler counts in the\n"
        f"latter, from 0 to 999: take a number of inference steps that divides both 1,000 and {num_timesteps:,}.\n\n"
        if diffusion.rescale_timesteps and num_timesteps != _NUM_SCALED_TIMESTEPS
        else ""
    )
    return f"""---
library_name: diffusers
tags: [diffusion, improved-ddpm]
---

# {experiment.name}

A diffusion model of {data.name} at {data.image_size}x{data.image_size} pixels, {labels}, as in Improved Denoising Diffusion Probabilistic
Models (Nichol and Dhariwal 2021). Objective {diffusion.objective}, schedule {diffusion.schedule}, variance {diffusion.variance}. These are
the weights {weights} after {step:,} of {experiment.optim.num_steps:,} updates. `experiment.json` has every setting.

{scale}```python
{_example(experiment)}```

Samples are images that resemble the training data, and have its biases; nothing filters them.
"""

"""The published OpenAI checkpoints: find the experiment of a state dict, and write the released code's flags for an experiment.

The released code stores a network as a bare state dict, which does not name its experiment. The name of a published file gives its
experiment; its tensors must then have the names and shapes of that experiment. Our names are the released ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import presets
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.models.unet import make_model

Shapes = Mapping[str, tuple[int, ...]]


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


def expected_shapes(experiment: Experiment) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in the state dict of an experiment's network."""
    with torch.device("meta"):
        return shapes_of(make_model(experiment).state_dict())


def recognise(shapes: Shapes, file_name: str, *, preset: str | None = None, overrides: Iterable[str] = ()) -> Experiment:
    """Return the experiment that a state dict belongs to.

    Args:
        shapes: Name and shape of each of its tensors.
        file_name: The file's name, which may be that of a published checkpoint.
        preset: The preset of the network, where the file's name does not show it.
        overrides: Changes to the preset.

    Raises:
        UserError: The tensors are not the named experiment's, or fit none or several of the published ones; there is no such preset, or an
            override is invalid.
    """
    overrides = tuple(overrides)
    known = max((name for name in PUBLISHED if name in file_name), key=len, default=None)
    named = preset or (PUBLISHED[known].preset if known else None)
    if named is not None:
        experiment = presets.preset(named, overrides)
        difference = describe_difference(expected_shapes(experiment), shapes)
        if difference:
            raise UserError(f"{file_name}: is not a network of {named}: {difference}")
        return experiment
    if overrides:
        raise UserError("overrides change a preset; name the preset too")
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
        f"{describe_difference(candidates[nearest], shapes)}. If it was trained with other settings, name a preset and overrides"
    )


def describe_difference(expected: Shapes, found: Shapes) -> str:
    """Return the differences of two state dicts in one line: the first of each kind and the number of others; else empty."""
    missing = [f"{name} {list(expected[name])} is missing" for name in expected if name not in found]
    surplus = [f"{name} {list(found[name])} is not expected" for name in found if name not in expected]
    other = [
        f"{name} is {list(found[name])} where {list(shape)} is expected"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return "; ".join(kind[0] + (f" (and {len(kind) - 1} more)" if len(kind) > 1 else "") for kind in (other, missing, surplus) if kind)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def step_of(file_name: str, experiment: Experiment) -> int:
    """Return the number of updates in a file's name; without one, the experiment's `num_steps`."""
    known = max((name for name in PUBLISHED if name in file_name), key=len, default=None)
    if known is not None:
        return PUBLISHED[known].step
    written = re.search(r"(\d{6,8})\.pt$", file_name)  # the released code's model200000.pt and ema_0.9999_200000.pt
    return int(written[1]) if written else experiment.optim.num_steps


def reference_flags(experiment: Experiment) -> str | None:
    """Return the command-line flags with which the released code builds this network and process; None where it can't.

    The released code has fixed stages for each image size, RGB images and 1,000 labels. Sampling needs no lambda.
    """
    data, model, diffusion = experiment.data, experiment.model, experiment.diffusion
    stages = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
    if (
        data.image_channels != 3
        or model.channel_mult != stages.get(data.image_size)
        or (model.class_conditional and data.num_classes != 1000)
        or diffusion.prediction != "eps"
        or (model.low_res_size is not None and diffusion.variance == "fixed_small")
    ):
        return None
    sizes = (
        {"image_size": data.image_size} if model.low_res_size is None else {"large_size": data.image_size, "small_size": model.low_res_size}
    )
    flags = sizes | {
        "num_channels": model.model_channels,
        "num_res_blocks": model.num_res_blocks,
        "num_heads": model.num_heads,
        "attention_resolutions": ",".join(map(str, model.attention_resolutions)),
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
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def _num_differences(expected: Shapes, found: Shapes) -> int:
    return len(expected.keys() ^ found.keys()) + sum(found.get(name, shape) != shape for name, shape in expected.items())

"""Read the experiment of a network that was trained elsewhere from the two configurations of a folder of diffusers."""

from __future__ import annotations

import re
from typing import Any

import torch

from training.config.errors import UserError
from training.config.experiment import EvaluationConfig, Experiment
from training.config.plain import as_plain_fields
from training.diffusion.schedules import cosine_betas


def experiment_of(unet: dict[str, Any], scheduler: dict[str, Any], *, folder: str) -> Experiment:
    """Return the experiment whose network and process these are; its data set is called like the folder, all else has its default.

    What ours can't express has the nearest value that it can, so compare the result's configurations with these.

    Args:
        unet: Configuration of a `UNet2DModel`, with every field.
        scheduler: Configuration of a `DDPMScheduler`, with every field and `trained_betas`.
        folder: The folder's name.

    Raises:
        UserError: A value has a wrong type or is out of its range, or the number of heads differs by width.
    """
    name = re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-") or "imported"
    try:
        widths, down, size = unet["block_out_channels"], unet["down_block_types"], unet["sample_size"]
        attends = [kind == "AttnDownBlock2D" for kind in down]
        head_width, labels, learned = unet["attention_head_dim"], unet["num_class_embeds"], scheduler["variance_type"] == "learned_range"
        attended = {width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
        if head_width is not None and len(attended) > 1:
            raise UserError(
                f"attention_head_dim {head_width} gives another number of heads at each of the widths "
                f"{', '.join(map(str, sorted(attended)))}, and ours has the same at all"
            )
        return Experiment.from_dict(
            {
                "name": name,
                "data": {"name": name, "image_size": size, "image_channels": unet["in_channels"], "num_classes": labels or 0},
                "model": {
                    "model_channels": widths[0],
                    "channel_mult": [width // widths[0] for width in widths],
                    "num_res_blocks": unet["layers_per_block"],
                    "attention_resolutions": [size // 2**stage for stage, attend in enumerate(attends) if attend],
                    "num_heads": 1 if head_width is None else widths[-1] // head_width,
                    "use_scale_shift_norm": unet["resnet_time_scale_shift"] == "scale_shift",
                    "dropout": unet["dropout"],
                    "class_conditional": labels is not None,
                    "norm_groups": unet["norm_num_groups"],
                    "norm_eps": unet["norm_eps"],
                    "time_embedding": "cos_sin" if unet["flip_sin_to_cos"] else "sin_cos",
                    "downsample_padding": "right_bottom" if unet["downsample_padding"] == 0 else "symmetric",
                },
                "diffusion": {
                    "num_timesteps": scheduler["num_train_timesteps"],
                    "schedule": "cosine" if _is_cosine(scheduler["trained_betas"]) else "linear",
                    "objective": "hybrid" if learned else "simple",
                    "variance": scheduler["variance_type"] if learned or scheduler["variance_type"] == "fixed_large" else "fixed_small",
                    "prediction": "x_0" if scheduler["prediction_type"] == "sample" else "eps",
                    "rescale_timesteps": False,  # the network is fed the scheduler's integers
                },
                "evaluation": _evaluation(scheduler["num_train_timesteps"]),
            }
        )
    except UserError:
        raise
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise UserError(f"a field has a value of another kind ({error})") from error


def _evaluation(num_timesteps: Any) -> dict[str, Any]:
    """Return the evaluation with no more steps than there are timesteps; all else has its default."""
    default = EvaluationConfig()

    def at_most(num_steps: int) -> int:
        return min(num_steps, num_timesteps) if isinstance(num_timesteps, int) else num_steps

    fields: dict[str, Any] = {"likelihood_steps": at_most(default.likelihood_steps)}
    for name in ("sampling", "scoring_sampling"):
        sampling = as_plain_fields(getattr(default, name))
        fields[name] = sampling | {"spacing": str(at_most(int(sampling["spacing"])))}
    return fields


def _is_cosine(betas: Any) -> bool:
    """Return True for the betas of the cosine schedule, in float32 or better."""
    if not isinstance(betas, list):
        return False
    return torch.allclose(torch.tensor(betas, dtype=torch.float64), cosine_betas(len(betas)), rtol=1e-5, atol=1e-9)

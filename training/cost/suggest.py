"""A first experiment for a user's own images, as the text of an experiment file with a comment for each choice."""

from __future__ import annotations

import dataclasses
import math

from training.config.files import read_experiment_file
from training.config.presets import preset
from training.config.validation import require
from training.console import format_duration
from training.cost.accelerators import card_named, speed_on
from training.cost.estimate import TRAINING_PASSES, count_macs

_SIZES = (128, 64, 32, 16, 8)
_MAX_EPOCHS = 2_000
# Card: the largest image size, the network's width, the batch and the hours of training that are sensible on it.
_CARD_SIZES = {
    "CPU": (32, 32, 32, 4),
    "L4": (64, 64, 64, 24),
    "V100": (64, 64, 64, 24),
    "L40S": (128, 96, 64, 24),
    "A100": (128, 96, 64, 24),
    "H100": (128, 128, 128, 24),
    "H200": (128, 128, 128, 24),
}
_CPU_EXTRACTOR = [
    'extractor = "efficientnet-lite0"  # small, and installed; "inception" makes the distance an FID, and fetches its weights'
]


def largest_image_size(short_side: int, card: str) -> int:
    """Return the largest size that enlarges no image of that shorter side and that the card is fast enough for; 0 below 8 pixels.

    Raises:
        UserError: There is no such card.
    """
    return next((size for size in _SIZES if size <= min(short_side, _CARD_SIZES[card_named(card)][0])), 0)


def suggest_experiment(
    *,
    num_images: int,
    min_side: int,
    channels: int,
    num_classes: int = 0,
    card: str = "CPU",
    name: str = "my-images",
    num_cores: int = 2,
    hours: float | None = None,
    compares_best: bool = True,
) -> str:
    """Return the text of an experiment file whose sizes fit the images and the machine.

    Args:
        min_side: Shorter side of the smallest image in pixels, 8 or more; images are never enlarged.
        num_classes: Labels; 0 for images without.
        name: Name of the data set and of the experiment: small letters, digits, dashes.
        num_cores: Cores of the machine, for the CPU.
        hours: The longest training; None takes what is sensible on the card (4 hours on a CPU, a day on others).
        compares_best: Compare the best checkpoints with all samples after training, which on a CPU takes about as long as a short
            training. Otherwise the one of the best score is reported.

    Raises:
        UserError: There is no such card, or a number is out of its range.
    """
    card = card_named(card)
    require(num_images >= 1, "num_images", f"must be at least 1, got {num_images}")
    require(min_side >= _SIZES[-1], "min_side", f"must be at least {_SIZES[-1]} pixels, got {min_side}")
    largest, width, batch_size, usual_hours = _CARD_SIZES[card]
    size = largest_image_size(min_side, card)
    on_cpu = card == "CPU"
    # A CPU trains a small network, for too few passes to memorise thousands of images.
    dropout = 0.3 if num_images < (1_000 if on_cpu else 5_000) else 0.1 if num_images < 100_000 else 0.0
    base = f"images{max(size, 32)}-hybrid-cosine"
    dataclasses.replace(preset(base).data, name=name)  # refuses a name before it stands in a text that nobody has written
    lines = {
        "data": [
            f'name = "{name}"',
            f"image_size = {size}  # pixels; the smallest image has {min_side}, and {card} is fast enough for {largest}",
            f"image_channels = {channels}",
            f"num_classes = {num_classes}" + ("  # the images are labelled" if num_classes else "  # no labels"),
            "random_flip = true  # mirrors half of the images; false for text, digits and whatever has a left and a right",
        ],
        "model": [
            f"model_channels = {width}  # the width of the network; twice as wide is four times as slow",
            f"dropout = {dropout}  # {num_images:,} images; fewer need more dropout against overfitting",
            f"class_conditional = {'true' if num_classes else 'false'}",
        ],
    }
    if width < 64:
        lines["model"].append(
            f"norm_groups = {width // 4}  # four channels each, as in the paper; with one each it could not tell dark from bright"
        )
    if size < 32:
        stages = (1, 2, 2) if size == 16 else (1, 2)
        lines["model"] += [f"channel_mult = {list(stages)}  # {len(stages)} stages", f"attention_resolutions = [{size // 2}]"]
    experiment = read_experiment_file(_text(base, name, lines))
    flops_per_step = 2 * TRAINING_PASSES * batch_size * sum(count_macs(experiment).values())
    speed = speed_on(card, "training", flops_per_step // (2 * TRAINING_PASSES * batch_size)).flops_per_second
    speed *= num_cores if on_cpu else 1
    affordable = (hours or usual_hours) * 3600 * speed / flops_per_step
    num_steps = _rounded(min(affordable, _MAX_EPOCHS * num_images / batch_size, preset(base).optim.num_steps))
    num_checkpoints = 10 if on_cpu else 20  # a CPU scores on the cores that train
    scored = 200 if on_cpu else 2_000
    interval = max(1, num_steps // num_checkpoints)
    took = format_duration(num_steps * flops_per_step / speed)
    lines["optim"] = [
        f"global_batch_size = {batch_size}",
        *(
            [
                "learning_rate = 1e-3  # ten times the paper's: the network is small and its training short",
                f"lr_anneal_steps = {num_steps}  # the rate falls to 0 by the end, so that the last weights are the best",
            ]
            if on_cpu
            else []
        ),
        f"num_steps = {num_steps}  # about {took} on {f'{num_cores} cores' if on_cpu else f'one {card}'}, "
        f"{num_steps * batch_size / num_images:,.0f} times through the images",
        f"ema_decays = [{_decay(num_steps, 20)}, {_decay(num_steps, 5)}]  # averages over about a twentieth and a fifth of training",
        f"checkpoint_interval = {interval}  # {math.ceil(num_steps / interval)} checkpoints, each is scored",
    ]
    lines["evaluation"] = [
        *(_CPU_EXTRACTOR if on_cpu else []),
        *(
            ["num_reference_images = 5000  # of the training images; all of them would take the network long"]
            if on_cpu and num_images > 5_000
            else []
        ),
        f"num_samples = {min(1_000 if on_cpu else 10_000, max(num_images, scored))}  # drawn for the reported distance",
        f"scoring_num_samples = {scored}  # drawn for the score of each checkpoint",
        f"likelihood_num_images = {100 if on_cpu else 2_000}  # held-out images for bits/dim; all of them if there are fewer",
    ]
    if not compares_best:
        lines["evaluation"].append(
            "rescore_best = 1  # the best score decides; without this line the best three are compared with all samples"
        )
    if on_cpu:
        lines["evaluation.sampling"] = ['spacing = "50"  # steps an image of the reported distance']
        lines["evaluation.scoring_sampling"] = ['spacing = "10"  # and of a score']
    text = _text(base, name, lines)
    read_experiment_file(text)
    return text


def _text(base: str, name: str, lines: dict[str, list[str]]) -> str:
    sections = "".join(f"\n[{section}]\n" + "\n".join(fields) + "\n" for section, fields in lines.items())
    return f'base = "{base}"  # all other settings are those of this preset: iddpm show {base}\nname = "{name}"\n{sections}'


def _rounded(steps: float) -> int:
    """Return the number with its first two digits, and at least 20."""
    unit = 10.0 ** max(0, len(str(int(steps))) - 2)
    return max(20, int(steps // unit * unit))


def _decay(num_steps: int, part: int) -> float:
    """Return the decay of an average that reaches back over 1 / part of the training."""
    return round(1 - part / num_steps, 6) if num_steps > 2 * part else 0.5

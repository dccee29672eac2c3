"""demo, init, train, run, compile: the pipelines, on this machine or for a cluster."""

from __future__ import annotations

import bisect
import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import typer

from pipelines.cli import options
from pipelines.cli.services import connect
from pipelines.local.images import absolute, add_held_out
from training import storage
from training.config.errors import UserError
from training.console import printable

_DEMO_HOURS = 0.3
"""The longest training of a demo of a user's own images."""
_DATA_OPTIONS = "data_options="


def demo(
    data: str = typer.Option("digits", help="digits, fashion (Fashion-MNIST), or a directory, zip or tar of your own images."),
    overrides: list[str] = options.SET,
    force_from: str = options.FROM,
) -> None:
    """Train, evaluate and report a small model: of handwritten digits in a few minutes; other images take longer."""
    from pipelines.client.arguments import arguments_of, compiled_pipeline
    from pipelines.local.training import train_here

    pipeline, resources = compiled_pipeline("train"), ["train.num_workers=2"]
    if data == "digits":
        arguments = arguments_of(
            pipeline, preset="digits-hybrid-cosine", overrides=overrides, words=(), resources=resources, force_from=force_from
        )
        compare = ("demo --set diffusion.schedule=linear", "the same with the linear schedule; MLflow compares the two")
        ablation = ("run ablation", "lambda against the stop-gradient, table 1 of the paper, on the digits")
        train_here(arguments, name="demo", next_steps=[compare, ablation])
    elif data in ("fashion", "fashion-mnist"):
        arguments = arguments_of(
            pipeline, preset="fashion-mnist-hybrid-cosine", overrides=overrides, words=(), resources=resources, force_from=force_from
        )
        train_here(arguments, name="demo-fashion-mnist")
    else:
        file = _demo_experiment(data)
        words = [f"experiment_file={file}", *_own_images(data)]
        arguments = arguments_of(pipeline, preset="", overrides=overrides, words=words, resources=resources, force_from=force_from)
        train_here(arguments)


def _demo_experiment(images: str) -> Path:
    """Write an experiment for these images, or return the one that an earlier demo of them wrote."""
    from pipelines.services.home import default_home, prepare

    # Two directories of one name are two data sets.
    name = f"{_slug(Path(images).stem)}-{hashlib.sha256(absolute(images).encode()).hexdigest()[:6]}"
    file = default_home() / "demo" / f"{name}.toml"
    command = f"iddpm train {shlex.quote(str(file))} --images {shlex.quote(images)}"
    text = "" if file.exists() else _write_experiment(images, command, card="CPU", name=name, hours=_DEMO_HOURS, compares_best=False)
    if text:
        prepare(default_home())
        storage.write_bytes(str(file), text.encode())
    print(f"{file} is the experiment; `iddpm train` takes it with changes of yours")
    return file


def init(
    images: str = typer.Option(..., help="Directory, zip or tar of your images; its subdirectories are classes."),
    out: Path = typer.Option(Path("my.toml"), "--out", "-o", help="File to write."),
    card: str = typer.Option("CPU", help="Accelerator that trains, like H100, A100 or L4; or CPU."),
    name: str = typer.Option("", help="Name of the data set and of the experiment; empty takes that of the images."),
    hours: float | None = typer.Option(None, min=0.01, help="The longest training; empty takes 4 hours on a CPU, a day on others."),
) -> None:
    """Write an experiment file for your own images, with sizes that fit them and your machine."""
    if out.suffix != ".toml":
        raise UserError(f"{out}: the name of an experiment file ends in .toml")
    if out.exists():
        raise UserError(f"{out} exists already; give another file by --out, or remove it")
    from training.cost.accelerators import card_named

    storage.check_destination(str(out))
    gpu = "" if card_named(card) == "CPU" else " --resources train=1xgpu"
    command = f"iddpm train {shlex.quote(str(out))} --images {shlex.quote(images)}{gpu}"
    comment = "".join(f"# {line}\n" for line in command.splitlines())  # a folder's name may have several lines
    text = _write_experiment(images, command, card=card, name=name or _slug(Path(images).stem), hours=hours)
    storage.write_bytes(str(out), f"{comment}\n{text}".encode())
    print(f"{out} has an experiment for them and says why; change it as you like, then:\n  {command}")


def _write_experiment(images: str, command: str, *, card: str, name: str, hours: float | None = None, compares_best: bool = True) -> str:
    """Look at a user's images, print what they are, and return the text of an experiment file for them; `command` trains on them."""
    connect()
    from training.cost.suggest import largest_image_size, suggest_experiment
    from training.data.inspection.folder import inspect_folder
    from training.data.preparation.options import ImageOptions
    from training.distributed.cores import available_cores

    found = inspect_folder(absolute(images))
    classes = f" in {len(found.class_counts)} classes" if found.class_counts else ""
    sides = found.short_sides
    pixels = f"{sides[0]} to {found.max_side}" if found.max_side > sides[0] else f"{sides[0]}"
    channels = "1 channel" if found.image_channels == 1 else f"{found.image_channels} channels"
    print(f"{images}: {found.num_images:,} images{classes}, {pixels} pixels, {channels}")
    if found.left_out:
        print(printable(found.left_out))
    if found.without_labels:
        print(printable(found.without_labels))
    if found.num_transparent:
        print(f"{found.num_transparent:,} of {found.num_inspected:,} have transparent pixels; these become white")
    if found.unreadable:
        first = found.unreadable[0]
        print(printable(f"{len(found.unreadable):,} cannot be read, the first is {first.source}: {first.reason}; this skips them:"))
        num_unreadable = len(found.unreadable) * -(-found.num_images // found.num_inspected)
        skip = {"on_error": "skip"} | ({"max_errors": num_unreadable} if num_unreadable > ImageOptions().max_errors else {})
        print(f"  {command} --param {shlex.quote(f'{_DATA_OPTIONS}{json.dumps(skip)}')}")
    size, usual_size = largest_image_size(sides[0], card), largest_image_size(sides[len(sides) // 2], card) or 8
    if size < usual_size:
        num_small = bisect.bisect_left(sides, usual_size)
        small = f"{num_small:,} of {found.num_inspected:,} are smaller than {usual_size} pixels, the smallest is {found.smallest}"
        if not size:
            raise UserError(f"{images}: {small} with {sides[0]}; images have at least 8, so remove those that are smaller")
        print(f"{printable(small)}: without them, images could be of {usual_size} pixels and not {size}")
    return suggest_experiment(
        num_images=found.num_images,
        min_side=sides[0],
        channels=found.image_channels,
        num_classes=len(found.class_counts),
        card=card,
        name=name,
        num_cores=available_cores(),
        hours=hours,
        compares_best=compares_best,
    )


def train(
    experiment: str = typer.Argument(
        ..., help="Preset, or experiment file (TOML): a base preset and what differs; `iddpm init` writes one."
    ),
    images: str = options.IMAGES,
    overrides: list[str] = options.SET,
    resources: list[str] = options.RESOURCES,
    parameters: list[str] = options.PARAM,
    force_from: str = options.FROM,
) -> None:
    """Train, evaluate and report an experiment on this machine. Its GPU is used with --resources train=1xgpu.

    Of images without a test split, every tenth is held out for bits/dim; --param data_options='{"num_test": N}' changes that.
    """
    from pipelines.cli.runs.experiment import add_experiment
    from pipelines.client.arguments import arguments_of, compiled_pipeline
    from pipelines.local.training import train_here

    pipeline = compiled_pipeline("train")
    preset, words = add_experiment(pipeline, experiment, preset="", words=parameters)
    words = _own_images(images, words) if images else words
    arguments = arguments_of(pipeline, preset=preset, overrides=overrides, words=words, resources=resources, force_from=force_from)
    train_here(arguments)


def _own_images(images: str, words: Sequence[str] = ()) -> list[str]:
    """Add a user's images to the pipeline's parameters, as words, and the test images that are held out unless the user says how many."""
    if any(word.startswith("data_source=") for word in words):
        raise UserError("--images and --param data_source both name the images; give one of them")
    address = absolute(images)
    given = [word for word in words if word.startswith(_DATA_OPTIONS)]
    if len(given) > 1:
        raise UserError("--param data_options is given twice; give one")
    connect()
    options = add_held_out(given[0].removeprefix(_DATA_OPTIONS) if given else "", address)
    return [*(word for word in words if word not in given), f"data_source={address}", f"{_DATA_OPTIONS}{json.dumps(options)}"]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"


def run(
    pipeline: str = typer.Argument("train", help="train, ablation, nightly-fid, compare or tune."),
    trained: str = options.TRAINED,
    preset: str = options.PRESET,
    overrides: list[str] = options.SET,
    parameters: list[str] = options.PARAM,
    resources: list[str] = options.RESOURCES,
    force_from: str = options.FROM,
) -> None:
    """Run a pipeline on this machine, with the services of `iddpm up`."""
    from pipelines.cli.runs.experiment import add_experiment
    from pipelines.client.arguments import arguments_of, compiled_pipeline, require_possible_here
    from pipelines.compile import load
    from pipelines.local.run import run_pipeline
    from pipelines.services import services

    compiled = compiled_pipeline(pipeline)
    preset, words = add_experiment(compiled, trained, preset=preset, words=parameters)
    arguments = arguments_of(compiled, preset=preset, overrides=overrides, words=words, resources=resources, force_from=force_from)
    require_possible_here(arguments)
    running = services.up()
    outputs = run_pipeline(load(pipeline), arguments, running)
    for name, value in outputs.items():
        print(f"{name}: {value}")
    print(f"MLflow: {running.mlflow_url}")


def compile_pipelines(
    directory: Path = typer.Argument(Path("compiled"), help="Directory for the YAML files."),
    kubernetes: bool = typer.Option(False, "--kubernetes", help="Write the objects Pipeline and PipelineVersion, for GitOps."),
) -> None:
    """Write the pipelines' YAML files, to upload them in the KFP UI.

    IDDPM_IMAGE names their image; IDDPM_PARALLEL_TRIALS is the number of trials of an ablation that run at once.
    """
    from components.container.image import BASE_IMAGE
    from pipelines.compile import compile_all

    for path in compile_all(directory, kubernetes=kubernetes):
        print(path)
    print(f"image: {BASE_IMAGE}")

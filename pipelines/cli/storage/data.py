"""preprocess, and dataset info, verify, preview: data sets."""

from __future__ import annotations

import functools
import json
from typing import Literal

import typer

from pipelines.cli.services import connect
from training.config.errors import UserError
from training.console import printable

SOURCES = (
    "a directory, .zip or .tar, s3:// address, digits, digits-few, fashion-mnist[:FOLDER], cifar10[:FOLDER], imagenet:FOLDER, "
    "imagenet64-official:FOLDER, imagenet64-labelled:FOLDER, or lsun-CATEGORY:FOLDER"
)
_DATASET = typer.Argument(..., help="Directory of a split of a data set, like s3://iddpm/data/digits-8x8x1-none/train.")


def preprocess(
    preset: str = typer.Argument(..., help="Preset, or experiment file (TOML), whose data section has size, channels and resize."),
    data: str = typer.Argument(..., help="Directory of the data set; it gets train and test."),
    source: str = typer.Option("", help=f"Source of the images: {SOURCES}. Empty takes the data set's name."),
    overrides: list[str] = typer.Option([], "--set", help="Override, like data.image_size=64; may be repeated."),
    labels: str = typer.Option("auto", help="Source of labels: auto, none, folders, filename, or a CSV or JSON file."),
    num_test: int = typer.Option(0, min=0, help="Number of test images to hold out of a source without a test split."),
    num_workers: int = typer.Option(1, min=1, help="Parallel Ray tasks; 1 works in this process."),
    on_error: Literal["fail", "skip"] = typer.Option("fail", help="Treatment of an unreadable image."),
    max_errors: int | None = typer.Option(None, min=1, show_default=False, help="The most images that skip may leave out. Default: 100."),
    allow_upscale: bool = typer.Option(False, help="Enlarge images that are too small, instead of failing."),
    reduced_decode: bool = typer.Option(False, help="Decode large JPEGs at reduced size: faster and less exact."),
    max_pixels: int = typer.Option(89478485, help="Largest width times height; a larger image is refused as a decompression bomb."),
    background: str = typer.Option("white", help="Colour behind transparent pixels: white, grey or black."),
    other_sizes: list[int] = typer.Option([], "--other-size", help="Further image size, stored in DATA/64x64 for 64; may be repeated."),
) -> None:
    """Prepare images as shards with a manifest. An interrupted command continues."""
    if max_errors is not None and on_error != "skip":
        raise UserError("--max-errors counts what --on-error skip leaves out; add it")
    connect()
    from training.config.files import named_experiment
    from training.data.splits import prepare_experiment
    from training.distributed.ray_session import parallel_map

    options = {
        "on_error": on_error,
        **({} if max_errors is None else {"max_errors": max_errors}),
        "allow_upscale": allow_upscale,
        "reduced_decode": reduced_decode,
        "max_pixels": max_pixels,
        "background": background,
    }
    source_options = {"labels": labels, "num_test": num_test}
    print(
        prepare_experiment(
            named_experiment(preset, overrides),
            data,
            source=source,
            source_options=source_options,
            options=options,
            other_sizes=other_sizes,
            shard_map=functools.partial(parallel_map, num_workers=num_workers),
        )
    )


def info(dataset: str = _DATASET, as_json: bool = typer.Option(False, "--json", help="Print the manifest as JSON.")) -> None:
    """Describe a data set."""
    import dataclasses

    connect()
    from training.data.format.manifest import read_manifest
    from training.data.inspection.dataset import describe

    manifest = read_manifest(dataset)
    if as_json:
        print(json.dumps(dataclasses.asdict(manifest), indent=2))
        return
    for name, value in describe(manifest).items():
        print(printable(f"{name:<10} {value}"))


def verify(dataset: str = _DATASET) -> None:
    """Read every byte of a data set and compare it with the manifest."""
    connect()
    from training.data.inspection.dataset import verify as check

    manifest = check(dataset)
    shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}"
    print(f"{dataset}: {manifest.num_images:,} images in {shards} match the manifest")


def preview(
    dataset: str = _DATASET,
    out: str = typer.Argument("preview.png", help="PNG file, s3:// or a path."),
    num_images: int = typer.Option(64, help="Number of images, from the first on."),
) -> None:
    """Write a labelled contact sheet."""
    connect()
    from training import storage
    from training.data.inspection.contact_sheet import preview as write

    storage.check_destination(out)
    write(dataset, out, num_images=num_images)
    print(out)

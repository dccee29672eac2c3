"""preprocess, and dataset info, verify, preview: the data plane."""

from __future__ import annotations

import functools
import json

import typer

from pipelines.cli.services import connect

_DATASET = typer.Argument(..., help="Directory of one split of a data set, like s3://iddpm/data/digits-8x8x1-none/train.")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Data")(preprocess)
    group = typer.Typer(no_args_is_help=True, help="Look at a data set: info, verify, preview.")
    group.command()(info)
    group.command()(verify)
    group.command()(preview)
    app.add_typer(group, name="dataset", rich_help_panel="Data")


def preprocess(
    preset: str = typer.Argument(..., help="Experiment whose data section says size, channels and resize."),
    data: str = typer.Argument(..., help="Directory of the data set; train and test go below it."),
    source: str = typer.Option("", help="Where images come from (cifar10, a folder, a .zip, ...); empty is the data set's name."),
    overrides: list[str] = typer.Option([], "--set", help="Override, like data.image_size=64; repeat it."),
    labels: str = typer.Option("auto", help="auto, none, folders, filename, or the address of a CSV or JSON file."),
    num_test: int = typer.Option(0, min=0, help="Test images to hold out of a source without a test split."),
    num_workers: int = typer.Option(1, min=1, help="Ray tasks at once; 1 works in this process."),
    on_error: str = typer.Option("fail", help="What an unreadable image does: fail, or skip."),
    max_errors: int = typer.Option(100, min=1, help="With skip, how many images may be left out."),
    allow_upscale: bool = typer.Option(False, help="Enlarge images that are too small."),
    reduced_decode: bool = typer.Option(False, help="Decode large JPEGs at reduced size: faster, less exact."),
    max_pixels: int = typer.Option(89478485, help="Width times height above which an image is refused as a decompression bomb."),
    other_sizes: list[int] = typer.Option([], "--other-size", help="Make this size too, in 64x64 below DATA for size 64; repeat it."),
) -> None:
    """Prepare images as shards with a manifest, or finish what was begun."""
    connect()
    from training.data.splits import prepare_experiment
    from training.distributed.parallel_map import parallel_map

    if on_error not in ("fail", "skip"):
        raise ValueError(f"--on-error must be fail or skip, got {on_error!r}")
    options = {
        "on_error": on_error,
        "max_errors": max_errors,
        "allow_upscale": allow_upscale,
        "reduced_decode": reduced_decode,
        "max_pixels": max_pixels,
    }
    source_options = {"labels": labels, "num_test": num_test}
    print(
        prepare_experiment(
            preset,
            overrides,
            data,
            source=source,
            source_options=source_options,
            options=options,
            other_sizes=other_sizes,
            shard_map=functools.partial(parallel_map, num_workers=num_workers),
        )
    )


def info(dataset: str = _DATASET, as_json: bool = typer.Option(False, "--json", help="The manifest, as JSON.")) -> None:
    """What a data set is."""
    import dataclasses

    connect()
    from training.data.format.manifest import read_manifest
    from training.data.inspection.dataset import describe

    manifest = read_manifest(dataset)
    if as_json:
        print(json.dumps(dataclasses.asdict(manifest), indent=2))
        return
    for name, value in describe(manifest).items():
        print(f"{name:<10} {value}")


def verify(dataset: str = _DATASET) -> None:
    """Read every byte and compare it with the manifest."""
    connect()
    from training.data.inspection.dataset import verify as check

    manifest = check(dataset)
    shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}"
    print(f"{dataset}: {manifest.num_images:,} images in {shards} are as the manifest says")


def preview(
    dataset: str = _DATASET,
    out: str = typer.Argument("preview.png", help="PNG to write, s3:// or a path."),
    num_images: int = typer.Option(64, help="How many of its first images."),
) -> None:
    """Write a labelled contact sheet."""
    connect()
    from training.data.inspection.contact_sheet import preview as write

    write(dataset, out, num_images=num_images)
    print(out)

"""The data sets that one experiment needs: a training split and a test split, as its data section says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from training import storage
from training.config.experiment import DataConfig
from training.config.presets import preset as make_experiment
from training.data.format.shards import DatasetError, Manifest
from training.data.preparation.prepare import Options, prepare_sizes
from training.data.sources.catalog import SourceOptions, open_splits
from training.data.sources.files import FileSource


def prepare_splits(
    data: DataConfig,
    data_uri: str,
    *,
    source: str = "",
    source_options: SourceOptions | None = None,
    options: Options | None = None,
    other_sizes: Mapping[int, str] | None = None,
) -> dict[str, Manifest]:
    """Makes `<data_uri>/train`, and `<data_uri>/test` where the source has test images or some are held out.

    Args:
        data: The experiment's data section: which size, channels and resize, and what has to come out.
        data_uri: Directory of the splits.
        source: Word for `training.data.sources.catalog.open_splits`; empty is the data set's own name.
        source_options: How the source is read: labels, held-out test images. A source without a name of its own takes
            the experiment's.
        options: The rest; its `resize` and `image_channels` are the experiment's.
        other_sizes: Data directories by further image sizes, made from the same decoding of each image: what the models
            of a cascade train on.

    Returns:
        Manifest by split, at the experiment's size.

    Raises:
        DatasetError: The result is not what the experiment says, or as for `prepare`.
        SourceError: There is no such source.
    """
    options = dataclasses.replace(options or Options(), resize=data.resize, image_channels=data.image_channels)
    named = dataclasses.replace(source_options or SourceOptions(), name=data.name)
    manifests: dict[str, Manifest] = {}
    for split, images in open_splits(source or data.name, named).items():
        if images.name != data.name:
            raise DatasetError(
                f"data.name is {data.name!r} in the experiment, but the source is {images.name!r}; override data.name={images.name}"
            )
        if isinstance(images, FileSource) and "train" in manifests:
            images.class_names = manifests["train"].class_names
        uris = {**(other_sizes or {}), data.image_size: data_uri}
        split_uris = {size: storage.join(uri, split) for size, uri in uris.items()}
        made = prepare_sizes(images, split_uris, options=options, num_classes=data.num_classes)
        manifests[split] = made[data.image_size]
        check_matches(manifests[split], data)
    return manifests


def default_data_uri(data: DataConfig, storage_root_uri: str) -> str:
    """Where a data set stands that was given no place: experiments on the same images share it, others never do."""
    return storage.join(storage_root_uri, "data", f"{data.name}-{data.image_size}x{data.image_size}x{data.image_channels}-{data.resize}")


def other_data_uri(data: DataConfig, data_uri: str, image_size: int) -> str:
    """Where another size of the images goes: beside a data set in its default place, otherwise below it.

    Beside it is the other size's own default place, where an experiment of that size looks.
    """
    root, separator, _ = data_uri.rpartition("/data/")
    if separator and data_uri == default_data_uri(data, root):
        return default_data_uri(dataclasses.replace(data, image_size=image_size), root)
    return storage.join(data_uri, f"{image_size}x{image_size}")


def check_matches(manifest: Manifest, data: DataConfig) -> None:
    """Compares a data set with what an experiment says of it.

    Raises:
        DatasetError: They differ.
    """
    for name in ("name", "image_size", "image_channels", "num_classes", "resize"):
        found, wanted = getattr(manifest, name), getattr(data, name)
        if found != wanted:
            raise DatasetError(
                f"data.{name} is {wanted!r} in the experiment, but the data set ({manifest.name}, {manifest.split}) has {found!r}; "
                f"use another data set, or override data.{name}={found}"
            )


def prepare_experiment(
    preset: str,
    overrides: Sequence[str],
    data_uri: str,
    *,
    storage_root_uri: str = "",
    source: str = "",
    source_options: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    other_sizes: Collection[int] = (),
    manifest_path: str = "",
) -> str:
    """`prepare_splits` in words that a pipeline can carry.

    Args:
        preset: The experiment's preset.
        overrides: Its overrides.
        data_uri: Directory of the splits; empty is `default_data_uri` under `storage_root_uri`.
        storage_root_uri: Where everything is kept.
        source: As for `prepare_splits`.
        source_options: Fields of `SourceOptions`.
        options: Fields of `Options`.
        other_sizes: Further image sizes to make from the same decoding; each goes to its `other_data_uri`.
        manifest_path: Local file for the manifests as one JSON object by split; empty writes none.

    Returns:
        The directory of the splits, for the steps that follow.

    Raises:
        UserError: There is no such preset, or an override is wrong.
        DatasetError: As for `prepare_splits`.
    """
    data = make_experiment(preset, overrides).data
    if not data_uri and not storage_root_uri:
        raise DatasetError("the data set needs a place: give data_uri, for instance s3://bucket/datasets/digits")
    data_uri = data_uri or default_data_uri(data, storage_root_uri)
    manifests = prepare_splits(
        data,
        data_uri,
        source=source,
        source_options=SourceOptions(**(source_options or {})),
        options=Options(**(options or {})),
        other_sizes={size: other_data_uri(data, data_uri, size) for size in map(int, other_sizes) if size != data.image_size},
    )
    if manifest_path:
        Path(manifest_path).parent.mkdir(parents=True, exist_ok=True)
        Path(manifest_path).write_text(
            json.dumps({split: dataclasses.asdict(manifest) for split, manifest in manifests.items()}, indent=2) + "\n"
        )
    return data_uri

"""The data sets of one experiment: a training split and a test split, as its data section describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from training import storage
from training.config.errors import UserError
from training.config.experiment import DataConfig, Experiment
from training.config.validation import validate
from training.data.format.manifest import Manifest, read_manifest
from training.data.preparation.options import Options
from training.data.preparation.prepare import ShardMap, check_listing, prepare_sizes
from training.data.sources.catalog import SourceOptions, list_splits, open_splits, source_folder


def prepare_splits(
    data: DataConfig,
    data_uri: str,
    *,
    source: str = "",
    source_options: SourceOptions | None = None,
    options: Options | None = None,
    other_sizes: Mapping[int, str] | None = None,
    shard_map: ShardMap = map,
) -> dict[str, Manifest]:
    """Make `<data_uri>/train`, and `<data_uri>/test` where the source has test images or some are held out.

    Arguments as for `prepare_experiment`, as objects; `name`, `resize` and `image_channels` are replaced by those of the experiment, and
    `other_sizes` maps each further size to its directory. Returns the manifest of each split at the experiment's size.
    """
    options = dataclasses.replace(options or Options(), resize=data.resize, image_channels=data.image_channels)
    source_options = dataclasses.replace(source_options or SourceOptions(), name=data.name)
    splits = open_splits(source or data.name, source_options)
    folder = source_folder(source)
    for uri in (data_uri, *(other_sizes or {}).values()):
        if folder and storage.is_same(uri, folder):
            raise UserError(
                f"{uri}: is the folder of the images, which a data set would be mixed with; name another directory for the data set"
            )
    for images in splits.values():
        if images.name != data.name:
            raise UserError(
                f"data.name is {data.name!r} in the experiment, but the source is {images.name!r}; override data.name={images.name}"
            )
    listings = list_splits(splits)
    for split, images in splits.items():  # all before the first is made, so that no refusal leaves a half
        check_listing(images, listings[split], data.num_classes)
    manifests: dict[str, Manifest] = {}
    for split, images in splits.items():
        uris = {size: storage.join(uri, split) for size, uri in {**(other_sizes or {}), data.image_size: data_uri}.items()}
        made = prepare_sizes(images, uris, options=options, listing=listings[split], shard_map=shard_map)
        manifests[split] = made[data.image_size]
        require_fit(manifests[split], data)
    return manifests


def default_data_uri(data: DataConfig, storage_root_uri: str) -> str:
    """Return the default directory of a data set: only experiments on the same images share it."""
    return storage.join(storage_root_uri, "data", f"{data.name}-{data.image_size}x{data.image_size}x{data.image_channels}-{data.resize}")


def other_data_uri(data: DataConfig, data_uri: str, image_size: int) -> str:
    """Return the directory of another size of the images: that size's default directory where `data_uri` is the default, else one below."""
    root, separator, _ = data_uri.rpartition("/data/")
    if separator and data_uri == default_data_uri(data, root):
        return default_data_uri(dataclasses.replace(data, image_size=image_size), root)
    return storage.join(data_uri, f"{image_size}x{image_size}")


def data_directories(data: DataConfig, data_uri: str, storage_root_uri: str, other_sizes: Collection[int] = ()) -> dict[int, str]:
    """Return the directory of each image size that `prepare_experiment` makes, that of the experiment's own size first."""
    own = data_uri or default_data_uri(data, storage_root_uri)
    return {data.image_size: own, **{size: other_data_uri(data, own, size) for size in map(int, other_sizes) if size != data.image_size}}


def read_train_manifest(data_uri: str) -> Manifest:
    """Return the manifest of a data set's training images.

    Raises:
        UserError: There is none, it is damaged, or it is that of the test images, since the directories were exchanged.
    """
    train = read_manifest(storage.join(data_uri, "train"))
    if train.split == "test":
        raise UserError(f"{storage.join(data_uri, 'train')}: has the test images, as its manifest says; exchange train and test again")
    return train


def require_fit(manifest: Manifest, data: DataConfig) -> None:
    """Refuse a data set that differs from an experiment's data section, with each difference.

    Raises:
        UserError: Name, size, channels, number of classes or resize method differ.
    """
    names = ("name", "image_size", "image_channels", "num_classes", "resize")
    different = [name for name in names if getattr(manifest, name) != getattr(data, name)]
    if different:
        differences = "; ".join(f"data.{name} is {getattr(data, name)!r}, there {getattr(manifest, name)!r}" for name in different)
        overrides = " ".join(f"data.{name}={getattr(manifest, name)}" for name in different)
        raise UserError(
            f"the data set {manifest.name} ({manifest.split}) does not fit the experiment: {differences}; use another data set, "
            f"or override {overrides}"
        )


def prepare_experiment(
    experiment: Experiment,
    data_uri: str,
    *,
    storage_root_uri: str = "",
    source: str = "",
    source_options: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    other_sizes: Collection[int] = (),
    shard_map: ShardMap = map,
) -> str:
    """Make the experiment's data set, and return its directory: `train`, and `test` where the source has test images or some are held out.

    Args:
        experiment: The experiment, whose data section the result must match.
        data_uri: Directory of the splits; empty is `default_data_uri` under `storage_root_uri`.
        storage_root_uri: Root of everything that is stored.
        source: Address for `training.data.sources.catalog.open_splits`; empty is the name of the data set.
        source_options: Fields of `SourceOptions`.
        options: Fields of `Options`.
        other_sizes: Further image sizes to make from the same decoding; each goes to its `other_data_uri`.
        shard_map: Applies a function to every shard's job; see `prepare_sizes`.

    Raises:
        UserError: An option is wrong, there is no such source, its images can't be used, or the result does not match the experiment.
    """
    data = experiment.data
    if not data_uri and not storage_root_uri:
        raise UserError("the data set needs a directory: give data_uri, for instance s3://bucket/datasets/digits")
    uris = data_directories(data, data_uri, storage_root_uri, other_sizes)
    data_uri = uris.pop(data.image_size)
    prepare_splits(
        data,
        data_uri,
        source=source,
        source_options=validate(SourceOptions, source_options or {}),
        options=validate(Options, options or {}),
        other_sizes=uris,
        shard_map=shard_map,
    )
    return data_uri

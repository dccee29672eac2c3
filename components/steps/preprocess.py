"""The preprocess step: make the data set, and pass its digest to the steps that follow."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from components.launch.logs import LogPlace
from training import storage


class Data(NamedTuple):
    """A data set, as text that a pipeline can carry."""

    data_uri: str
    digest: str


def prepare_data(
    experiment: str,
    data_uri: str,
    storage_root_uri: str,
    source: str,
    source_options: Mapping[str, Any],
    options: Mapping[str, Any],
    other_sizes: Sequence[int],
    resources: Mapping[str, Any],
) -> str:
    """Call `training.data.splits.prepare_experiment` with the workers of `resources`, fields of `training.config.experiment.Resources`."""
    from training.config.experiment import Experiment
    from training.data.splits import prepare_experiment
    from training.distributed.ray_session import parallel_map

    return prepare_experiment(
        Experiment.from_json(experiment),
        data_uri,
        storage_root_uri=storage_root_uri,
        source=source,
        source_options=source_options,
        options=options,
        other_sizes=other_sizes,
        shard_map=functools.partial(parallel_map, num_workers=int(resources["num_workers"])),
    )


def find_log(arguments: Mapping[str, Any]) -> LogPlace:
    """Return the directory of the data set, and the manifests that show whether the step made something, from its arguments."""
    from training.config.experiment import Experiment
    from training.data.format.manifest import MANIFEST
    from training.data.splits import data_directories

    data = Experiment.from_json(arguments["experiment"]).data
    uris = data_directories(data, arguments["data_uri"], arguments["storage_root_uri"], arguments["other_sizes"])
    manifests = tuple(storage.join(uri, split, MANIFEST) for uri in uris.values() for split in ("train", "test"))
    return LogPlace(uris[data.image_size], manifests)


def write_manifests(data_uri: str, manifest_path: str) -> Data:
    """Write a data set's manifests to a local file, as one JSON object by split.

    Returns:
        The directory, and the content digest of the training images, which keys the cached results of later steps.
    """
    from training.data.format.manifest import MANIFEST, read_manifest

    uris = {split: storage.join(data_uri, split) for split in ("train", "test")}
    manifests = {split: read_manifest(uri) for split, uri in uris.items() if storage.exists(storage.join(uri, MANIFEST))}
    text = json.dumps({split: dataclasses.asdict(found) for split, found in manifests.items()}, indent=2) + "\n"
    storage.write_bytes(manifest_path, text.encode())
    return Data(data_uri, manifests["train"].content_digest)

"""The manifest of a prepared data set: its identity, its shards, and the digests that identify its content.

`manifest.json` is written last: a directory without it is no data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training import storage
from training.config.errors import UserError
from training.config.validation import parse_json, validate

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

Images = npt.NDArray[np.uint8]
"""Pixels on disk: uint8 `[..., height, width, channels]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of the data set.

    Attributes:
        sha256: Digest of the file; it changes with the version of the Parquet library.
        rows_sha256: Digest of the rows (pixels, label, source id, in order); it does not.
    """

    file: str
    num_rows: int
    num_bytes: int
    sha256: str
    rows_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadableImage:
    """An image that was left out, and the reason."""

    source: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Description of a data set.

    Attributes:
        schema_version: Version of this file and of the shards; readers refuse any other.
        name: The data set and its release ("digits", "imagenet64-official", ...).
        image_size: Height and width in pixels.
        num_classes: Number of labels, with the names `class_names` and `class_counts` images each; 0 for an unlabelled data set.
        resize: Method by which a larger image became `image_size`; see `training.data.images.resize`.
        reduced_decode: True where the JPEG decoder halved large images itself, which is faster and less exact.
        num_upscaled: Images that were smaller than `image_size`, and were enlarged because an option allowed it.
        split_seed: Seed that drew the test images from a source without a test split; None where the source has one.
        plan_sha256: Digest of everything that decides the images and their order: the source's listing and the options.
        content_digest: Digest of the content and its division into shards; independent of workers, restarts and library versions.
        errors: Images that could not be read and were skipped.
        source_sha256: Digest of the source's files with their times or checksums. It changes when a file is written again, even as a
            copy, so it takes no part in comparing data sets. Empty in a data set of an early release.
        background: Colour behind transparent pixels.
    """

    schema_version: int
    name: str
    split: str
    image_size: int
    image_channels: int
    num_images: int
    num_classes: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    resize: str
    reduced_decode: bool
    num_upscaled: int
    shuffle_seed: int
    split_seed: int | None
    plan_sha256: str
    content_digest: str
    shards: tuple[Shard, ...]
    errors: tuple[UnreadableImage, ...]
    source_sha256: str = dataclasses.field(default="", compare=False)
    background: str = "white"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a row."""
        return self.image_size, self.image_size, self.image_channels

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.image_size * self.image_size * self.image_channels

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_IDENTITY = ("name", "split", "image_size", "image_channels", "resize", "reduced_decode", "shuffle_seed", "split_seed", "class_names")


def manifest_digest(manifest: Manifest) -> str:
    """Compute the content digest: over the identity of the data set and the rows of its shards in order."""
    identity: dict[str, Any] = {name: getattr(manifest, name) for name in _IDENTITY}
    identity["shards"] = [[shard.num_rows, shard.rows_sha256] for shard in manifest.shards]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def make_again(dataset_uri: str) -> str:
    """Return the remedy for a damaged data set; it must be deleted, as a preparation leaves a finished data set as it is."""
    return f"delete {dataset_uri} and prepare the data set again"


def read_manifest(dataset_uri: str) -> Manifest:
    """Read the manifest of a complete data set; refuse another directory, a damaged file, and another schema version."""
    uri = storage.join(dataset_uri, MANIFEST)
    try:
        text = storage.read_bytes(uri)
    except storage.ObjectNotFoundError as error:
        splits = [storage.join(dataset_uri, split) for split in ("train", "test")]
        found = [split for split in splits if storage.exists(storage.join(split, MANIFEST))]
        if found:
            raise UserError(f"{dataset_uri}: contains the splits of a data set; name one of them: {' or '.join(found)}") from error
        parent = dataset_uri.rstrip("/").rpartition("/")[0]
        if parent and storage.exists(storage.join(parent, MANIFEST)):
            raise UserError(f"{dataset_uri}: there is no data set, but the directory above it is one; name {parent}") from error
        raise UserError(f"{dataset_uri}: there is no data set ({MANIFEST} is missing); prepare one with `iddpm preprocess`") from error
    return _parse_manifest(text, uri, make_again(dataset_uri))


def _parse_manifest(text: bytes, uri: str, remedy: str) -> Manifest:
    def damaged(reason: str) -> UserError:
        return UserError(f"{uri}: {reason}; the manifest is damaged, so {remedy}")

    try:
        value = parse_json(text)
    except ValueError as error:
        raise damaged(f"is not JSON ({error})") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        if isinstance(version, int) and version > SCHEMA_VERSION:
            remedy = "a later release made it, so use that one, or another directory (data_uri)"
        raise UserError(f"{uri}: schema version {version!r}, but this program reads {SCHEMA_VERSION}; {remedy}")
    try:
        manifest: Manifest = validate(Manifest, value)
    except UserError as error:
        raise damaged(str(error)) from error
    # Readers copy a shard to a file of this name, and delete the copy: a path would lead them out of their directory.
    path = next((shard.file for shard in manifest.shards if not re.fullmatch(r"\w[\w.-]*", shard.file)), None)
    if path is not None:
        raise damaged(f"shards has {path!r}, which is no name of a file")
    # Readers allocate memory for as many rows as the manifest declares, so its numbers must agree.
    agreements = {
        "num_images": manifest.num_images == sum(shard.num_rows for shard in manifest.shards) > 0,
        "num_classes": manifest.num_classes == len(manifest.class_names),
        "class_counts": manifest.num_classes == len(manifest.class_counts) and sum(manifest.class_counts) <= manifest.num_images,
        "image_size": manifest.image_size > 0,
        "image_channels": manifest.image_channels in (1, 3),
        "content_digest": manifest_digest(manifest) == manifest.content_digest,
    }
    for name in (name for name, agrees in agreements.items() if not agrees):
        raise damaged(f"{name} contradicts the other fields")
    return manifest

"""Describe and verify a prepared data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training import storage
from training.config.errors import UserError
from training.console import format_bytes
from training.data.format.manifest import Manifest, Shard, make_again, read_manifest
from training.data.format.shards import RowsDigest, read_row_groups
from training.data.loading.staging import local_shard


def describe(manifest: Manifest) -> dict[str, str]:
    """Return the lines of `iddpm dataset info`: the name of each property and its value as text."""
    counts = manifest.class_counts
    lines = {
        "name": f"{manifest.name}, {manifest.split}",
        "images": f"{manifest.num_images:,} of {manifest.image_size}x{manifest.image_size}x{manifest.image_channels}",
        "classes": f"{manifest.num_classes}, of {_range(counts)} images" if counts else "none",
        "resize": manifest.resize + (" after a reduced decode" if manifest.reduced_decode else ""),
        "background": f"{manifest.background} behind transparent pixels",
        "shards": f"{len(manifest.shards)}, {format_bytes(sum(shard.num_bytes for shard in manifest.shards))}",
        "order": f"shuffled by seed {manifest.shuffle_seed}",
        "digest": manifest.content_digest,
    }
    if manifest.split_seed is not None:
        lines["split"] = f"drawn by seed {manifest.split_seed}"
    if manifest.num_upscaled:
        lines["upscaled"] = f"{manifest.num_upscaled:,} images were smaller"
    if manifest.errors:
        first = manifest.errors[0]
        lines["left out"] = (
            f"{len(manifest.errors):,} unreadable images (--json lists them); the first is {first.source}: it {first.reason}"
        )
    return lines


def verify(dataset_uri: str) -> Manifest:
    """Read every byte of a data set; refuse one that differs from the manifest, and name every such shard."""
    manifest = read_manifest(dataset_uri)
    counts = np.zeros(manifest.num_classes, dtype=np.int64)
    faults: list[str] = []
    remedy = make_again(dataset_uri)
    with storage.scratch_directory("verify") as directory:
        for shard in manifest.shards:
            try:
                with local_shard(dataset_uri, shard, directory) as path:
                    counts += _verify_rows(path, shard, manifest)
            except pa.ArrowException as error:
                faults.append(f"{storage.join(dataset_uri, shard.file)}: is not a shard ({error})")
            except UserError as error:
                faults.append(str(error).removesuffix(f"; {remedy}"))  # it is told once, for all shards
    if not faults and tuple(counts.tolist()) != manifest.class_counts:
        faults.append(f"{dataset_uri}: the labels of the rows differ from the manifest's counts")
    if faults:
        raise UserError(f"{'; '.join(faults)}; {remedy}")
    return manifest


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,} to {most:,}" if least < most else f"{least:,}"


def _verify_rows(path: Path, shard: Shard, manifest: Manifest) -> npt.NDArray[np.int64]:
    """Compare the rows of a shard with its digest; return the number of images by label."""
    digest = RowsDigest()
    counts = np.zeros(manifest.num_classes, dtype=np.int64)
    num_rows = 0
    with pq.ParquetFile(path) as file:
        for images, labels, sources in read_row_groups(file, manifest.image_shape):
            for image, label, source in zip(images, labels.tolist(), sources, strict=True):
                digest.update(image.tobytes(), label, source)
            if labels.size and not (labels.min() >= -1 and labels.max() < manifest.num_classes):
                raise UserError(f"{shard.file}: has labels outside of 0..{manifest.num_classes - 1}")
            counts += np.bincount(labels[labels >= 0], minlength=manifest.num_classes)
            num_rows += len(labels)
    if num_rows != shard.num_rows or digest.hexdigest() != shard.rows_sha256:
        raise UserError(f"{shard.file}: its rows differ from the manifest")
    return counts

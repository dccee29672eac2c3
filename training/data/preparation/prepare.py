"""From a source of images to a data set: plan the whole order first, make each shard independently, publish last.

The order of all images is drawn before any is read, so every shard is a job of its own. The result depends neither on the number of
workers, nor on which finishes first, nor on the number of interruptions.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training import storage
from training.config.errors import UserError
from training.console import format_bytes, format_rate, format_remaining, printable, say
from training.data.format.manifest import MANIFEST, SCHEMA_VERSION, Manifest, UnreadableImage, make_again, manifest_digest, read_manifest
from training.data.format.order import Purpose, permutation
from training.data.format.shards import rows_per_shard
from training.data.preparation.options import Options
from training.data.preparation.shard_job import (
    PARTIAL,
    ShardJob,
    ShardRecord,
    Target,
    delete_unfinished,
    is_shard_name,
    make_shard,
    read_record,
    too_many_errors,
)
from training.data.sources.source import Item, Listing, Source, is_digest_of, items_digest

_Result = tuple[int, dict[int, ShardRecord]]

ShardMap = Callable[[Callable[[ShardJob], _Result], Sequence[ShardJob]], Iterable[_Result]]
"""Applies a function to every job, in any order: `map` in this process, or `training.distributed.ray_session` on Ray."""


def prepare(source: Source, dataset_uri: str, *, image_size: int, options: Options | None = None, shard_map: ShardMap = map) -> Manifest:
    """Make one size of the images; see `prepare_sizes`."""
    return prepare_sizes(source, {image_size: dataset_uri}, options=options, shard_map=shard_map)[image_size]


def prepare_sizes(
    source: Source,
    dataset_uris: Mapping[int, str],
    *,
    options: Options | None = None,
    listing: Listing | None = None,
    shard_map: ShardMap = map,
) -> dict[int, Manifest]:
    """Make a data set for each size, from one decoding of each image; finish it or find it if an earlier run made it.

    All sizes are divided into shards of the same rows, whose number follows from the largest size. A size that is made together with a
    larger one therefore has smaller shards and another content digest than one made alone. Its images and their order are the same,
    and a later request for it alone finds it.

    If files of the source were written after a data set was made, they are read again and compared with it.

    Args:
        dataset_uris: Directory by image size, each a data set of its own.
        options: The defaults are the paper's area downsampling.
        listing: The source's listing, where `check_listing` has passed it; None makes it.

    Raises:
        UserError: The directory contains another data set, or its source files have changed since; or images can't be used and
            `options` do not let them be left out. A finished data set stays as it was made.
    """
    options = options or Options()
    if not dataset_uris or min(dataset_uris) < 1:
        raise UserError(f"image sizes must be at least 1, got {sorted(dataset_uris)}")
    if listing is None:
        listing = source.listing()
        check_listing(source, listing)
    for sentence in (listing.left_out(), listing.without_labels()):
        if sentence:
            say(printable(f"{source.address}: {sentence}"))
    plan = _plan(source, listing, dataset_uris, options)
    manifests: dict[int, Manifest] = {}
    unfinished: dict[int, list[Target]] = {}
    for target in plan.targets:
        found = _find_complete(target, plan)
        if found is not None and plan.has_files_of(found):
            left_out = f"; {len(found.errors):,} could not be used when they were prepared" if found.errors else ""
            say(f"{target.dataset_uri}: {found.num_images:,} images are there already{left_out}")
            manifests[target.image_size] = found
            continue
        if found is None:
            storage.check_destination(storage.join(target.dataset_uri, MANIFEST))  # before images are decoded
        else:
            say(f"{target.dataset_uri}: files of the source were written since it was made, so they are read again and compared")
        rows = plan.rows_per_shard if found is None else _rows_per_shard(found, plan)
        unfinished.setdefault(rows, []).append(dataclasses.replace(target, rows_per_shard=rows))
    for rows, targets in unfinished.items():
        manifests |= _make(source, dataclasses.replace(plan, targets=tuple(targets), rows_per_shard=rows), options, shard_map)
    return {size: manifests[size] for size in dataset_uris}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    listing: Listing
    source_sha256: str
    targets: tuple[Target, ...]
    identities: dict[int, dict[str, Any]]
    order: Sequence[int]
    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.order) // self.rows_per_shard)

    def items(self, number: int) -> list[Item]:
        rows = self.order[number * self.rows_per_shard : (number + 1) * self.rows_per_shard]
        return [self.listing.items[row] for row in rows]

    def has_files_of(self, manifest: Manifest) -> bool:
        """Return True where no file was written since the data set was made; one of an early release does not tell."""
        return manifest.source_sha256 in ("", self.source_sha256) or is_digest_of(manifest.source_sha256, self.listing.items)


def check_listing(source: Source, listing: Listing, num_classes: int | None = None) -> None:
    """Refuse a listing without an image, with two of one name, or with another number of labels than `num_classes`; None accepts any."""
    if not listing.items:
        raise UserError(f"{source.address}: has no images; check the address")
    found = len(listing.class_names)
    if num_classes is not None and found != num_classes:
        raise UserError(
            f"{source.address}: the {source.split} images have {found} label{'s' if found != 1 else ''}, but the experiment has "
            f"data.num_classes={num_classes}; "
            + (listing.without_labels() or "choose another rule for labels, or override data.num_classes")
        )
    name, count = Counter(item.key for item in listing.items).most_common(1)[0]
    if count > 1:
        raise UserError(f"{source.address}: lists {name!r} {count} times; remove the duplicates")


def _plan(source: Source, listing: Listing, dataset_uris: Mapping[int, str], options: Options) -> _Plan:
    channels = options.image_channels or source.image_channels
    rows = options.rows_per_shard or rows_per_shard(max(dataset_uris) ** 2 * channels)
    listing_digest = listing.digest()
    targets, identities = [], {}
    for size, uri in dataset_uris.items():
        identity: dict[str, Any] = {
            "name": source.name,
            "split": source.split,
            "image_size": size,
            "image_channels": channels,
            "resize": options.resize,
            "reduced_decode": options.reduced_decode,
            "shuffle_seed": options.seed,
            "split_seed": source.split_seed,
        }
        # White, the default, is left out, so that data sets made before the option existed are found.
        background = {} if options.background == "white" else {"background": options.background}
        decisive = {
            **identity,
            **background,
            "schema_version": SCHEMA_VERSION,
            "allow_upscale": options.allow_upscale,
            "max_pixels": options.max_pixels,
            "decoded_for": max(dataset_uris) if options.reduced_decode else 0,
            "listing": listing_digest,
        }
        plan_sha256 = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        targets.append(Target(dataset_uri=uri, image_size=size, plan_sha256=plan_sha256, rows_per_shard=rows))
        identities[size] = {**identity, "background": options.background}
    return _Plan(
        listing=listing,
        source_sha256=items_digest(listing.items),
        targets=tuple(targets),
        identities=identities,
        order=permutation(len(listing.items), options.seed, Purpose.SHUFFLE).tolist(),
        rows_per_shard=rows,
    )


def _find_complete(target: Target, plan: _Plan) -> Manifest | None:
    """Return the manifest of the complete data set of this plan, or None; refuse one of which a shard is missing or has another size."""
    if not storage.exists(storage.join(target.dataset_uri, MANIFEST)):
        return None
    manifest = read_manifest(target.dataset_uri)
    if manifest.plan_sha256 != target.plan_sha256:
        differences = [
            f"{name} {getattr(manifest, name)!r} there, {value!r} here"
            for name, value in plan.identities[target.image_size].items()
            if getattr(manifest, name) != value
        ]
        raise UserError(
            f"{target.dataset_uri}: already contains another data set ({', '.join(differences) or 'of other source files or options'}); "
            "choose another directory (data_uri) or name (data.name), or delete that one"
        )
    num_bytes = {stored.uri: stored.num_bytes for stored in storage.list_objects(target.dataset_uri)}
    for shard in manifest.shards:
        uri = storage.join(target.dataset_uri, shard.file)
        if num_bytes.get(uri) != shard.num_bytes:
            fault = f"has {num_bytes[uri]:,} bytes, the manifest says {shard.num_bytes:,}" if uri in num_bytes else "the shard is missing"
            raise UserError(f"{uri}: {fault}; {make_again(target.dataset_uri)}")
    return manifest


def _rows_per_shard(manifest: Manifest, plan: _Plan) -> int:
    """Return the division into shards of a complete data set, which may be another than the plan's.

    A shard has fewer rows where images were left out of it, so the division is the one that gives every shard its number of rows.
    """
    num_rows = [shard.num_rows for shard in manifest.shards]
    left_out = {error.source for error in manifest.errors}
    is_used = [plan.listing.items[row].key not in left_out for row in plan.order]
    for rows in range(max(num_rows), max(num_rows) + len(left_out) + 1):
        divided = [sum(is_used[first : first + rows]) for first in range(0, len(is_used), rows)]
        if [number for number in divided if number] == num_rows:
            return rows
    return plan.rows_per_shard


def _make(source: Source, plan: _Plan, options: Options, shard_map: ShardMap) -> dict[int, Manifest]:
    done: dict[int, dict[int, ShardRecord]] = {}
    for number in range(plan.num_shards):
        stored = ((target.image_size, read_record(target, number, plan.items(number))) for target in plan.targets)
        # An earlier run may have skipped images that end this one.
        found = {size: record for size, record in stored if record is not None and (options.on_error == "skip" or not record.errors)}
        if len(found) == len(plan.targets):
            done[number] = found
    jobs = [
        ShardJob(
            number=number,
            source=source,
            items=plan.items(number),
            targets=plan.targets,
            options=options,
        )
        for number in range(plan.num_shards)
        if number not in done
    ]
    if done:
        say(f"{source.name}, {source.split}: {len(done)} of {plan.num_shards} shards exist from an earlier run")
    progress = Progress(f"{source.name}, {source.split}", jobs)
    errors = [error for number in done for error in progress.report_unreadable(done[number])]
    _require_few_errors(source.address, errors, options)
    for number, records in shard_map(make_shard, jobs):
        done[number] = records
        errors += progress.report_unreadable(records)
        _require_few_errors(source.address, errors, options)
        progress.add_finished(number, records)
    return {
        target.image_size: _publish(source, target, plan, [done[n][target.image_size] for n in range(plan.num_shards)])
        for target in plan.targets
    }


def _require_few_errors(address: str, errors: Sequence[UnreadableImage], options: Options) -> None:
    if len(errors) > (options.max_errors if options.on_error == "skip" else 0):
        raise too_many_errors(address, errors, options)


def _lacks(source: Source, plan: _Plan, records: Sequence[ShardRecord]) -> str:
    """Return a message about a split without an image, or training images without one of a class that the source has; empty for others."""
    used = {label for record in records for label in record.label_counts}
    if not used:
        return f"{source.address}: not one image could be read; check the source"
    lost = sorted({item.label for item in plan.listing.items} - used) if source.split == "train" else []
    names = ", ".join(repr(plan.listing.class_names[label]) for label in lost[:3]) + (", ..." if len(lost) > 3 else "")
    return f"{source.address}: no image can be used of the class {names}; repair one to train on, or remove the class" if lost else ""


def _publish(source: Source, target: Target, plan: _Plan, records: Sequence[ShardRecord]) -> Manifest:
    uri = target.dataset_uri
    replaced = any(read_record(target, number, plan.items(number)) is None for number in range(plan.num_shards))
    found = _find_complete(target, plan)  # read after the records, which a run that publishes deletes
    if found is not None:
        return _compare(target, plan, records, found)
    if replaced:
        raise UserError(f"{uri}: another run has replaced shards there; choose another directory, or run this again alone")
    if lack := _lacks(source, plan, records):
        for each in plan.targets:
            delete_unfinished(each, range(plan.num_shards))
        raise UserError(lack)
    manifest = _manifest(target, plan, records)
    names = {shard.file for shard in manifest.shards}
    for stored_uri in storage.list_uris(uri):
        name = stored_uri.rpartition("/")[2]
        # Other files of the directory, and those of directories below it, are not ours.
        if stored_uri == storage.join(uri, name) and is_shard_name(name) and name not in names:
            storage.delete(stored_uri)  # from an abandoned plan, or without one readable image
    storage.write_bytes(storage.join(uri, MANIFEST), manifest.to_json().encode())
    storage.delete_prefix(storage.join(uri, PARTIAL))
    storage.delete_partial_files(uri)
    shards = f"{len(names):,} shard{'s' if len(names) > 1 else ''}"
    say(f"{uri}: {manifest.num_images:,} images in {shards}" + (f", {len(manifest.errors)} left out" if manifest.errors else ""))
    return manifest


def _compare(target: Target, plan: _Plan, records: Sequence[ShardRecord], found: Manifest) -> Manifest:
    """Return the manifest that is there; where source files were written since, first compare its rows with the new ones."""
    if not plan.has_files_of(found):
        if [record.shard.rows_sha256 for record in records if record.shard.num_rows] != [shard.rows_sha256 for shard in found.shards]:
            raise UserError(
                f"{target.dataset_uri}: files of its source were overwritten since it was made, and its shards differ from theirs; "
                "delete it to make it again, or choose another directory"
            )
        found = dataclasses.replace(found, source_sha256=plan.source_sha256)
        storage.write_bytes(storage.join(target.dataset_uri, MANIFEST), found.to_json().encode())
    say(f"{target.dataset_uri}: {found.num_images:,} images are there already")
    return found


def _manifest(target: Target, plan: _Plan, records: Sequence[ShardRecord]) -> Manifest:
    counts = functools.reduce(lambda total, record: total + Counter(record.label_counts), records, Counter[int]())
    shards = tuple(record.shard for record in records if record.shard.num_rows)
    class_names = plan.listing.class_names
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        num_images=sum(shard.num_rows for shard in shards),
        num_classes=len(class_names),
        class_names=class_names,
        class_counts=tuple(counts[label] for label in range(len(class_names))),
        num_upscaled=sum(record.num_upscaled for record in records),
        plan_sha256=target.plan_sha256,
        source_sha256=plan.source_sha256,
        content_digest="",
        shards=shards,
        errors=tuple(error for record in records for error in record.errors),
        **plan.identities[target.image_size],
    )
    return dataclasses.replace(manifest, content_digest=manifest_digest(manifest))


_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Prints the images and bytes done, at most one line every few seconds, and each image that is left out."""

    def __init__(self, name: str, jobs: Sequence[ShardJob]) -> None:
        """Set the name of the work and the jobs that are still to do."""
        self._name = name
        self._num_items = {job.number: len(job.items) for job in jobs}
        self._total = sum(self._num_items.values())
        self._total_bytes = sum(item.num_bytes for job in jobs for item in job.items)
        self._start = self._last = time.monotonic()
        self._images = self._bytes = 0

    def add_finished(self, number: int, records: Mapping[int, ShardRecord]) -> None:
        """Count a finished job: its number, and its record by image size."""
        self._images += self._num_items[number]
        self._bytes += next(iter(records.values())).num_bytes_read
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self._images == self._total:
            self._last = now
            rate = format_rate(self._images, now - self._start, "images")
            left = format_remaining(self._images, self._total, now - self._start)
            total_bytes = f" of {format_bytes(self._total_bytes)}" if self._total_bytes else ""  # an lmdb lists no sizes
            parts = [f"{self._images:,} of {self._total:,} images", f"{format_bytes(self._bytes)}{total_bytes} read", rate, left]
            say(f"{self._name}: {', '.join(part for part in parts if part)}")

    def report_unreadable(self, records: Mapping[int, ShardRecord]) -> tuple[UnreadableImage, ...]:
        """Print the images of a job that could not be used, with the reasons; return them."""
        errors = next(iter(records.values())).errors
        for error in errors:
            say(printable(f"{self._name}: left out {error.source}: it {error.reason}"))
        return errors

"""From a source of images to a data set: plan the whole order first, make each shard independently, publish last.

The order of all images is drawn before any is read, so every shard is a piece of work of its own, and the outcome
depends neither on how many workers there are, nor on who finishes first, nor on how often the work was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from training import storage
from training.config.experiment import Resize
from training.console import say
from training.data.format.order import Purpose, permutation
from training.data.format.shards import MANIFEST, SCHEMA_VERSION, DatasetError, Manifest, manifest_digest, read_manifest, rows_per_shard
from training.data.images.decoding import LARGEST_MAX_PIXELS, MAX_PIXELS
from training.data.preparation.progress import Progress
from training.data.preparation.shard_job import PARTIAL, ShardJob, ShardRecord, Target, make_shard, read_record, too_many_errors
from training.data.sources.source import Item, Listing, Source, SourceError, items_digest
from training.distributed.parallel_map import spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How images become a data set.

    Attributes:
        resize: See `training.data.images.decoding`.
        seed: Seed of the global order of the rows.
        image_channels: 1 or 3; None takes the source's.
        rows_per_shard: None takes as many as make 128 to 256 MB. Changes neither the images nor their order.
        num_workers: Processes; more than 1 are Ray tasks. Does not change the outcome.
        on_error: What an unreadable image does: stop the work, or be left out and listed in the manifest.
        max_errors: With "skip", how many may be left out before the work stops.
        allow_upscale: Enlarge images that are too small instead of refusing them.
        reduced_decode: Faster and less exact; see `training.data.images.decoding.prepare_image`.
        max_pixels: Width times height above which an image is refused as a decompression bomb.
    """

    resize: Resize = "area"
    seed: int = 0
    image_channels: int | None = None
    rows_per_shard: int | None = None
    num_workers: int = 1
    on_error: Literal["fail", "skip"] = "fail"
    max_errors: int = 100
    allow_upscale: bool = False
    reduced_decode: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "num_workers", "max_errors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DatasetError(f"{name.replace('_', '-')} must be at least 1, got {value}")
        if not 1 <= self.max_pixels <= LARGEST_MAX_PIXELS:
            raise DatasetError(f"max-pixels must be 1 to {LARGEST_MAX_PIXELS:,}, got {self.max_pixels:,}")
        if self.on_error not in ("fail", "skip"):
            raise DatasetError(f"on-error must be 'fail' or 'skip', got {self.on_error!r}")
        if self.resize not in get_args(Resize):
            raise DatasetError(f"resize must be one of {', '.join(get_args(Resize))}, got {self.resize!r}")
        if not 0 <= self.seed < 2**64:
            raise DatasetError(f"seed must be 0 up to 2^64 - 1, got {self.seed}")
        if self.image_channels not in (None, 1, 3):
            raise DatasetError(f"image-channels must be 1 (grey) or 3 (RGB), got {self.image_channels}")


def prepare(
    source: Source, dataset_uri: str, *, image_size: int, options: Options | None = None, num_classes: int | None = None
) -> Manifest:
    """Makes the data set in that directory, or finishes it, or finds that it is there.

    Args:
        source: The images.
        dataset_uri: Where to; one directory holds one data set (one split at one size).
        image_size: Height and width in pixels.
        options: How; the defaults are the paper's area downsampling in this process.
        num_classes: How many labels the source has to have; None takes any.

    Raises:
        DatasetError: Another data set is there, or the images can't be used.
        SourceError: The source can't be listed.
        StorageError: The place can't be read or written.
    """
    return prepare_sizes(source, {image_size: dataset_uri}, options=options, num_classes=num_classes)[image_size]


def prepare_sizes(
    source: Source, dataset_uris: Mapping[int, str], *, options: Options | None = None, num_classes: int | None = None
) -> dict[int, Manifest]:
    """Makes several sizes of the same images, each image decoded once, all cut into shards of the same rows.

    The rows of a shard follow from the largest size. A size that was made beside a larger one is therefore cut more
    finely than one that was made alone, and has another content digest, but the same images in the same order: whoever
    asks for it alone later finds it there.

    Args:
        source: The images.
        dataset_uris: Directory by image size, each a data set of its own.
        options: As for `prepare`.
        num_classes: As for `prepare`.

    Returns:
        Manifest by image size.

    Raises:
        DatasetError: As for `prepare`.
    """
    options = options or Options()
    if not dataset_uris or min(dataset_uris) < 1:
        raise DatasetError(f"image sizes must be at least 1, got {sorted(dataset_uris)}")
    listing = source.listing()
    _check_listing(source, listing, num_classes)
    plan = _plan(source, listing, dataset_uris, options)
    published = {target.image_size: _published(target, plan) for target in plan.targets}
    missing = tuple(target for target in plan.targets if published[target.image_size] is None)
    if missing:
        published |= _make(source, dataclasses.replace(plan, targets=missing), options)
    return {size: manifest for size, manifest in published.items() if manifest is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    listing: Listing
    targets: tuple[Target, ...]
    identities: dict[int, dict[str, object]]
    order: Sequence[int]
    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.order) // self.rows_per_shard)

    def items(self, number: int) -> list[Item]:
        rows = self.order[number * self.rows_per_shard : (number + 1) * self.rows_per_shard]
        return [self.listing.items[row] for row in rows]


def _check_listing(source: Source, listing: Listing, num_classes: int | None) -> None:
    if not listing.items:
        raise SourceError(f"{source.name}: has no images")
    found = len(listing.class_names)
    if num_classes is not None and found != num_classes:
        raise DatasetError(
            f"{source.name}: the source has {found} labels, but the experiment says data.num_classes={num_classes}; "
            "choose another rule for labels, or override data.num_classes"
        )
    if len({item.key for item in listing.items}) < len(listing.items):
        twice = Counter(item.key for item in listing.items).most_common(1)[0][0]
        raise SourceError(f"{source.name}: lists {twice!r} more than once")


def _plan(source: Source, listing: Listing, dataset_uris: Mapping[int, str], options: Options) -> _Plan:
    channels = options.image_channels or source.image_channels
    image_bytes = max(dataset_uris) ** 2 * channels
    rows = options.rows_per_shard or rows_per_shard(image_bytes)
    listing_digest = listing.digest()
    targets, identities = [], {}
    for size, uri in dataset_uris.items():
        identity: dict[str, object] = {
            "name": source.name,
            "split": source.split,
            "image_size": size,
            "image_channels": channels,
            "resize": options.resize,
            "reduced_decode": options.reduced_decode,
            "shuffle_seed": options.seed,
            "split_seed": source.split_seed,
        }
        everything = {
            **identity,
            "schema_version": SCHEMA_VERSION,
            "allow_upscale": options.allow_upscale,
            "max_pixels": options.max_pixels,
            "decoded_for": max(dataset_uris) if options.reduced_decode else 0,
            "listing": listing_digest,
        }
        plan_sha256 = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        targets.append(Target(dataset_uri=uri, image_size=size, plan_sha256=plan_sha256, rows_per_shard=rows))
        identities[size] = identity
    order = permutation(len(listing.items), options.seed, Purpose.SHUFFLE).tolist()
    return _Plan(listing=listing, targets=tuple(targets), identities=identities, order=order, rows_per_shard=rows)


def _published(target: Target, plan: _Plan) -> Manifest | None:
    """The complete data set, where the same plan made one; None where there is none."""
    if not storage.exists(storage.join(target.dataset_uri, MANIFEST)):
        return None
    manifest = read_manifest(target.dataset_uri)
    if manifest.plan_sha256 != target.plan_sha256:
        wanted = plan.identities[target.image_size]
        differing = [
            f"{name} {getattr(manifest, name)!r} there, {value!r} here"
            for name, value in wanted.items()
            if getattr(manifest, name) != value
        ]
        raise DatasetError(
            f"{target.dataset_uri}: already holds another data set ({', '.join(differing) or 'of other source files or options'}); "
            "choose another place, or delete that one"
        )
    told = f"{target.dataset_uri}: {manifest.num_images:,} images are there already"
    if manifest.source_sha256 not in ("", items_digest(plan.listing.items)):
        # Said and not refused: a copy, or a touch, is another file of the same image, and only reading everything again would tell.
        told += ", but files of the source were written since; if they are other images now, delete the data set or choose another place"
    say(told)
    return manifest


def _make(source: Source, plan: _Plan, options: Options) -> dict[int, Manifest]:
    done: dict[int, dict[int, ShardRecord]] = {}
    for number in range(plan.num_shards):
        stored = ((target.image_size, read_record(target, number, plan.items(number))) for target in plan.targets)
        found = {size: record for size, record in stored if record is not None}
        if len(found) == len(plan.targets):
            done[number] = found
    jobs = [
        ShardJob(
            number=number,
            source=source,
            items=plan.items(number),
            targets=plan.targets,
            image_channels=options.image_channels or source.image_channels,
            resize=options.resize,
            allow_upscale=options.allow_upscale,
            reduced_decode=options.reduced_decode,
            max_pixels=options.max_pixels,
            max_errors=options.max_errors if options.on_error == "skip" else -1,
        )
        for number in range(plan.num_shards)
        if number not in done
    ]
    if done:
        say(f"{source.name}, {source.split}: {len(done)} of {plan.num_shards} shards are there from before")
    progress = Progress(f"{source.name}, {source.split}", jobs)
    errors = [error for number in done for error in progress.left_out(done[number])]
    for number, records in spread(_make_numbered, jobs, num_workers=options.num_workers):
        done[number] = records
        errors += progress.left_out(records)
        if len(errors) > options.max_errors:
            raise too_many_errors(source.place, errors, options.max_errors)
        progress.finished(number, records)
    return {
        target.image_size: _publish(target, plan, [done[n][target.image_size] for n in range(plan.num_shards)]) for target in plan.targets
    }


def _make_numbered(job: ShardJob) -> tuple[int, dict[int, ShardRecord]]:
    return job.number, make_shard(job)


def _overtaken(target: Target, plan: _Plan) -> Manifest | None:
    """The data set, where another run of the same plan has published it meanwhile."""
    mixed = any(read_record(target, number, plan.items(number)) is None for number in range(plan.num_shards))
    found = _published(target, plan)  # looked for second, because whoever publishes takes the records away
    if mixed and found is None:
        raise DatasetError(f"{target.dataset_uri}: another run has put other shards there; choose another place, or run this again alone")
    return found


def _publish(target: Target, plan: _Plan, records: Sequence[ShardRecord]) -> Manifest:
    overtaken = _overtaken(target, plan)
    if overtaken is not None:
        return overtaken
    counts = functools.reduce(lambda total, record: total + Counter(record.label_counts), records, Counter[int]())
    kept = [record.shard for record in records if record.shard.num_rows]
    if not kept:
        raise DatasetError(f"{target.dataset_uri}: not one image could be read")
    class_names = plan.listing.class_names
    identity = {**plan.identities[target.image_size], "class_names": class_names}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        num_images=sum(shard.num_rows for shard in kept),
        num_classes=len(class_names),
        class_counts=tuple(counts[label] for label in range(len(class_names))),
        num_upscaled=sum(record.num_upscaled for record in records),
        plan_sha256=target.plan_sha256,
        source_sha256=items_digest(plan.listing.items),
        content_digest="",
        shards=tuple(kept),
        errors=tuple(error for record in records for error in record.errors),
        **identity,  # type: ignore[arg-type]
    )
    manifest = dataclasses.replace(manifest, content_digest=manifest_digest(manifest))
    names = {shard.file for shard in kept}
    for uri in storage.list_uris(target.dataset_uri):
        name = uri.rpartition("/")[2]
        if name.endswith(".parquet") and name not in names:
            storage.delete(uri)  # of a plan that was given up, or a shard without one readable image
    storage.write_bytes(storage.join(target.dataset_uri, MANIFEST), manifest.to_json().encode())
    storage.delete_prefix(storage.join(target.dataset_uri, PARTIAL))
    storage.delete_leftovers(target.dataset_uri)
    say(
        f"{target.dataset_uri}: {manifest.num_images:,} images in {len(kept):,} shard{'s' if len(kept) > 1 else ''}"
        + (f", {len(manifest.errors)} left out" if manifest.errors else "")
    )
    return manifest

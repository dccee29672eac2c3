"""Work on many images in chunks: one file each, written whole, by any number of workers. A chunk that exists is not redone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from evaluation.sampling.trained_model import load_cached
from training import storage
from training.config.plain import as_plain, as_plain_fields
from training.console import format_duration, say, with_progress
from training.distributed.ray_session import parallel_map


class ChunkedPlan:
    """Fields that all plans of chunked work share; each plan is a frozen dataclass."""

    num_images: int
    batch_size: int
    chunk_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return what determines the content of the chunks, as plain values for JSON. The batch size does not."""
        plain = as_plain(as_plain_fields(self))
        del plain["batch_size"]
        return plain

    @property
    def num_chunks(self) -> int:
        """Number of files."""
        return -(-self.num_images // self.chunk_size)


PlanT = TypeVar("PlanT", bound=ChunkedPlan)


@dataclass(frozen=True, slots=True)
class Chunk(Generic[PlanT]):
    """Chunk `number` of the work of `plan`, counted from 0; `uri` is the file to write."""

    plan: PlanT
    uri: str
    number: int
    device: str

    @property
    def start(self) -> int:
        """Index of its first image."""
        return self.number * self.plan.chunk_size

    @property
    def size(self) -> int:
        """Number of its images."""
        return min(self.plan.chunk_size, self.plan.num_images - self.start)


def process_chunks(
    function: Callable[[Chunk[PlanT]], int],
    plan: PlanT,
    chunk_uris: list[str],
    *,
    directory: str,
    activity: str,
    num_workers: int,
    device: str,
) -> None:
    """Process the chunks whose files are missing, and print the progress.

    `function` writes a chunk's file and returns the number of its images; it is importable by name, because workers call it.
    `chunk_uris` has the file of every chunk, all in `directory`. `activity` is what is done with an image, for the lines printed:
    "drew". `num_workers` of 1 works in this process; more are Ray tasks. `device` is that of each worker.
    """
    load_cached.cache_clear()  # the checkpoint may have been written again since the last call
    present = set(storage.list_uris(directory))
    chunks = [Chunk(plan, uri, number, device) for number, uri in enumerate(chunk_uris) if uri not in present]
    if len(chunks) < len(chunk_uris):
        say(f"{len(chunk_uris) - len(chunks)} of {len(chunk_uris)} chunks exist already")
    total = sum(chunk.size for chunk in chunks)
    started = time.monotonic()
    counts = parallel_map(function, chunks, num_workers=num_workers, num_gpus_per_worker=int(device != "cpu"))
    done = sum(with_progress(counts, activity, total, int))
    if done:
        say(f"{activity} {done:,} images in {format_duration(time.monotonic() - started)}")


def default_chunk_size(num_images: int, batch_size: int) -> int:
    """Return a size of whole batches that makes about twenty chunks: enough to spread over workers, and few files.

    `batch_size` is the default of images of this size. A user's own must not change the chunks, because chunks of another size
    would be computed again.
    """
    return batch_size * max(1, -(-num_images // (20 * batch_size)))

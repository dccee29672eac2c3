"""Interface of an image source: a listing that is cheap, and a reader of single images that any process can open.

A source contains only its configuration, so it is cheap to send to another process. The listing is made once, by the process that
plans the work, and each job carries its own part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training import storage
from training.config.errors import UserError
from training.console import format_bytes
from training.data.format.manifest import Images
from training.data.format.order import Purpose, permutation
from training.data.images.decode import ImageError
from training.data.images.limits import MAX_PIXELS
from training.storage.errors import explain_disk_errors

Reader = Callable[[Any], "bytes | Images"]
"""Maps an item's locator to the bytes of an image file, or to pixels `[height, width, channels]` where they are stored raw."""

_MAX_FILE_BYTES_PER_PIXEL = 12  # 16 bits, four channels, and half as much again for metadata


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes:
        key: Its name within the source; unique, and the same on every machine.
        label: 0 and up; -1 where there is none.
        locator: Argument for the source's reader.
        version: Changes when the file is overwritten by one of the same size; empty where the key identifies the content.
        earlier_version: The version that an earlier release gave it, by which the data sets of that release are found; empty if the same.
    """

    key: str
    label: int
    num_bytes: int
    locator: Any
    version: str = ""
    earlier_version: str = ""


def source_version(uri: str) -> str:
    """Return the version of a file that contains many images; on a disk its size and time, which are the same on every node."""
    if storage.is_s3(uri):
        return storage.version(uri)
    with explain_disk_errors(uri):
        found = storage.local_path(uri).stat()
        return f"{found.st_size}-{found.st_mtime_ns}"


def items_digest(items: Iterable[Item]) -> str:
    """Return a sha256 over keys, labels, sizes and versions: equal digests mean the same files, of which none was overwritten."""
    sha256 = hashlib.sha256()
    for item in items:
        sha256.update(f"{item.key}\0{item.label}\0{item.num_bytes}\0{item.version}\n".encode())
    return sha256.hexdigest()


def is_digest_of(digest: str, items: Sequence[Item]) -> bool:
    """Return True for the `items_digest` of these items, also for that of an earlier release."""
    if digest == items_digest(items):
        return True
    return digest == items_digest(dataclasses.replace(item, version=item.earlier_version or item.version) for item in items)


@dataclass(frozen=True, slots=True)
class Listing:
    """All images of a source, in an order that depends on nothing but the source.

    Attributes:
        class_names: Name of each label; empty for an unlabelled source.
        others: Names of the files beside the images that are left out, archives first.
        strays: Names of the images beside folders that would be classes without them.
        unused: Names of the images beside the folders of the splits.
        hidden: Names of the images in folders whose names begin with a dot.
    """

    items: Sequence[Item]
    class_names: tuple[str, ...]
    others: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    def left_out(self) -> str:
        """Return a sentence about the files that are no images and the images that no split has; empty if there are none."""
        count = len(self.others)
        subject = "1 file is not an image and is" if count == 1 else f"{count:,} files are not images and are"
        found = [f"{subject} left out, like {self.others[0]}"] if count else []
        if self.unused:
            folders = Counter(name.partition("/")[0] if "/" in name else "no folder" for name in self.unused).most_common(4)
            places = [f"{number:,} in {folder}" for folder, number in folders[:3]] + ["..."] * (len(folders) > 3)
            subject = "1 image is" if len(self.unused) == 1 else f"{len(self.unused):,} images are"
            found.append(f"{subject} beside the folders of the training and the test images and left out: {', '.join(places)}")
        if self.hidden:
            subject = "1 image is in a hidden folder" if len(self.hidden) == 1 else f"{len(self.hidden):,} images are in hidden folders"
            found.append(f"{subject} and left out, like {self.hidden[0]}; take the dot from the folder's name if they belong to the others")
        return "; ".join(found)

    def without_labels(self) -> str:
        """Return a sentence about the images whose place takes the labels from all others; empty if there are none."""
        if not self.strays:
            return ""
        count, first = len(self.strays), self.strays[0]
        subject, them = (f"{first} is", "it") if count == 1 else (f"{count:,} images, like {first}, are", "them")
        return (
            f"{subject} beside the folders and in none of them, so the folders are not taken for classes; move {them} into one of them or "
            "away, or set labels to 'none' if they are no classes"
        )

    def digest(self) -> str:
        """Return a sha256 over keys, labels and sizes, which distinguishes sources without reading their pixels."""
        sha256 = hashlib.sha256(repr(self.class_names).encode())
        for item in self.items:
            sha256.update(f"{item.key}\0{item.label}\0{item.num_bytes}\n".encode())
        return sha256.hexdigest()


class Source(ABC):
    """Images with names and, where the source has them, labels.

    Attributes:
        split_seed: Seed that drew this split; None where the source itself defines it.
        concurrency: Number of reads that one process should keep in flight; more than 1 where a read waits for a network.
    """

    name: str
    split: str
    image_channels: int = 3
    split_seed: int | None = None
    concurrency: int = 1

    @property
    def address(self) -> str:
        """The address of the files, or the name of a source without files; used in messages."""
        return self.name

    @abstractmethod
    def listing(self) -> Listing:
        """List every image of the source.

        Raises:
            UserError: There is nothing, or the files are not in the expected form.
        """

    @abstractmethod
    def open(self) -> AbstractContextManager[Reader]:
        """Open a reader of items, valid until the context ends."""


def read_items(
    source: Source, items: Iterable[Item], *, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[Item, bytes | Images | ImageError]]:
    """Yield each item with its data, or with the reason why it has none, in order, with `source.concurrency` reads in flight.

    A file that is larger than any image of `max_pixels` is not read.
    """

    def read(item: Item) -> bytes | Images | ImageError:
        if item.num_bytes > _MAX_FILE_BYTES_PER_PIXEL * max_pixels:
            return ImageError(f"is too large: {format_bytes(item.num_bytes)}, more than any image of {max_pixels:,} pixels")
        try:
            return reader(item.locator)
        except ImageError as error:
            return error

    with source.open() as reader:
        if source.concurrency <= 1:
            yield from ((item, read(item)) for item in items)
            return
        pending: deque[tuple[Item, Future[bytes | Images | ImageError]]] = deque()
        pool = ThreadPoolExecutor(source.concurrency)
        try:
            for item in items:
                pending.append((item, pool.submit(read, item)))
                if len(pending) >= source.concurrency:
                    first, future = pending.popleft()
                    yield first, future.result()
            for last, future in pending:
                yield last, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class RandomSplit(Source):
    """The training or the test images of a source that a recorded seed divides at random."""

    def __init__(self, whole: Source, *, split: str, num_test: int, seed: int) -> None:
        self.whole = whole
        self.name = whole.name
        self.split = split
        self.image_channels = whole.image_channels
        self.concurrency = whole.concurrency
        self.seed = self.split_seed = seed
        self.num_test = num_test

    @property
    def address(self) -> str:
        """The address of the whole source."""
        return self.whole.address

    def listing(self) -> Listing:
        """List the split; see `divide`."""
        return self.divide(self.whole.listing())

    def divide(self, whole: Listing) -> Listing:
        """Return the split's part of a listing of the whole source, in the source's order.

        The test images are the first `num_test` of a seeded permutation, passing over one that is the last training image of its class.

        Raises:
            UserError: There are too few images.
        """
        labels = [item.label for item in whole.items]
        left = Counter(labels)
        test: set[int] = set()
        for i in permutation(len(labels), self.seed, Purpose.SPLIT).tolist():
            if len(test) < self.num_test and left[labels[i]] > 1:
                test.add(i)
                left[labels[i]] -= 1
        if not 0 < self.num_test == len(test):
            kept = " and keep one of each class to train on" if len(left) > 1 else ""
            raise UserError(f"{self.address}: can't hold out {self.num_test} test images of {len(labels)}{kept}; lower num_test")
        items = [item for i, item in enumerate(whole.items) if (i in test) == (self.split == "test")]
        if self.split == "test":  # what is left out is told once, with the training images
            return Listing(items, whole.class_names)
        return Listing(items, whole.class_names, whole.others, whole.strays, hidden=whole.hidden)

    def open(self) -> AbstractContextManager[Reader]:
        """Open the reader of the whole source."""
        return self.whole.open()


class ArraySource(Source):
    """Images that fit into memory as one array; items are located by their row."""

    def __init__(self, name: str, split: str, *, image_channels: int) -> None:
        self.name = name
        self.split = split
        self.image_channels = image_channels

    @abstractmethod
    def arrays(self) -> tuple[Images, npt.NDArray[np.int64], tuple[str, ...]]:
        """Load images `[rows, height, width, channels]`, labels and class names."""

    def listing(self) -> Listing:
        """List one item per row, named by split and position."""
        images, labels, class_names = self.arrays()
        num_bytes = int(images[0].nbytes) if len(images) else 0
        return Listing([Item(f"{self.split}/{row:07d}", int(label), num_bytes, row) for row, label in enumerate(labels)], class_names)

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Load the arrays once and read from them."""
        images, _, _ = self.arrays()
        yield lambda row: images[row]

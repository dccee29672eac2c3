"""Where images come from: a listing that is cheap, and a way to read one image that any process can use.

A source holds only its configuration, so that it travels to another process cheaply; a listing is made once, by whoever
plans the work, and each piece of work carries its own part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.format.order import Purpose, permutation
from training.data.format.shards import Images

Reader = Callable[[Any], "bytes | Images"]
"""An item's locator to the bytes of an image file, or to pixels `[height, width, channels]` where they are stored raw."""


class SourceError(ValueError):
    """A source that can't be listed or read; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes:
        key: Its name within the source, unique, the same on every machine.
        label: 0 and up; -1 where there is none.
        num_bytes: Size of its file, for progress and for telling a changed source.
        locator: What the source's reader needs to find it.
        version: Another one when the file is overwritten by one of the same size; empty where the name says it all.
    """

    key: str
    label: int
    num_bytes: int
    locator: Any
    version: str = ""


def items_digest(items: Iterable[Item]) -> str:
    """sha256 over what is known of some files without reading them: two equal ones are of the same files, not overwritten between."""
    sha256 = hashlib.sha256()
    for item in items:
        sha256.update(f"{item.key}\0{item.label}\0{item.num_bytes}\0{item.version}\n".encode())
    return sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class Listing:
    """All images of a source, in an order that depends on nothing but the source.

    Attributes:
        items: The images.
        class_names: Name of each label; empty for an unlabelled source.
    """

    items: Sequence[Item]
    class_names: tuple[str, ...]

    def digest(self) -> str:
        """sha256 over keys, labels and sizes: tells one source from another without reading its pixels."""
        sha256 = hashlib.sha256(repr(self.class_names).encode())
        for item in self.items:
            sha256.update(f"{item.key}\0{item.label}\0{item.num_bytes}\n".encode())
        return sha256.hexdigest()

    def class_counts(self) -> tuple[int, ...]:
        """Images of each label."""
        counts = Counter(item.label for item in self.items)
        return tuple(counts[label] for label in range(len(self.class_names)))


class Source(ABC):
    """Images with names and, where it has them, labels.

    Attributes:
        name: The data set and its release.
        split: "train" or "test".
        image_channels: Channels that its images naturally have.
        split_seed: Seed that drew this split, where the source itself has none.
        concurrency: Reads that one process should keep in flight; more than 1 where a read waits on a network.
    """

    name: str
    split: str
    image_channels: int = 3
    split_seed: int | None = None
    concurrency: int = 1

    @property
    def place(self) -> str:
        """What to call it in a message: where its files are, if it has files."""
        return self.name

    @abstractmethod
    def listing(self) -> Listing:
        """Every image of the source.

        Raises:
            SourceError: There is nothing, or it isn't what it should be.
        """

    @abstractmethod
    def open(self) -> AbstractContextManager[Reader]:
        """A reader of items, good until the context ends."""


class HeldOut(Source):
    """One side of a source that is divided at random into training and test images, by a recorded seed."""

    def __init__(self, whole: Source, *, split: str, num_test: int, seed: int) -> None:
        self.whole = whole
        self.name = whole.name
        self.split = split
        self.image_channels = whole.image_channels
        self.concurrency = whole.concurrency
        self.seed = self.split_seed = seed
        self.num_test = num_test

    @property
    def place(self) -> str:
        """The whole source's."""
        return self.whole.place

    def listing(self) -> Listing:
        """The first `num_test` images of a seeded permutation are the test images; each side keeps the source's order."""
        whole = self.whole.listing()
        if not 0 < self.num_test < len(whole.items):
            raise SourceError(f"{self.name}: can't hold out {self.num_test} test images of {len(whole.items)}; lower --num-test")
        order = permutation(len(whole.items), self.seed, Purpose.SPLIT)
        chosen = order[: self.num_test] if self.split == "test" else order[self.num_test :]
        return Listing([whole.items[i] for i in np.sort(chosen)], whole.class_names)

    def open(self) -> AbstractContextManager[Reader]:
        """The whole source's reader."""
        return self.whole.open()


class ArraySource(Source):
    """Images that are arrays in memory anyway; items are located by their row."""

    def __init__(self, name: str, split: str, *, image_channels: int) -> None:
        self.name = name
        self.split = split
        self.image_channels = image_channels

    @abstractmethod
    def arrays(self) -> tuple[Images, npt.NDArray[np.int64], tuple[str, ...]]:
        """Images `[rows, height, width, channels]`, labels, class names."""

    def listing(self) -> Listing:
        """One item a row, named by the split and its position."""
        images, labels, class_names = self.arrays()
        size = int(images[0].nbytes) if len(images) else 0
        return Listing([Item(f"{self.split}/{row:07d}", int(label), size, row) for row, label in enumerate(labels)], class_names)

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Loads the arrays once."""
        images, _, _ = self.arrays()
        yield lambda row: images[row]


class Digits(ArraySource):
    """The 1,797 handwritten digits that scikit-learn ships: 8x8, grey, 17 levels, 10 classes.

    Level k of 0..16 becomes round(k * 255 / 16). UCI's "Optical Recognition of Handwritten Digits", test part.
    """

    def __init__(self) -> None:
        super().__init__("digits", "all", image_channels=1)

    def arrays(self) -> tuple[Images, npt.NDArray[np.int64], tuple[str, ...]]:
        """Images `[1797, 8, 8, 1]`, labels 0 to 9, their names."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        return images, digits.target.astype(np.int64), tuple(str(digit) for digit in range(10))


DIGITS_NUM_TEST = 300
DIGITS_SPLIT_SEED = 20210218
"""Which 300 digits are the test images; changing it makes another data set."""


def digits(split: str) -> Source:
    """The demo's data: 1,497 training and 300 test images."""
    return HeldOut(Digits(), split=split, num_test=DIGITS_NUM_TEST, seed=DIGITS_SPLIT_SEED)

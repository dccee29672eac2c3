"""Inspect a folder of images before an experiment is written for it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from training import storage
from training.config.errors import UserError
from training.data.format.manifest import UnreadableImage
from training.data.images.decode import ImageError, is_transparent, open_image
from training.data.preparation.prepare import check_listing
from training.data.sources.catalog import list_splits, open_splits
from training.data.sources.source import Listing, read_items

MAX_INSPECTED = 10_000

_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSummary:
    """The images of a folder.

    Attributes:
        num_images: Training images, by their names.
        num_test_images: Images in a folder of test images next to `train`; 0 where there is none.
        num_inspected: Training images that were read; the following fields describe these.
        short_sides: Shorter side of each that can be read, in pixels, the smallest first.
        smallest: The image with the smallest one.
        num_transparent: Images with an alpha channel or a transparent colour.
        class_counts: Training images by class, where the subfolders are classes; else empty.
        unreadable: Inspected files that can't be read as images, with the reasons.
        left_out: A sentence about the files beside the training images that are no images; empty if there are none.
        without_labels: A sentence about images beside folders that would be classes without them; empty if there are none.
    """

    uri: str
    num_images: int
    num_test_images: int
    num_inspected: int
    short_sides: tuple[int, ...]
    smallest: str
    max_side: int
    num_grey: int
    num_transparent: int
    class_counts: Mapping[str, int]
    unreadable: tuple[UnreadableImage, ...]
    left_out: str
    without_labels: str

    @property
    def image_channels(self) -> int:
        """1 where every inspected image is grey, else 3."""
        return 1 if self.num_grey == self.num_inspected - len(self.unreadable) else 3


class _Header(NamedTuple):
    short_side: int
    source: str
    long_side: int
    is_grey: bool
    is_transparent: bool


def inspect_folder(uri: str, *, max_inspected: int = MAX_INSPECTED) -> FolderSummary:
    """Count the images of a folder, and read the headers of at most `max_inspected` of them, evenly spaced.

    Pixels are not decoded: a file that is cut off is found only by `iddpm preprocess`.

    Args:
        uri: A folder, an S3 prefix, a zip or a tar; its folders are classes as `iddpm preprocess` makes them.

    Raises:
        UserError: There is no such folder, it contains no image, too few, or two of one name, none of its images can be read, or its test
            images have no labels next to training images that have them.
    """
    if not uri:
        raise UserError("the address of the images is empty; name the folder that contains them, '.' if it is this one")
    if not storage.is_s3(uri) and not storage.local_path(uri).exists():
        raise UserError(f"{uri}: there is no such folder; name the one that contains the images")
    # An absolute path is never taken for the name of a published data set.
    sources = open_splits(uri if storage.is_s3(uri) else str(storage.local_path(uri).absolute()))
    listings = list_splits(sources)
    for split, source in sources.items():
        check_listing(source, listings[split])
    listing = listings["train"]
    step = -(-len(listing.items) // max_inspected)
    inspected = listing.items[::step]
    headers: list[_Header] = []
    unreadable: list[UnreadableImage] = []
    for item, data in read_items(sources["train"], inspected):
        try:
            if isinstance(data, ImageError):
                raise data
            assert isinstance(data, bytes)  # a source of files gives bytes
            image = open_image(io.BytesIO(data))
            headers.append(_Header(min(image.size), item.key, max(image.size), image.mode in _GREY_MODES, is_transparent(image)))
        except ImageError as error:
            unreadable.append(UnreadableImage(source=item.key, reason=str(error)))
    if not headers:
        first = unreadable[0]
        raise UserError(f"{uri}: none of {len(unreadable):,} images can be read; the first, {first.source}, {first.reason}")
    _require_enough(uri, listings)
    counts = Counter(listing.class_names[item.label] for item in listing.items if item.label >= 0)
    return FolderSummary(
        uri=uri,
        num_images=len(listing.items),
        num_test_images=len(listings["test"].items) if "test" in listings else 0,
        num_inspected=len(inspected),
        short_sides=tuple(sorted(header.short_side for header in headers)),
        smallest=min(headers).source,
        max_side=max(header.long_side for header in headers),
        num_grey=sum(header.is_grey for header in headers),
        num_transparent=sum(header.is_transparent for header in headers),
        class_counts=dict(sorted(counts.items())),
        unreadable=tuple(unreadable),
        left_out=listing.left_out(),
        without_labels=listing.without_labels(),
    )


def _require_enough(uri: str, listings: Mapping[str, Listing]) -> None:
    """Refuse fewer images than `iddpm train` needs: 2 to train on, which have a covariance, and one of each class; and a test image."""
    items = listings["train"].items
    num_train = max(2, len({item.label for item in items}))
    num_test = 0 if "test" in listings else 1  # held out of the training images
    if len(items) < num_train + num_test:
        held_out = " and 1 to hold out for bits/dim" if num_test else ""
        raise UserError(
            f"{uri}: has {len(items)} training image(s), and training takes {num_train + num_test} or more: {num_train} to train "
            f"on{held_out}; add images"
        )

"""The options of a preparation, which a user writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from training.config.errors import UserError
from training.config.experiment import Resize
from training.config.validation import KnownFieldsOnly, require
from training.data.images.limits import LARGEST_MAX_PIXELS, MAX_PIXELS, Background


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOptions(KnownFieldsOnly):
    """Options for reading images that are no part of the experiment.

    Attributes:
        on_error: "fail" stops at an unreadable image; "skip" leaves it out and lists it in the manifest.
        max_errors: With "skip", images that may be left out before the work stops.
        allow_upscale: Enlarge images that are too small instead of refusing them.
        reduced_decode: Decode large JPEGs at reduced size: faster, about two grey levels off the exact average.
        max_pixels: Width times height above which an image is refused as a decompression bomb.
    """

    on_error: Literal["fail", "skip"] = "fail"
    max_errors: int = 100
    allow_upscale: bool = False
    reduced_decode: bool = False
    max_pixels: int = MAX_PIXELS
    background: Background = "white"

    def __post_init__(self) -> None:
        _require_ranges(self, {"max_errors": (1, 2**31 - 1), "max_pixels": (1, LARGEST_MAX_PIXELS)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(ImageOptions):
    """Options of a preparation, from images to a data set.

    Attributes:
        resize: Method; see `training.data.images.resize`.
        seed: Seed of the global order of the rows, 0 up to 2^64.
        image_channels: 1 (grey) or 3 (RGB); None takes the source's.
        rows_per_shard: Images per shard; None chooses shards of 128 to 256 MB. Changes neither the images nor their order.
    """

    resize: Resize = "area"
    seed: int = 0
    image_channels: int | None = None
    rows_per_shard: int | None = None

    def __post_init__(self) -> None:
        ImageOptions.__post_init__(self)
        require(self.image_channels in (None, 1, 3), "image_channels", f"must be 1 or 3, got {self.image_channels}")
        _require_ranges(self, {"seed": (0, 2**64 - 1), "rows_per_shard": (1, 2**31 - 1)})


def _require_ranges(options: ImageOptions, ranges: Mapping[str, tuple[int, int]]) -> None:
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"{name} must be {least} to {most:,}, got {value:,}")

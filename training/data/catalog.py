"""Every source by the word that names it."""

from __future__ import annotations

from dataclasses import dataclass

from training.data.sources import DIGITS_SPLIT_SEED, Source, SourceError, digits


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """How a source is read.

    Attributes:
        name: What to call a source that has no name of its own (a folder, an archive).
        labels: Where labels come from; see `training.data.labels`. "auto" takes what is usual for the source.
        num_test: Test images to hold out of a source that has no test split; 0 makes none.
        split_seed: Seed that draws them.
    """

    name: str = "images"
    labels: str = "auto"
    num_test: int = 0
    split_seed: int = DIGITS_SPLIT_SEED


def open_splits(spec: str, options: SourceOptions | None = None) -> dict[str, Source]:
    """The splits of a source.

    Args:
        spec: "digits".
        options: How it is read.

    Raises:
        SourceError: There is no such source.
    """
    if spec == "digits":
        return {split: digits(split) for split in ("train", "test")}
    raise SourceError(f"there is no source {spec!r}; use 'digits'")

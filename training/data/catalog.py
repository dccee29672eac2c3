"""Every source by the word that names it."""

from __future__ import annotations

from training.data.sources import Source, SourceError, digits


def open_splits(spec: str) -> dict[str, Source]:
    """The splits of a source.

    Args:
        spec: "digits".

    Raises:
        SourceError: There is no such source.
    """
    if spec == "digits":
        return {split: digits(split) for split in ("train", "test")}
    raise SourceError(f"there is no source {spec!r}; use 'digits'")

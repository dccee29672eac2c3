"""Images of a person's own, for the commands of this machine."""

from __future__ import annotations

from pathlib import Path

from training import storage


def held_out(source: str) -> dict[str, int]:
    """Return the options that hold every tenth image out for bits/dim; empty for a source with test images of its own."""
    from training.data.sources.catalog import open_splits

    if not source or not (storage.is_s3(source) or Path(source).expanduser().exists()):
        return {}  # a published data set
    splits = open_splits(source)
    return {} if "test" in splits else {"num_test": max(1, len(splits["train"].listing().items) // 10)}

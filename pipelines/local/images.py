"""Images of a person's own, for the commands of this machine."""

from __future__ import annotations

from pathlib import Path

from training import storage


def held_out(source: str) -> dict[str, int]:
    """Return the options that hold every tenth image out for bits/dim.

    Fewer where each class could not keep one to train on. Empty where none can be held out, and for a source with test images of its own.
    """
    from training.data.sources.catalog import open_splits

    path = storage.local_path(source) if source.startswith("file://") else Path(source)
    if not source or not (storage.is_s3(source) or path.exists()):
        return {}  # a published data set
    splits = open_splits(source)
    if "test" in splits:
        return {}
    items = splits["train"].listing().items
    num_test = min(max(1, len(items) // 10), len(items) - len({item.label for item in items}))
    return {"num_test": num_test} if num_test else {}

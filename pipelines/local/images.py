"""Images of a person's own, for the commands of this machine."""

from __future__ import annotations

from pathlib import Path

from training import storage


def absolute(images: str) -> str:
    """Return the absolute path of local images; other addresses stay as they are."""
    path = storage.local_path(images) if images.startswith("file://") else Path(images).expanduser()
    return str(path.resolve()) if images and path.exists() else images


def held_out(source: str) -> dict[str, int]:
    """Return the options that hold every tenth image out for bits/dim.

    Fewer where each class could not keep one to train on. Empty where none can be held out, for a source with test images of its own, and
    for a published data set.

    Raises:
        UserError: There is no such source.
    """
    from training.data.sources.catalog import open_splits
    from training.data.sources.files import FileSource

    splits = open_splits(source) if source else {}
    if "test" in splits or not isinstance(splits.get("train"), FileSource):
        return {}
    items = splits["train"].listing().items
    num_test = min(max(1, len(items) // 10), len(items) - len({item.label for item in items}))
    return {"num_test": num_test} if num_test else {}

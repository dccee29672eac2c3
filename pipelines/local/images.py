"""Images of a person's own, for the commands of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training import storage
from training.config.errors import UserError


def absolute(images: str) -> str:
    """Return the absolute path of local images; other addresses stay as they are.

    Raises:
        UserError: It is in the home directory of a user who does not exist.
    """
    try:
        path = storage.local_path(images) if images.startswith("file://") else Path(images).expanduser()
    except RuntimeError as error:  # pathlib finds no such user
        raise UserError(f"{images}: there is no home directory of that user; write the whole path") from error
    return str(path.resolve()) if images and path.exists() else images


def held_out(source: str, labels: str = "auto") -> dict[str, int]:
    """Return the options that hold every tenth image out for bits/dim, or fewer, so that each class keeps one to train on.

    They are empty for a source with test images, for a published data set, and where no image can be held out.

    Raises:
        UserError: There is no such source.
    """
    from training.data.sources.catalog import SourceOptions, open_splits
    from training.data.sources.files import FileSource

    splits = open_splits(source, SourceOptions(labels=labels)) if source else {}
    if "test" in splits or not isinstance(splits.get("train"), FileSource):
        return {}
    items = splits["train"].listing().items
    num_test = min(max(1, len(items) // 10), len(items) - len({item.label for item in items}))
    return {"num_test": num_test} if num_test else {}


def require_sources(sources: Iterable[str]) -> None:
    """Refuse sources that are not there, before services are started for them; an empty one is the data set's own.

    Sources in S3 are not checked: one may be in this machine's S3, which is not started yet.

    Raises:
        UserError: There is no such source.
    """
    from training.data.sources.catalog import open_splits

    for source in sources:
        if source and "s3://" not in source:
            open_splits(source)


def add_held_out(data_options: str, source: str) -> dict[str, Any]:
    """Return the fields of `data_options` with those of `held_out`, unless they say num_test themselves; 0 holds none out.

    Raises:
        UserError: An option is wrong, or there is no such source.
    """
    from components.steps.settings import read_data_options

    read = read_data_options(data_options)
    given: dict[str, Any] = json.loads(data_options or "{}")
    if "num_test" in given:
        require_sources([source])
        return given
    return {**given, **held_out(source, read.labels)}


def preparation(data_options: str, source: str) -> dict[str, Any]:
    """Return keyword arguments of `training.data.splits.prepare_experiment` for images from a source.

    Args:
        data_options: A JSON object, see `components.steps.settings.read_data_options`; without num_test, images are held out as by
            `held_out`.
        source: The source; empty is the data set's own.

    Raises:
        UserError: An option is wrong, or there is no such source.
    """
    from components.steps.settings import read_data_options

    return read_data_options(json.dumps(add_held_out(data_options, source))).arguments()

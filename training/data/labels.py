"""Where labels come from: folders, a table, the released code's file-name rule, or nowhere."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from training import storage
from training.data.shards import UNLABELLED
from training.data.sources import SourceError

RULES = "'auto', 'none', 'folders', 'filename', or the address of a .csv or .json file"


def assign_labels(keys: Sequence[str], rule: str, known: tuple[str, ...] = ()) -> tuple[list[int], tuple[str, ...]]:
    """The label of each image and the names of the labels.

    Names are sorted, and a label is its name's rank, except where a table gives numbers.

    Args:
        keys: Names of the images, "/" between folders.
        rule: "none"; "folders" (the outermost folder); "filename" (what stands before the first "_" of the file's name,
            the released code's rule); the address of a table; or "auto": folders where there are at least two and no
            image lies outside of one, otherwise none.
        known: Names of the labels, where another split has fixed them; empty takes what is found.

    Returns:
        Labels from 0, or -1 where the rule is "none"; their names.

    Raises:
        SourceError: The rule is unknown, or gives some image no label.
        StorageError: The table can't be read.
    """
    if rule == "auto":
        folders = {_folder(key) for key in keys}
        rule = "folders" if (len(folders) > 1 or known) and "" not in folders else "none"
    if rule == "none":
        return [UNLABELLED] * len(keys), ()
    if rule == "folders":
        return _ranked(keys, [_folder(key) for key in keys], "lies in no folder", known)
    if rule == "filename":
        return _ranked(keys, [_prefix(key) for key in keys], "has no '_' in its file name", known)
    if rule.lower().endswith((".csv", ".json")):
        return _from_table(keys, _read_table(rule), rule, known)
    raise SourceError(f"labels {rule!r} are not understood; use {RULES}")


def _folder(key: str) -> str:
    return key.partition("/")[0] if "/" in key else ""


def _prefix(key: str) -> str:
    before, separator, _ = key.rpartition("/")[2].partition("_")
    return before if separator else ""


def _ranked(keys: Sequence[str], names: Sequence[str], fault: str, known: tuple[str, ...]) -> tuple[list[int], tuple[str, ...]]:
    for key, name in zip(keys, names, strict=True):
        if not name:
            raise SourceError(f"{key} {fault}, so it gets no label; use another rule for labels: {RULES}")
    class_names = known or tuple(sorted(set(names)))
    ranks = {name: rank for rank, name in enumerate(class_names)}
    for key, name in zip(keys, names, strict=True):
        if name not in ranks:
            raise SourceError(f"{key} is labelled {name!r}, which no training image is")
    return [ranks[name] for name in names], class_names


def _from_table(keys: Sequence[str], table: Mapping[str, str], uri: str, known: tuple[str, ...]) -> tuple[list[int], tuple[str, ...]]:
    short = Counter(key.rpartition("/")[2] for key in keys)
    values = []
    missing = []
    for key in keys:
        name = key.rpartition("/")[2]
        value = table.get(key) or (table.get(name) if short[name] == 1 else None)
        values.append(value or "")
        if not value:
            missing.append(key)
    if missing:
        raise SourceError(f"{uri}: has no label for {len(missing):,} of {len(keys):,} images, the first of them {missing[0]}")
    if all(value.isdecimal() for value in values):
        labels = [int(value) for value in values]
        names = known or tuple(str(label) for label in range(max(labels) + 1))
        if max(labels) >= len(names):
            raise SourceError(f"{uri}: has label {max(labels)}, but the training images have {len(names)} labels")
        return labels, names
    return _ranked(keys, values, "has an empty label", known)


def _read_table(uri: str) -> dict[str, str]:
    """File name to label: two columns of CSV with or without a heading, a JSON object, or JSON pairs under "labels"."""
    text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    if uri.lower().endswith(".csv"):
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
        bad = next((row for row in rows if len(row) != 2), None)
        if bad is not None:
            raise SourceError(f"{uri}: a row has {len(bad)} columns ({','.join(bad)[:60]!r}); it needs two, file name and label")
        return {name.strip(): label.strip() for name, label in rows}
    try:
        value = json.loads(text)
        if isinstance(value, dict) and isinstance(value.get("labels"), dict | list):
            value = value["labels"]
        pairs = value.items() if isinstance(value, dict) else value
        return {str(name): str(label) for name, label in pairs}
    except (ValueError, TypeError) as error:
        raise SourceError(f"{uri}: is not a JSON object of file name to label, nor pairs of them under 'labels' ({error})") from error

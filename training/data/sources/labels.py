"""Labels of image files: from folders, from a table, or by the file-name rule of the released code."""

from __future__ import annotations

import codecs
import csv
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training import storage
from training.config.errors import UserError
from training.config.validation import parse_json
from training.data.format.shards import UNLABELLED

RULES = "'auto', 'none', 'folders', 'filename', or the address of a .csv or .json file"

_MAX_LABELS = 1_000_000  # a larger number is an id; a class name for each number below it would fill the memory


def assign_labels(keys: Sequence[str], rule: str, known: tuple[str, ...] = ()) -> tuple[list[int], tuple[str, ...]]:
    """Return the label of each image and the names of the labels.

    Names are sorted, and a label is the rank of its name, except where a table gives numbers.

    Args:
        keys: Names of the images, "/" between folders.
        rule: "none"; "folders" (the outermost folder that they don't all share); "filename" (the part before the first
            "_" of the file name, the rule of the released code); the address of a table; or "auto": folders where
            there are at least two and every image is in one, otherwise none.
        known: Names of the labels, where another split has fixed them; empty takes those that are found.

    Returns:
        Labels from 0, or -1 where the rule is "none"; their names.

    Raises:
        UserError: The rule is unknown, or some image gets no label.
    """
    if rule == "none":
        return [UNLABELLED] * len(keys), ()
    if rule in ("auto", "folders"):
        folders = outer_folders(keys, known)
        if rule == "auto" and ("" in folders or not (known or len(set(folders)) > 1)):
            return [UNLABELLED] * len(keys), ()
        return _rank(keys, folders, "is in no folder", known)
    if rule == "filename":
        names = [key.rpartition("/")[2] for key in keys]
        return _rank(keys, [name.partition("_")[0] if "_" in name else "" for name in names], "has no '_' in its file name", known)
    if rule.lower().endswith((".csv", ".json")):
        return _from_table(keys, _read_table(rule), rule, known)
    raise UserError(f"labels {rule!r} is not a rule; use {RULES}")


def outer_folders(keys: Sequence[str], known: tuple[str, ...] = ()) -> list[str]:
    """Return the outermost folder of each image ("" for an image in none), below a folder that merely contains all the others."""
    while True:
        parts = [key.partition("/") for key in keys]
        folders = [before if slash else "" for before, slash, _ in parts]
        if len(set(folders)) != 1 or folders[0] in ("", *known) or not all("/" in rest for _, _, rest in parts):
            return folders
        keys = [rest for _, _, rest in parts]


def images_beside_folders(keys: Sequence[str], known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the images in no folder, where others are in at least two: those folders are no classes then by the rule "auto".

    Unlike for `outer_folders`, a folder that contains all others may contain images, as the top folder of an archive does.
    """
    rest = keys
    while True:
        folders = [before if slash else "" for before, slash, _ in (key.partition("/") for key in rest)]
        if len(set(folders)) != 1 or folders[0] in ("", *known):
            return tuple(key for key, folder in zip(keys, folders, strict=True) if not folder) if len({*folders} - {""}) > 1 else ()
        rest = [key.partition("/")[2] for key in rest]


def _rank(keys: Sequence[str], names: Sequence[str], fault: str, known: tuple[str, ...]) -> tuple[list[int], tuple[str, ...]]:
    class_names = known or tuple(sorted(set(names) - {""}))
    ranks = {name: rank for rank, name in enumerate(class_names)}
    for key, name in zip(keys, names, strict=True):
        if not name:
            raise UserError(f"{key} {fault}, so it gets no label; use another rule for labels: {RULES}")
        if name not in ranks:
            raise UserError(f"{key} has the label {name!r}, which no training image has")
    return [ranks[name] for name in names], class_names


def _from_table(keys: Sequence[str], table: Mapping[str, str], uri: str, known: tuple[str, ...]) -> tuple[list[int], tuple[str, ...]]:
    keys = [_composed(key) for key in keys]
    file_names = [key.rpartition("/")[2] for key in keys]
    counts = Counter(file_names)
    values = [table.get(key) or (table.get(name) if counts[name] == 1 else None) or "" for key, name in zip(keys, file_names, strict=True)]
    missing = [key for key, value in zip(keys, values, strict=True) if not value]
    if missing:
        names_there = f"; it has names like {list(table)[-1]}" if table else ""
        raise UserError(f"{uri}: has no label for {len(missing):,} of {len(keys):,} images, the first of them {missing[0]}{names_there}")
    if not all(_is_number(value) for value in values):
        return _rank(keys, values, "has an empty label", known)
    wrong = next((value for value in values if not (value.isdecimal() and int(value) < _MAX_LABELS)), None)
    if wrong is not None:
        raise UserError(f"{uri}: label {wrong} is not the number of a class; number the classes 0, 1, 2 and so on, or give them names")
    labels = [int(value) for value in values]
    names = known or tuple(str(label) for label in range(max(labels) + 1))
    if max(labels) >= len(names):
        raise UserError(f"{uri}: has label {max(labels)}, but the training images have {len(names)} labels")
    return labels, names


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _read_table(uri: str) -> dict[str, str]:
    """Map file names to labels: two columns of CSV with or without a heading, a JSON object, or JSON pairs under "labels"."""
    data = storage.read_bytes(uri)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise UserError(f"{uri}: is not text in UTF-8 (a spreadsheet may write UTF-16); save it as UTF-8")
    text = data.decode("utf-8-sig", errors="replace")
    table: dict[str, str] = {}
    for written, label in _csv_rows(text, uri) if uri.lower().endswith(".csv") else _json_pairs(text, uri):
        name = _composed(written).removeprefix("./")
        if table.setdefault(name, label) != label:
            raise UserError(f"{uri}: has two labels for {name}: {table[name]!r} and {label!r}")
    return table


def _composed(name: str) -> str:
    """Return a name with each accented letter as one character: macOS writes it as two in the names of files."""
    return unicodedata.normalize("NFC", name)


def _csv_rows(text: str, uri: str) -> Iterator[tuple[str, str]]:
    try:
        for row in csv.reader(io.StringIO(text)):
            if row and len(row) != 2:
                raise UserError(f"{uri}: a row has {len(row)} columns ({','.join(row)[:60]!r}); it needs two, file name and label")
            if row:
                yield row[0].strip(), row[1].strip()
    except csv.Error as error:
        raise UserError(f"{uri}: is not a CSV file of file name and label ({error})") from error


def _json_pairs(text: str, uri: str) -> Iterator[tuple[str, str]]:
    try:
        # An object is read as its pairs, so that a name that occurs twice is seen.
        value = parse_json(text, object_pairs_hook=_Pairs)
        labels = dict(value).get("labels") if isinstance(value, _Pairs) else None
        pairs = [(name, label) for name, label in (labels if isinstance(labels, list) else value)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{uri}: is not a JSON object of file name to label, nor pairs of them under 'labels' ({error})") from error
    for name, label in pairs:
        if isinstance(label, bool) or not (isinstance(name, str) and isinstance(label, str | int | float)):
            raise UserError(f"{uri}: the label of {name!r:.60} is {json.dumps(label):.60}; it should be a name or a number")
        yield name, str(label).strip()


class _Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object."""

"""Changes of an experiment's fields: words like `diffusion.vlb_weight=0.01`, and tables of a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from training.config.errors import UserError
from training.config.validation import require, unknown_field


def apply_words(plain: dict[str, Any], overrides: Iterable[str]) -> None:
    """Change an experiment's plain dictionary by overrides.

    Args:
        plain: What `Experiment.to_dict` gave.
        overrides: Each `section.field=value`, the value as JSON or a plain word.

    Raises:
        UserError: An override is malformed, names no field, or gives a value that the field can't take.
    """
    require(not isinstance(overrides, str), str(overrides), "overrides are a list, each section.field=value")
    for item in overrides:
        require(isinstance(item, str), str(item), "an override is text and reads section.field=value")
        path, separator, word = item.partition("=")
        path = path.strip()
        require(bool(separator) and bool(path), item, "an override reads section.field=value")
        require(path != "name", path, "cannot be overridden; an experiment file can give a name")
        *parents, leaf = path.split(".")
        node = plain
        for depth, parent in enumerate(parents):
            require(parent in node, path, unknown_field(parent, node, ".".join(parents[:depth])))
            require(isinstance(node[parent], dict), path, f"{'.'.join(parents[: depth + 1])} is a field and has none below it")
            node = node[parent]
        require(leaf in node, path, unknown_field(leaf, node, ".".join(parents)))
        present, word = node[leaf], word.strip()
        if isinstance(present, dict):
            raise UserError(f"{path}: is a section; name one of its fields: {', '.join(present)}")
        value = _parse_word(word, as_list=isinstance(present, list))
        _refuse_boolean(present, value, repr(word), path)
        # A text field takes the word as it is: `evaluation.sampling.spacing=250`.
        node[leaf] = word if isinstance(present, str) and not isinstance(value, str) else value


def apply_tables(plain: dict[str, Any], tables: Mapping[str, Any], path: str = "") -> None:
    """Change an experiment's plain dictionary by nested tables, which hold only what differs.

    Args:
        plain: What `Experiment.to_dict` gave, or a section of it.
        tables: Fields and sections; the text "none" stands for no value, which TOML cannot write.
        path: Path of the section.

    Raises:
        UserError: A table or field is unknown, or a field stands where a table must, or the reverse.
    """
    for name, value in tables.items():
        where = f"{path}.{name}" if path else name
        require(name in plain, where, unknown_field(name, plain, path))
        present = plain[name]
        if isinstance(present, dict):
            require(isinstance(value, dict), where, f"is a table of fields, like [{where}], got {value!r}")
            apply_tables(present, value, where)
            continue
        require(not isinstance(value, dict), where, "is a field and no table")
        _refuse_boolean(present, value, repr(value), where)
        plain[name] = None if value == "none" else value


def _refuse_boolean(present: Any, value: Any, shown: str, path: str) -> None:
    """Refuse true and false where the present value is neither: they would count as the numbers 1 and 0."""
    values = value if isinstance(value, list) else [value]
    boolean = any(isinstance(item, bool) for item in values)
    require(isinstance(present, bool | str) or not boolean, path, f"{shown} is given, but this field is not true or false")


def _parse_word(word: str, *, as_list: bool) -> Any:
    """Read JSON, a list with commas, or the word itself."""
    if as_list and not word.startswith("["):
        return [_parse_word(part.strip(), as_list=False) for part in word.strip("()").split(",") if part.strip()]
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return {"none": None, "true": True, "false": False}.get(word.lower(), word)

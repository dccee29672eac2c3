"""Change an experiment's fields by overrides like `diffusion.vlb_weight=0.01`, or by the tables of a file."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from training.config.errors import UserError
from training.config.validation import parse_json, require, unknown_field


def apply_overrides(plain: dict[str, Any], overrides: Iterable[str], lists: Container[str] = ()) -> None:
    """Change an experiment's plain dictionary by overrides.

    Args:
        lists: Paths of the fields that take a list, also where they have no value yet.
    """
    require(not isinstance(overrides, str), str(overrides), "overrides are a list, each section.field=value")
    for item in overrides:
        require(isinstance(item, str), str(item), "an override is text and reads section.field=value")
        path, separator, text = item.partition("=")
        path = path.strip()
        require(bool(separator) and bool(path), item or repr(item), "an override reads section.field=value")
        require(path != "name", path, "cannot be overridden; an experiment file can give a name")
        *parents, leaf = path.split(".")
        node = plain
        for depth, parent in enumerate(parents):
            require(parent in node, path, unknown_field(parent, node, ".".join(parents[:depth])))
            require(isinstance(node[parent], dict), path, f"{'.'.join(parents[: depth + 1])} is a field and has none below it")
            node = node[parent]
        require(leaf in node, path, unknown_field(leaf, node, ".".join(parents)))
        present, text = node[leaf], text.strip()
        if isinstance(present, dict):
            raise UserError(f"{path}: is a section; name one of its fields: {', '.join(present)}")
        is_none = text.lower() in ("none", "null")
        value = _parse_value(text, as_list=not is_none and (isinstance(present, list) or path in lists))
        _refuse_boolean(present, value, repr(text), path)
        # A text field takes the text as it is: `evaluation.sampling.spacing=250`.
        node[leaf] = text if isinstance(present, str) and not isinstance(value, str) else value


def apply_tables(plain: dict[str, Any], tables: Mapping[str, Any], path: str = "") -> None:
    """Change an experiment's plain dictionary by nested tables of the fields that differ; "none" is no value, except in a text field."""
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
        # A text field has no "no value", and "none" may be one of its words: data.resize.
        plain[name] = None if value == "none" and not isinstance(present, str) else value


def _refuse_boolean(present: Any, value: Any, shown: str, path: str) -> None:
    """Refuse true and false where the present value is neither: they would count as the numbers 1 and 0."""
    values = value if isinstance(value, list) else [value]
    boolean = any(isinstance(item, bool) for item in values)
    require(isinstance(present, bool | str) or not boolean, path, f"{shown} is given, but this field is not true or false")


def _parse_value(text: str, *, as_list: bool) -> Any:
    """Return the value of JSON or of a list with commas; other text is returned as it is."""
    if as_list and not text.startswith("["):
        return [_parse_value(part.strip(), as_list=False) for part in text.strip("()").split(",") if part.strip()]
    try:
        return parse_json(text)
    except ValueError:  # a number of thousands of digits is no JSONDecodeError
        return {"none": None, "true": True, "false": False}.get(text.lower(), text)

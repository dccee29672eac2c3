"""Words and dictionaries from outside, made into sections: conversion, unknown fields and ranges, each error with its path.

This module needs the standard library alone; pydantic is imported where outside words are read.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from training.config.errors import UserError
from training.config.sections import require

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_CREDENTIALS = re.compile(r"(?<=s3)://[^\s/@]*:[^\s@]*@|://[^\s/@]+@", re.IGNORECASE)


def word_for(present: Any, word: str, path: str) -> Any:
    """What a word of an override says in place of the present value.

    Raises:
        UserError: It is true or false where the present value is neither: true would count as the number 1.
    """
    value = _parse_word(word, as_list=isinstance(present, list))
    said = value if isinstance(value, list) else [value]
    truth = any(isinstance(item, bool) for item in said)
    require(isinstance(present, bool | str) or not truth, path, f"{word!r} is said where neither true nor false can stand")
    # A word stays a word where one is wanted: `evaluation.sampling.spacing=250`.
    return word if isinstance(present, str) and not isinstance(value, str) else value


def _parse_word(word: str, *, as_list: bool) -> Any:
    """JSON, a list with commas, or the word itself."""
    if as_list and not word.startswith("["):
        return [_parse_word(part.strip(), as_list=False) for part in word.strip("()").split(",") if part.strip()]
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        pass
    return {"none": None, "true": True, "false": False}.get(word.lower(), word)


def unknown(name: str, node: Mapping[str, Any], path: str) -> str:
    """The message about a field that is not there."""
    close = difflib.get_close_matches(name, node, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    where = f" in {path!r}" if path else ""
    return f"there is no {name!r}{where}{hint} The fields are {', '.join(node)}"


def holds_password(address: str) -> bool:
    """Whether a service's address has a user or a password in it, which no message may show; it need not have a scheme."""
    return "@" in re.split(r"[/?#]", address.strip().rpartition("://")[2])[0]


def without_passwords(text: str) -> str:
    """A message, in which a user and a password before the host of an address have become stars.

    A secret of S3's may hold a slash, but no bucket's name holds a colon.
    """
    return _CREDENTIALS.sub("://***@", text)


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def validate(cls: type, value: Mapping[str, Any]) -> Any:
    """An object of that class.

    Raises:
        UserError: A field is unknown, missing or out of its range.
    """
    try:
        from pydantic import ValidationError
    except ImportError:
        return _build(cls, value)
    try:
        return _adapter(cls).validate_python(value)
    except ValidationError as error:
        messages = []
        for problem in error.errors():
            cause, path = problem.get("ctx", {}).get("error"), ".".join(str(part) for part in problem["loc"])
            if isinstance(cause, UserError):
                # A section that stands in several places names its field alone.
                messages.append(str(cause) if str(cause).startswith(path.partition(".")[0]) else f"{path}.{cause}")
            else:
                messages.append(f"{path}: {problem['msg']}, got {problem['input']!r}")
        raise UserError("; ".join(messages)) from error


def _build(cls: type, value: Mapping[str, Any]) -> Any:
    """For a machine that has torch alone: types are taken as they come, ranges are checked all the same."""
    kinds = get_type_hints(cls)
    fields = {}
    for name, item in value.items():
        kind = kinds.get(name)
        require(kind is not None, name, f"{cls.__name__} has no such field")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            item = _build(kind, item)
        fields[name] = tuple(item) if isinstance(item, list) else item
    try:
        return cls(**fields)
    except TypeError as error:
        raise UserError(f"{cls.__name__}: {error}") from error

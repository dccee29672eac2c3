"""Dictionaries that a user wrote, made into the classes of the experiment: types, unknown fields and ranges are checked.

pydantic does it where it is installed. A machine that has torch alone gets the same checks from `_build`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from training.config.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_MOST_PROBLEMS = 5


class KnownFieldsOnly:
    """A base of dataclasses: `validate` refuses a field that they do not have."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


def require(condition: bool, path: str, message: str) -> None:
    """Raise a `UserError` about the field at `path` unless the condition holds."""
    if not condition:
        raise UserError(f"{path}: {message}")


def require_at_least(minimum: int, section: object, path: str, *names: str) -> None:
    """Raise a `UserError` about the first named field that is below the minimum or not finite; None passes."""
    for name in names:
        value = getattr(section, name)
        kind = "a finite number of at least" if isinstance(value, float) else "at least"
        require(value is None or minimum <= value < math.inf, f"{path}.{name}", f"must be {kind} {minimum}, got {value}")


def close_to(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?", or an empty text if no known word is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown_field(name: str, fields: Mapping[str, Any], path: str) -> str:
    """Return the message about a field that does not exist, with the nearest one that does."""
    where = f" in {path!r}" if path else ""
    return f"there is no {name!r}{where}{close_to(name, fields) or '.'} The fields are {', '.join(fields)}"


@functools.cache
def adapter(cls: type) -> TypeAdapter[Any]:
    """Return pydantic's validator of a class; pydantic is imported at the first call, and each validator is built once."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """Return what `json.loads` returns; a text that it can't read is a ValueError, also one with thousands of brackets."""
    try:
        return json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def read_json(text: str, parameter: str) -> Any:
    """Return the value of a JSON text that a user wrote as a pipeline's parameter.

    Raises:
        UserError: It is not JSON, or an object in it has a key twice, of which Python would take the last one.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            require(count == 1, parameter, f"has {key!r} {count} times; keep one of them")
        return dict(pairs)

    try:
        return parse_json(text, object_pairs_hook=unique)
    except UserError:
        raise
    except ValueError as error:  # a number of thousands of digits is no JSONDecodeError
        raise UserError(f"{parameter} is not JSON: {error}") from None


def validate(cls: type, value: Mapping[str, Any]) -> Any:
    """Return an object of that dataclass.

    Raises:
        UserError: A field, which is named by its path, is unknown, missing, of a wrong type or out of its range.
    """
    try:
        from pydantic import ValidationError
    except ImportError:
        return _build(cls, value, "")
    try:
        made = adapter(cls).validate_python(value)
    except ValidationError as error:
        raise UserError(_explain(error, cls, is_written=True)) from error
    _refuse_booleans(value, made, "")
    return made


def _refuse_booleans(given: Any, made: Any, path: str) -> None:
    """Refuse true and false of which pydantic made the numbers 1 and 0."""
    parts: Iterable[tuple[Any, Any, Any]] = ()
    if isinstance(given, Mapping):
        parts = ((name, item, made.get(name) if isinstance(made, Mapping) else getattr(made, name, item)) for name, item in given.items())
    elif isinstance(given, list | tuple):
        parts = zip(range(len(given)), given, made, strict=True)
    elif isinstance(given, bool):
        require(isinstance(made, bool), path, f"{json.dumps(given)} is given, but this field is not true or false")
    for name, item, value in parts:
        _refuse_booleans(item, value, f"{path}.{name}" if path else str(name))


def validate_parameter(cls: type, value: Mapping[str, Any], parameter: str) -> Any:
    """Return the object of a pipeline's parameter like `validate`; an error begins with the parameter's name."""
    try:
        return validate(cls, value)
    except UserError as error:
        raise UserError(f"{parameter}.{error}") from error


def validate_stored(cls: type, text: bytes) -> Any:
    """Return an object of that class from a JSON text that a program wrote: unlike a person's, its types are exact. It needs pydantic.

    Raises:
        UserError: As `validate`.
    """
    from pydantic import ValidationError

    try:
        return adapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(_explain(error, cls)) from error


def _explain(error: ValidationError, cls: type, *, is_written: bool = False) -> str:
    """Return the problems in one line; with what to write instead, if a person has written the value."""
    messages = []
    for problem in error.errors():
        cause, parts = problem.get("ctx", {}).get("error"), [str(part) for part in problem["loc"]]
        path = ".".join(parts)
        if isinstance(cause, UserError):
            messages.append(_with_path(str(cause), path))
        elif problem["type"] == "unexpected_keyword_argument" and (fields := _fields_at(cls, parts[:-1])):
            return f"{path}: {unknown_field(parts[-1], fields, '.'.join(parts[:-1]))}"  # alone, as the list of fields is long
        elif problem["type"] == "json_invalid":
            return str(problem["msg"])  # the whole text was given; its beginning says nothing
        else:
            remedy = _remedy(problem["type"], problem["input"]) if is_written else ""
            messages.append(f"{path or cls.__name__}: {problem['msg']}, got {problem['input']!r:.200}{remedy}")
    return "; ".join(messages[:_MOST_PROBLEMS])


def _remedy(problem: str, given: Any) -> str:
    if problem == "tuple_type" and isinstance(given, str | int | float):
        return f"; write a list, [{json.dumps(given)}]"
    if problem == "string_type" and type(given) in (int, float):
        return f'; write it in quotes, "{given}"'
    return "; write one more value" if problem == "missing" and isinstance(given, list | tuple) else ""


def _fields_at(cls: type, path: Iterable[str]) -> dict[str, Any]:
    """Return the fields of the dataclass to which a path leads; none where it leads through a list or a map."""
    kind: Any = cls
    for name in path:
        kind = get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    return dict.fromkeys(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else {}


def _with_path(message: str, path: str) -> str:
    """Add the section's path to a message of a section; a section that occurs in several places names only its field."""
    return message if message.startswith(path.partition(".")[0]) else f"{path}.{message}"


def _build(cls: type, value: Any, path: str) -> Any:
    kinds = get_type_hints(cls)
    require(isinstance(value, Mapping), path or cls.__name__, f"must be a table of fields, got {value!r}")
    fields = {}
    for name, item in value.items():
        where = f"{path}.{name}" if path else str(name)
        require(name in kinds, where, unknown_field(str(name), _fields_at(cls, ()), path))
        fields[name] = _convert(kinds[name], item, where)
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in fields and _is_required(f)]
    require(not missing, path or cls.__name__, f"needs {', '.join(missing)}")
    try:
        return cls(**fields)
    except UserError as error:
        raise UserError(_with_path(str(error), path)) from error


def list_paths(cls: type, prefix: str = "") -> set[str]:
    """Return the paths of a dataclass's fields that take a list, those of its sections included."""
    found: set[str] = set()
    for name, kind in get_type_hints(cls).items():
        for each in (kind, *get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else (kind,):
            if dataclasses.is_dataclass(each):
                found |= list_paths(each, f"{prefix}{name}.")  # type: ignore[arg-type]
            elif get_origin(each) is tuple:
                found.add(f"{prefix}{name}")
    return found


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(kind: Any, value: Any, path: str) -> Any:
    """Return the value as the annotated type has it, as pydantic's lax mode would."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        require(value in arguments, path, f"must be {' or '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(next(each for each in arguments if each is not type(None)), value, path)
    if origin is tuple:
        require(isinstance(value, list | tuple), path, f"must be a list, got {value!r}")
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        require(len(kinds) == len(value), path, f"must have {len(kinds)} entries, got {value!r}")
        return tuple(_convert(each, item, f"{path}.{index}") for index, (each, item) in enumerate(zip(kinds, value, strict=True)))
    if kind in (int, float) and type(value) in (int, float):
        with contextlib.suppress(OverflowError, ValueError):  # no integer is infinite, NaN, or too large for a float
            if kind(value) == value:
                return kind(value)
    require(type(value) is kind or (kind is float and isinstance(value, float)), path, f"must be of type {kind.__name__}, got {value!r}")
    return value

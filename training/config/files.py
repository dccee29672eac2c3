"""Experiment files, which a user writes in TOML: a base preset and the fields that differ from it.

base = "images64-hybrid-cosine"
name = "birds"           # optional; names the run's directory

[data]
name = "birds"
num_classes = 200

[model]
class_conditional = true

[evaluation.sampling]
method = "ddim"
spacing = "ddim50"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.overrides import apply_tables
from training.config.presets import preset as named_preset
from training.config.validation import require

_REMEDIES = {
    "Invalid value": "text needs quotes",
    "Invalid statement": "write a field as name = value and a table as [model]",
    "Expected '='": "write a field as name = value and a table as [model]",
    "Cannot": "a field or a table is there twice; keep one of them",
}
"""Beginning of a message of `tomllib` -> what to write."""


def resolve_experiment(*, preset: str = "", file_text: str = "", overrides: Iterable[str] = (), seed: int | None = None) -> Experiment:
    """Return the experiment of a preset or a file, with overrides, for training. The command line, the pipelines and Python all call it.

    Args:
        overrides: Each `section.field=value`; they win over the file.
        seed: The experiment's seed; None keeps the seed of the preset or file.

    Raises:
        UserError: Not exactly one of preset and file is given, or one of the values is invalid.
    """
    require(bool(preset) != bool(file_text), "experiment", "give either a preset or an experiment file")
    experiment = read_experiment_file(file_text) if file_text else named_preset(preset)
    resolved = experiment.override(overrides if seed is None else [*overrides, f"seed={seed}"])
    resolved.require_guide()
    resolved.require_annealing()
    resolved.require_used()
    return resolved


def named_experiment(name: str, overrides: Iterable[str] = ()) -> Experiment:
    """Return the experiment of a preset, or of a file if the name ends in ".toml", with overrides; see `resolve_experiment`."""
    preset, text = name_or_file(name)
    return resolve_experiment(preset=preset, file_text=text, overrides=overrides)


def name_or_file(name: str) -> tuple[str, str]:
    """Return a name that a user gave as a preset, or as the text of an experiment file if it ends in ".toml"; the other is empty."""
    return ("", read_text(name)) if name.endswith(".toml") else (name, "")


def base_of(name: str) -> str:
    """Return the preset of that name, or the one on which the file of that path is based."""
    return str(_parse(read_text(name))["base"]) if name.endswith(".toml") else name


def read_experiment_file(text_or_path: str | Path) -> Experiment:
    """Return the experiment of a file, given as its text, or as its path (a `Path`, or one line that ends in ".toml").

    Raises:
        UserError: The file does not exist or is not TOML, has no `base`, or has an unknown field or a value that its field can't take.
    """
    tables = _parse(read_text(text_or_path))
    require("base" in tables, "base", 'the file needs base = "a preset"; `iddpm presets` lists them')
    base = tables.pop("base")
    require(isinstance(base, str), "base", f"must be the name of a preset in quotes, got {base!r}")
    require(not base.endswith(".toml"), "base", f"must be the name of a preset, got the file {base}; `iddpm presets` lists them")
    plain = named_preset(base).every_field()
    apply_tables(plain, tables)
    return Experiment.from_dict(plain)


def to_toml(experiment: Experiment, base: str) -> str:
    """Return the text of an experiment file: the name of `base`, and the fields in which the experiment differs from that preset."""
    lines = [f"base = {json.dumps(base)}", *_differences(experiment.every_field(), named_preset(base).every_field(), "")]
    return "\n".join(lines) + "\n"


def _differences(plain: Mapping[str, Any], usual: Mapping[str, Any], path: str) -> list[str]:
    fields = [name for name, value in plain.items() if not isinstance(value, dict) and value != usual[name]]
    lines = [f"\n[{path}]"] if path and fields else []
    # TOML writes text, numbers, lists and truth values as JSON does.
    lines += [f"{name} = {json.dumps('none' if plain[name] is None else plain[name])}" for name in fields]
    for name, value in plain.items():
        if isinstance(value, dict):
            lines += _differences(value, usual[name], f"{path}.{name}" if path else name)
    return lines


def read_text(text_or_path: str | Path) -> str:
    """Return the text of an experiment file, which is given as text or as its path; see `read_experiment_file`."""
    if isinstance(text_or_path, str) and ("\n" in text_or_path or not text_or_path.strip().endswith(".toml")):
        return text_or_path
    try:
        return decode_text(Path(text_or_path).read_bytes(), str(text_or_path))
    except OSError as error:
        raise UserError(f"{text_or_path}: cannot be read as an experiment file: {error.strerror}") from error


def decode_text(data: bytes, name: str) -> str:
    """Return the text of an experiment file from its bytes; `name` is what an error calls it.

    Raises:
        UserError: It is not UTF-8 or not TOML, or it is empty: an empty text would mean that there is no file, and train another
            experiment.
    """
    try:
        text = data.decode("utf-8-sig")  # some editors write a mark before the text
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: cannot be read as an experiment file: {error}; save it as UTF-8") from error
    require(bool(text.strip()), name, 'the experiment file is empty; it needs base = "a preset"')
    _parse(text, name)  # a later reader has the text alone and could not name the file
    return text


def _parse(text: str, name: str = "the experiment file") -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        remedies = [remedy for beginning, remedy in _REMEDIES.items() if str(error).startswith(beginning)]
        raise UserError("; ".join([f"{name} is not TOML: {error}", *remedies])) from error
    except ValueError as error:
        raise UserError(f"{name} is not TOML that can be read: a number in it has thousands of digits") from error
    except RecursionError as error:
        raise UserError(f"{name} is not TOML that can be read: its brackets are nested too deeply") from error

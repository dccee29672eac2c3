"""The house's language: names are the field's terms, and a docstring begins with what a thing does or is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_PACKAGES = ("training", "evaluation", "components", "pipelines")

# Names that were private to this project, and the field's term that each gave way to.
_FORBIDDEN_NAMES = {
    "Wish": "AsyncStopFlag",
    "Beside": "RankZeroHooks",
    "Kept": "MetricInputs",
    "Learned": "TrainState",
    "Subject": "TrialModel",
    "Priced": "TrialCost",
    "Named": "ExtractorId",
    "Whereabouts": "TrackingAddress",
    "agree": "broadcast_object",
    "share": "shard_bounds",
    "insist": "retry",
    "patiently": "retry",
    "hold": "configure, lock or keep_open",
    "alone": "no_sync",
    "take_together": "measure_jointly",
    "surroundings": "interfaces",
    "outside": "overrides",
    "learned": "train_state",
    "beside": "rank_zero_hooks",
    "heard": "a verb of the trade",
    "told": "a verb of the trade",
    "plain_word": "format_value",
    "nothing": "an explicit value",
}
_RIDDLES = re.compile(r"(Of|What|Whether|Where|How|Who|Why|Which|That|As|By|On|In|To)\b")


def _sources() -> Iterator[Path]:
    return (path for package in _PACKAGES for path in sorted((_ROOT / package).rglob("*.py")))


def _definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            yield node


def private_names(path: str, source: str) -> list[str]:
    """Return each definition or module whose name is a private word."""
    found = []
    for node in _definitions(ast.parse(source)):
        name = Path(path).stem if isinstance(node, ast.Module) else node.name
        bare = name.strip("_")
        if bare in _FORBIDDEN_NAMES:
            line = getattr(node, "lineno", 1)
            found.append(f"{path}:{line}: '{name}'; the field's term is {_FORBIDDEN_NAMES[bare]}")
    return found


def riddles(path: str, source: str) -> list[str]:
    """Return each docstring, also of a constant, that begins with a question word or a dangling preposition."""
    docstrings = (
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return [f"{path}:{node.lineno}: '{str(node.value).splitlines()[0]}'" for node in docstrings if _RIDDLES.match(str(node.value))]


def test_no_definition_has_a_private_name() -> None:
    assert [line for path in _sources() for line in private_names(str(path.relative_to(_ROOT)), path.read_text())] == []


def test_no_docstring_begins_with_a_riddle() -> None:
    assert [line for path in _sources() for line in riddles(str(path.relative_to(_ROOT)), path.read_text())] == []


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (private_names, "class Wish:\n    pass"),
        (private_names, "def _patiently() -> None:\n    pass"),
        (riddles, 'def f() -> None:\n    """Whether it is so."""'),
        (riddles, '"""Of every pipeline."""'),
    ],
)
def test_both_checks_find_what_they_are_for(check: object, source: str) -> None:
    assert callable(check)
    assert len(check("x.py", source)) == 1

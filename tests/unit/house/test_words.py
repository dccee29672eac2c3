"""The house's language: names are the field's terms, a docstring begins with what a thing does or is, and text files are UTF-8."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
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
_FORBIDDEN_IN_VARIABLES = {"patiently", "nothing", "told"}
_TEXT_MODE = re.compile(r"[rwax]t?\+?")
_OPENERS = ("open", "fdopen", "TemporaryFile", "NamedTemporaryFile")
Check = Callable[[str, str], list[str]]
_RIDDLES = re.compile(r"(Of|What|Whether|Where|How|Who|Why|Which|That|As|By|On|In|To)\b")


def _sources(*folders: str) -> Iterator[Path]:
    return (path for folder in folders for path in sorted((_ROOT / folder).rglob("*.py")))


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


def private_variables(path: str, source: str) -> list[str]:
    """Return each variable or argument that has a private word in its name."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [(node.lineno, node.id) for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    names += [(node.lineno, node.arg) for node in nodes if isinstance(node, ast.arg)]
    return [f"{path}:{line}: '{name}'" for line, name in names if _FORBIDDEN_IN_VARIABLES & set(name.lower().split("_"))]


def riddles(path: str, source: str) -> list[str]:
    """Return each docstring, also of a constant, that begins with a question word or a dangling preposition."""
    docstrings = (
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return [f"{path}:{node.lineno}: '{str(node.value).splitlines()[0]}'" for node in docstrings if _RIDDLES.match(str(node.value))]


def texts_of_unknown_encoding(path: str, source: str) -> list[str]:
    """Return each call that reads or writes text in the encoding of the machine's locale: in a container that may be ASCII."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(each.arg == "encoding" for each in node.keywords):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        of_path = isinstance(function, ast.Attribute) and name == "open"  # whose first argument is the mode
        modes = [str(each.value) for each in node.args[: 1 if of_path else 2] if isinstance(each, ast.Constant)]
        is_text = any(_TEXT_MODE.fullmatch(mode) for mode in modes)
        reads = isinstance(function, ast.Attribute) and name in ("read_text", "write_text")
        if reads or (name in _OPENERS and is_text) or (isinstance(function, ast.Name) and name == "open" and len(node.args) < 2):
            found.append(f"{path}:{node.lineno}: '{ast.unparse(node)}' has no encoding")
    return found


@pytest.mark.parametrize(
    ("check", "folders"),
    [
        (private_names, _PACKAGES),
        (private_variables, _PACKAGES),
        (riddles, (*_PACKAGES, "tests")),
        (texts_of_unknown_encoding, _PACKAGES),
    ],
)
def test_no_source_breaks_a_rule_of_the_house(check: Check, folders: tuple[str, ...]) -> None:
    paths = _sources(*folders)
    assert [line for path in paths for line in check(str(path.relative_to(_ROOT)), path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (private_names, "class Wish:\n    pass"),
        (private_names, "def _patiently() -> None:\n    pass"),
        (private_variables, "patiently = retrying(kfp)"),
        (private_variables, "TOLD_LABEL = ''"),
        (private_variables, "f(1 for is_told in x)"),
        (private_variables, "def f(nothing: str) -> None:\n    pass"),
        (riddles, 'def f() -> None:\n    """Whether it is so."""'),
        (riddles, '"""Of every pipeline."""'),
        (texts_of_unknown_encoding, "path.read_text()"),
        (texts_of_unknown_encoding, "path.write_text(text)"),
        (texts_of_unknown_encoding, "path.open('a+')"),
        (texts_of_unknown_encoding, "open(name)"),
        (texts_of_unknown_encoding, "os.fdopen(number, 'w')"),
        (texts_of_unknown_encoding, "tempfile.TemporaryFile('w+', errors='replace')"),
    ],
)
def test_each_check_finds_what_it_is_for(check: Check, source: str) -> None:
    assert len(check("x.py", source)) == 1


@pytest.mark.parametrize(
    "source", ["path.open('rb')", "os.open(path, os.O_RDONLY)", "Image.open(stream)", "open(name, 'rb')", "read_text(name)"]
)
def test_bytes_have_no_encoding(source: str) -> None:
    assert texts_of_unknown_encoding("x.py", source) == []

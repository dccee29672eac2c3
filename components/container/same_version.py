"""Refuse a step whose pipeline was compiled from another commit than the image that it runs in.

KFP hands the image a component's function as it was when the pipeline was compiled; the rest of the project is the image's. Both must fit:
one argument more, and the step fails with words of Python or of KFP that name neither the pipeline nor the image.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Sequence
from pathlib import Path

from training.config.errors import UserError

_COMPONENTS = Path(__file__).resolve().parents[1]


def require_same_version(arguments: Sequence[str]) -> None:
    """Compare the function that KFP's executor is to run with the image's; comments, docstring and layout do not count.

    Args:
        arguments: Those of this process. Without the executor's own, as in a process that a step starts, nothing is compared; nor is a
            component that this project does not have, which may be its user's own.

    Raises:
        UserError: The functions differ.
    """
    options = dict(itertools.pairwise(arguments))
    path, name = options.get("--component_module_path", ""), options.get("--function_to_execute", "")
    own = _COMPONENTS / f"{name}.py"
    if path and own.is_file() and _function(Path(path), name) != _function(own, name):
        raise UserError(
            f"step {name} is not the one in the image: the pipeline was compiled from another commit; submit or upload the pipeline of the "
            "image's commit, or set the parameter image to an image of the pipeline's commit"
        )


def _function(path: Path, name: str) -> str:
    """Return a function as a canonical text, which two sources share if they do the same; empty if there is none of that name."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            node.decorator_list = []  # KFP copies the function without them
            return ast.dump(node)
    return ""

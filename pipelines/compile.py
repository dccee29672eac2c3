"""Compiles the pipelines to the YAML that the KFP UI uploads, and refuses to write one that a cluster would refuse.

A client needs kfp for this, but not torch, Ray or MLflow.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.compile_checks import CompileError as CompileError
from pipelines.compile_checks import check

PIPELINES: dict[str, str] = {
    "train": "pipelines.train",
    "ablation": "pipelines.ablation",
    "nightly-fid": "pipelines.nightly_fid",
}
"""Name -> module. Each module holds `PIPELINE`, and `LITERALS`: parameter -> the values that a drop-down offers."""


def load(name: str) -> Any:
    """The pipeline of that name.

    Raises:
        CompileError: There is none.
    """
    if name not in PIPELINES:
        raise CompileError(f"there is no pipeline {name!r}; the pipelines are {', '.join(PIPELINES)}")
    return importlib.import_module(PIPELINES[name]).PIPELINE


def compile_all(directory: Path) -> list[Path]:
    """Writes every pipeline's YAML into a directory, which is made where needed; returns the files.

    Raises:
        CompileError: See `pipelines.compile_checks.check`; or the directory can't be written.
    """
    texts = {directory / f"{name}.yaml": compiled(name) for name in PIPELINES}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text)
    except OSError as error:
        raise CompileError(f"{error.filename or directory} can't be written: {error.strerror}; name another directory") from error
    return list(texts)


def compiled(name: str) -> str:
    """A pipeline's YAML: the specification, and as a second document what Kubernetes is told.

    Raises:
        CompileError: See `pipelines.compile_checks.check`.
    """
    documents = specification(load(name))
    literals: Mapping[str, Sequence[Any]] = importlib.import_module(PIPELINES[name]).LITERALS
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    for parameter, values in literals.items():
        # The SDK has no enumerations yet; the specification, the server (2.17) and the UI do.
        parameters[parameter]["literals"] = list(values)
    text = yaml.safe_dump_all(documents, sort_keys=True, width=140, allow_unicode=True)
    check(text)
    return text


def specification(pipeline: Any) -> list[dict[str, Any]]:
    """What the SDK compiles a pipeline to, with one of its mistakes repaired: the specification, and Kubernetes' part.

    The SDK (2.17) forgets to hand a loop those parameters of the pipeline that only say how much processor or memory
    a step in the loop gets; the driver would then not find them.
    """
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        documents = list(yaml.safe_load_all(path.read_text()))
    spec = documents[0]
    _hand_down(spec, spec["root"])
    return documents


def _hand_down(spec: dict[str, Any], parent: dict[str, Any]) -> None:
    """Gives each nested graph the inputs that its steps read and that it was not given."""
    for task in parent["dag"]["tasks"].values():
        component = spec["components"][task["componentRef"]["name"]]
        if "dag" not in component:
            continue
        _hand_down(spec, component)
        known = component.setdefault("inputDefinitions", {}).setdefault("parameters", {})
        for name in sorted(_inputs_read(component["dag"]) - set(known)):
            parameter = name.removeprefix("pipelinechannel--")
            known[name] = {"parameterType": spec["root"]["inputDefinitions"]["parameters"][parameter]["parameterType"]}
            source = parameter if parent is spec["root"] else name
            task.setdefault("inputs", {}).setdefault("parameters", {})[name] = {"componentInputParameter": source}


def _inputs_read(dag: dict[str, Any]) -> set[str]:
    inputs = [value for task in dag["tasks"].values() for value in task.get("inputs", {}).get("parameters", {}).values()]
    return {value["componentInputParameter"] for value in inputs if "componentInputParameter" in value}

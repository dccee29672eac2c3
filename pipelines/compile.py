"""Compiles the pipelines to the YAML that the KFP UI uploads, and refuses to write one that a cluster would refuse.

A client needs kfp for this, but not torch, Ray or MLflow.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
"""Above this a pipeline's Argo workflow comes near the 1 MiB that Kubernetes stores of an object."""

PIPELINES: dict[str, str] = {
    "train": "pipelines.train",
    "ablation": "pipelines.ablation",
    "nightly-fid": "pipelines.nightly_fid",
}
"""Name -> module. Each module holds `PIPELINE`, and `LITERALS`: parameter -> the values that a drop-down offers."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class CompileError(ValueError):
    """A pipeline that a cluster would refuse, or run differently than meant; the message lists every reason."""


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
        CompileError: See `check`.
    """
    texts = {name: compiled(name) for name in PIPELINES}
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in texts.items():
        path = directory / f"{name}.yaml"
        path.write_text(text)
        paths.append(path)
    return paths


def compiled(name: str) -> str:
    """A pipeline's YAML: the specification, and as a second document what Kubernetes is told.

    Raises:
        CompileError: See `check`.
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


def check(text: str) -> None:
    """What the server would refuse, and what this project promises of every compiled pipeline.

    Raises:
        CompileError: Lists every violation.
    """
    documents = list(yaml.safe_load_all(text))
    problems = [*_parse_problems(documents), *_size_problems(text)]
    if not problems:
        spec = documents[0]
        problems = [*_root_problems(spec), *_executor_problems(spec), *_task_problems(spec)]
    if problems:
        raise CompileError("; ".join(problems))


def _parse_problems(documents: list[Any]) -> Iterator[str]:
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    for document, message in zip(documents, (pipeline_spec_pb2.PipelineSpec(), pipeline_spec_pb2.PlatformSpec()), strict=False):
        try:
            json_format.ParseDict(document, message)
        except json_format.ParseError as error:
            yield f"the {type(message).__name__} does not parse: {error}"


def _size_problems(text: str) -> Iterator[str]:
    size = len(text.encode())
    if size > MAX_BYTES:
        yield f"the YAML has {size:,} bytes, more than {MAX_BYTES:,}; loop over a list instead of writing steps out"


def _root_problems(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("schemaVersion") != "2.1.0":
        yield f"schemaVersion is {spec.get('schemaVersion')!r}, not '2.1.0'"
    name = spec["pipelineInfo"]["name"]
    if not _NAME.fullmatch(name):
        yield f"the pipeline's name {name!r} is not lower-case letters, digits and dashes"
    for parameter, definition in spec["root"].get("inputDefinitions", {}).get("parameters", {}).items():
        if "defaultValue" not in definition:
            yield f"parameter {parameter} has no default, so the UI would show it as missing"
        if not definition.get("description"):
            yield f"parameter {parameter} has no description"
        literals = definition.get("literals")
        if literals and definition.get("defaultValue") not in literals:
            yield f"parameter {parameter}: its default {definition.get('defaultValue')!r} is not among {literals}"


def _executor_problems(spec: dict[str, Any]) -> Iterator[str]:
    from components.image import BASE_IMAGE

    for label, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        if container["image"] != BASE_IMAGE:
            yield f"{label} runs in {container['image']}, not in {BASE_IMAGE}"
        if "pip install" in " ".join(map(str, container.get("command", []))):
            yield f"{label} installs packages when it runs"
        resources = container.get("resources", {})
        for name in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            if name not in resources:
                yield f"{label} has no {name}"


def _task_problems(spec: dict[str, Any]) -> Iterator[str]:
    components = spec["components"]
    for dag in (component["dag"] for component in (spec["root"], *components.values()) if "dag" in component):
        for name, task in dag["tasks"].items():
            component = components[task["componentRef"]["name"]]
            if "executorLabel" not in component:
                continue
            if "retryPolicy" not in task:
                yield f"{name} is not tried again when its pod is lost"
            artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
            pages = [key for key, value in artifacts.items() if value["artifactType"]["schemaTitle"] == "system.HTML"]
            if len(pages) > 1:
                yield f"{name} has {len(pages)} HTML artifacts; the UI shows one"

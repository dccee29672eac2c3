"""Compile the pipelines to the YAML that the KFP UI uploads, and refuse one that a cluster would refuse.

A client needs kfp for this, but not torch, Ray or MLflow.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from components.launch.resources import PodSize, describe_resources
from components.steps.settings import describe_data_options
from pipelines.compile_checks import CompileError as CompileError
from pipelines.compile_checks import check, parse_documents
from training import storage

_SIZES = re.compile(rf"pipelinechannel--settings-[a-z]+_({'|'.join(PodSize._fields)})\b")
"""Part of the name of an input that sizes a pod: it is an output of the settings step."""

PIPELINES: dict[str, str] = {
    "train": "pipelines.train",
    "ablation": "pipelines.ablation",
    "nightly-fid": "pipelines.nightly_fid",
    "compare": "pipelines.compare",
    "tune": "pipelines.tune",
}
"""Name -> module. Each module has `PIPELINE`, and `LITERALS`: parameter -> the values that a drop-down offers."""


def load(name: str) -> Any:
    """Return one of `PIPELINES`, as the SDK's object."""
    return importlib.import_module(PIPELINES[name]).PIPELINE


def compile_all(directory: Path, *, kubernetes: bool = False) -> list[Path]:
    """Write every pipeline's YAML into a directory, which is made if it is missing; return the files.

    Args:
        directory: Directory.
        kubernetes: Write Kubernetes objects, see `kubernetes_manifests`.

    Raises:
        CompileError: See `pipelines.compile_checks.check`.
        StorageError: The directory can't be written.
    """
    write = kubernetes_manifests if kubernetes else compiled
    texts = {directory / f"{name}.yaml": write(name) for name in PIPELINES}
    for path, text in texts.items():
        storage.write_bytes(str(path), text.encode())
    return list(texts)


def compiled(name: str) -> str:
    """Return a pipeline's YAML: the specification, and as a second document its pods.

    Raises:
        CompileError: See `pipelines.compile_checks.check`.
    """
    documents = specification(load(name))
    literals: Mapping[str, Sequence[Any]] = importlib.import_module(PIPELINES[name]).LITERALS
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    for parameter, values in literals.items():
        # The SDK has no enumerations yet; the specification, the server (2.17) and the UI do.
        parameters[parameter]["literals"] = list(values)
    for parameter, definition in parameters.items():
        if parameter.endswith("_resources"):
            definition["description"] += f" {describe_resources()}"
        if parameter == "data_options":
            definition["description"] += f" {describe_data_options()}"
    _leave_out_prose(documents[0])
    text = yaml.safe_dump_all(documents, sort_keys=True, width=140, allow_unicode=True)
    check(text)
    return text


def kubernetes_manifests(name: str) -> str:
    """Return a pipeline as the objects Pipeline and PipelineVersion, for a KFP that keeps its pipelines in Kubernetes, and for GitOps.

    KFP refuses a change of a PipelineVersion, so its name has a hash of the pipeline. They name no namespace; kubectl apply chooses it.
    """
    text = compiled(name)
    spec, platform = parse_documents(text)
    pipeline = spec["pipelineInfo"]["name"]
    version = f"{pipeline}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    contents: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("Pipeline", pipeline, {"displayName": pipeline}),
        ("PipelineVersion", version, {"displayName": version, "pipelineName": pipeline, "pipelineSpec": spec, "platformSpec": platform}),
    )
    objects = [
        {"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": kind, "metadata": {"name": each}, "spec": content}
        for kind, each, content in contents
    ]
    return yaml.safe_dump_all(objects, sort_keys=True, width=140, allow_unicode=True)


def specification(pipeline: Any) -> list[dict[str, Any]]:
    """Compile a pipeline with the SDK; return the specification, and the pods."""
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        return parse_documents(path.read_text(encoding="utf-8"))


def _leave_out_prose(spec: dict[str, Any]) -> None:
    """Leave out the docstrings of the steps and the descriptions of their inputs, which the UI does not show; the form's stay.

    Argo stores them once more with each step of a run, and Kubernetes stores 1 MiB of a run.
    """
    for component in spec["components"].values():
        for kind in ("inputDefinitions", "outputDefinitions"):
            for definitions in component.get(kind, {}).values():
                for definition in definitions.values():
                    definition.pop("description", None)
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor.get("container", {})
        container["command"] = [_without_docstring(word) for word in container.get("command", [])]


def _without_docstring(word: str) -> str:
    """Return the source of a step without its docstring; another word of its command as it is."""
    if "\ndef " not in word:
        return word
    function = next(node for node in ast.parse(word).body if isinstance(node, ast.FunctionDef))
    first = function.body[0]
    if ast.get_docstring(function) is None or first.end_lineno is None:
        return word
    lines = word.splitlines(keepends=True)
    return "".join(lines[: first.lineno - 1] + lines[first.end_lineno :])


def local_specification(pipeline: Any) -> dict[str, Any]:
    """Return the specification for kfp.local: without pods' sizes and without retries.

    In a loop, kfp.local passes the loop's item wherever a step reads another step's output, even an output that only sizes a pod.
    Without retries, a laptop's user sees an error at once.
    """
    spec = specification(pipeline)[0]
    for component in (spec["root"], *spec["components"].values()):
        for part in (component, *component.get("dag", {}).get("tasks", {}).values()):
            part.pop("retryPolicy", None)
            inputs = part.get("inputDefinitions", part.get("inputs", {})).get("parameters", {})
            for name, value in list(inputs.items()):
                if _SIZES.search(name) or _SIZES.search(str(value.get("runtimeValue", ""))):
                    del inputs[name]
    return spec

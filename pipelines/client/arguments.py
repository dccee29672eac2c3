"""A compiled pipeline and the arguments of a run of it, checked here as the server would, before anything is sent."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from components.container.image import VERSION
from pipelines.compile import PIPELINES, compiled
from training.config.addresses import without_passwords

PRESET, OVERRIDES = "experiment_preset", "experiment_overrides"
_KINDS: dict[str, tuple[type, str]] = {
    "BOOLEAN": (bool, "true or false"),
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": (float, "a number"),
    "STRING": (str, "text"),
    "LIST": (list, "a JSON list"),
    "STRUCT": (dict, "a JSON object"),
}
_AMOUNTS = {
    "_cpu": (re.compile(r"(?=.*[1-9])(\d+(\.\d+)?|\d+m)"), "a number of cores like 4 or 500m"),
    "_memory": (re.compile(r"(?=.*[1-9])\d+(\.\d+)?(k|Ki|M|Mi|G|Gi|T|Ti)?"), "an amount of memory like 16Gi"),
    "_gpus": (re.compile(r"\d+"), "a whole number of GPUs"),
}
"""By the end of a parameter's name: what text a pod's specification takes there, which the server would not check."""
_RANGES: dict[str, tuple[int, float, str]] = {
    "_max_errors": (1, math.inf, "1 or more"),
    "_max_pixels": (1, 2**30, "1 to 1073741824"),
    "_sizes": (1, math.inf, "a JSON list of whole numbers, 1 or more"),
    "": (0, math.inf, "0 or more"),
}
"""Likewise: the least number, the greatest, and both in words. `Resources` knows more of those that are its fields."""


class ArgumentsError(ValueError):
    """An argument that the pipeline does not take; one line that names it and what there is."""


@dataclass(frozen=True, slots=True)
class CompiledPipeline:
    """A pipeline as it is uploaded.

    Attributes:
        name: Ours, like "train".
        text: The YAML.
        spec: Its first document, the specification.
        platform: Its second, what Kubernetes is told.
    """

    name: str
    text: str
    spec: Mapping[str, Any]
    platform: Mapping[str, Any]

    @property
    def pipeline_name(self) -> str:
        """KFP's, like "iddpm-train"."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def version_name(self) -> str:
        """Named by the release and the YAML's digest, so that the same YAML is the same version."""
        return f"{VERSION}-{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> type, default and literals, as the specification says them."""
        found: Mapping[str, Mapping[str, Any]] = self.spec["root"].get("inputDefinitions", {}).get("parameters", {})
        return found

    @property
    def task_names(self) -> frozenset[str]:
        """The steps, also those in loops; not the loops themselves."""
        components = self.spec["components"]
        graphs = [part["dag"] for part in (self.spec["root"], *components.values()) if "dag" in part]
        tasks = [(name, task) for graph in graphs for name, task in graph["tasks"].items()]
        return frozenset(name for name, task in tasks if "executorLabel" in components[task["componentRef"]["name"]])


@functools.cache
def compiled_pipeline(name: str) -> CompiledPipeline:
    """The pipeline of that name, compiled, once in a process.

    Raises:
        ArgumentsError: There is none.
        CompileError: A cluster would refuse it.
    """
    if name not in PIPELINES:
        near = close_to(name, PIPELINES)
        raise ArgumentsError(f"there is no pipeline {name!r}{f'{near} The' if near else '; the'} pipelines are {', '.join(PIPELINES)}")
    text = compiled(name)
    documents = list(yaml.safe_load_all(text))
    return CompiledPipeline(name, text, documents[0], documents[1] if len(documents) > 1 else {})


def arguments_of(pipeline: CompiledPipeline, *, preset: str, overrides: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    """What a run is given, each of its parameter's type; what is not said is left to the pipeline's defaults.

    Args:
        pipeline: The pipeline.
        preset: The experiment; empty leaves the default.
        overrides: Of the experiment, like "optim.num_steps=500".
        words: "name=value" of the pipeline's parameters.

    Raises:
        ArgumentsError: An argument is unknown, given twice, or not of its type.
        UserError: The experiment is unknown, or an override does not fit it.
        PlacementError: Processes, GPUs or images at a time are not as many as a step takes.
    """
    from pipelines.client.placement import resources_of

    arguments: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise ArgumentsError(f"--param {word}: it reads name=value")
        if name not in pipeline.parameters:
            near = close_to(name, pipeline.parameters) or f"; it has {', '.join(sorted(pipeline.parameters))}"
            raise ArgumentsError(f"--param {word}: pipeline {pipeline.name} has no parameter {name!r}{near}")
        if name in arguments:
            raise ArgumentsError(f"--param {name} is given twice")
        arguments[name] = _value(name, value, pipeline.parameters[name])
    for name, option, given in ((PRESET, "--preset", preset), (OVERRIDES, "--set", list(overrides))):
        if not given:
            continue
        if name not in pipeline.parameters:
            raise ArgumentsError(f"pipeline {pipeline.name} trains no experiment, so it takes no --preset and no --set")
        if name in arguments:
            raise ArgumentsError(f"{option} and --param {name} say the same thing; give one")
        arguments[name] = given
    _require_experiment(pipeline, arguments)
    for name, given in arguments.items():
        shown = without_passwords(str(given))
        if shown != str(given):
            raise ArgumentsError(f"--param {name}={shown}: an argument is seen by all; a password's place is the environment, or a Secret")
        _require_literal(name, given, pipeline.parameters[name])
        _require_amount(name, given)
        _require_range(name, given)
    resources_of(_chosen(pipeline, arguments))
    return arguments


def cluster_arguments_of(pipeline: CompiledPipeline, *, preset: str, overrides: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    """As `arguments_of`, for a run on a cluster: image, nodes and Ray are checked as the steps will check them.

    Raises:
        ArgumentsError: As there; likewise UserError.
        ImageError: The image's reference is malformed, or can change.
        PlacementError: A step would refuse where it is to work, or on what.
    """
    from pipelines.client.placement import require_placement

    arguments = arguments_of(pipeline, preset=preset, overrides=overrides, words=words)
    require_placement(_chosen(pipeline, arguments))
    return arguments


def close_to(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _chosen(pipeline: CompiledPipeline, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter, the defaults among them."""
    return {**{name: parameter.get("defaultValue") for name, parameter in pipeline.parameters.items()}, **arguments}


def _require_experiment(pipeline: CompiledPipeline, arguments: Mapping[str, Any]) -> None:
    chosen = _chosen(pipeline, arguments)
    if not all(isinstance(override, str) for override in chosen.get(OVERRIDES) or ()):
        raise ArgumentsError(f'--param {OVERRIDES} is a JSON list of words like ["optim.num_steps=500"]')
    if "ablation_name" in pipeline.parameters:
        from evaluation.ablations.definitions.request import of_parameters

        of_parameters(chosen).trials()
    elif {PRESET, OVERRIDES} & arguments.keys():
        from training.config import presets

        presets.preset(chosen[PRESET], chosen[OVERRIDES])


def _value(name: str, text: str, definition: Mapping[str, Any]) -> Any:
    kind = definition["parameterType"]
    wanted, words = _KINDS.get(kind, (str, "text"))
    if wanted is str:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise ArgumentsError(f"--param {name}={text}: {name} is {words}")
    return value


def _require_literal(name: str, value: Any, definition: Mapping[str, Any]) -> None:
    literals = definition.get("literals")
    if literals and value not in literals:
        there = close_to(str(value), map(str, literals)) or f"; there are {', '.join(map(str, literals))}"
        raise ArgumentsError(f"--param {name}={value}: it is not offered{there}")


def _require_amount(name: str, value: Any) -> None:
    for ending, (form, words) in _AMOUNTS.items():
        if name.endswith(ending) and isinstance(value, str) and not form.fullmatch(value):
            raise ArgumentsError(f"--param {name}={value}: {name} is {words}")


def _require_range(name: str, value: Any) -> None:
    ending = next(ending for ending in _RANGES if name.endswith(ending))
    least, greatest, words = _RANGES[ending]
    if type(value) in (int, float):
        fits = least <= value <= greatest
    else:  # the one list of numbers
        fits = ending != "_sizes" or all(type(each) is int and each >= least for each in value)
    if not fits:
        raise ArgumentsError(f"--param {name}={json.dumps(value)}: {name} is {words}")

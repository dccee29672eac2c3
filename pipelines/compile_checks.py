"""Check a compiled pipeline: a cluster accepts it and runs it as meant, and it keeps the rules of this project.

Laptops and tests run pipelines by kfp.local, which does some things that the server (2.17) does not. What is known, from the server's
source and from recordings of a cluster, and where it is taken care of:

- A placeholder inside a longer text, a list or an object, and `{{$.pipeline_root}}` anywhere: the server leaves it. Refused here.
- A number that sizes a pod, in place of text: the server takes it for empty; kfp.local sizes no pods. Refused here.
- A step that ignores failures, but not those of a whole group: the server starts it early, or never. Refused here.
- Retries: the server ends a retry that is running when the time of all tries is over. Refused here; kfp.local has no retries here.
- A loop's step that reads another step's output for its pod's size: kfp.local gives it the loop's item (`pipelines.compile`).
- The exit task's status: kfp.local says SUCCEEDED or FAILED, the server COMPLETE, FAILED, and RUNNING for a cancelled run; so the
  last step reads the Workflow (`components.steps.close`).
- Variables from Secrets and ConfigMaps, and what the cluster injects beside them: kfp.local sets none (test_recorded_pods).
- Types and drop-downs of parameters: only the server checks them, so `pipelines.client.arguments` does it before anything is sent.
- Artifacts: the server downloads each that is a step's input; so steps pass addresses as text.
- The size of a sweep: kfp.local has no limit, Kubernetes stores 1 MiB of a Workflow (`components.cluster.workflows`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from components.container.image import ImageError, image_from
from training.config.errors import UserError

MAX_BYTES = 256 * 1024
"""The Argo workflow of a larger pipeline comes near 1 MiB, the most that Kubernetes stores of an object."""
IMAGE_PARAMETER = "image"
"""The parameter of every pipeline that names the image of its steps."""
MAX_PARAMETERS = 15
"""The most that a person can read in one form."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_CHANNEL = re.compile(r"\{\{\$\.inputs\.parameters\['(?:pipelinechannel--)?(?P<name>[^']+)'\]\}\}")
_RESOURCES = ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit")
_PLACEHOLDER = re.compile(r"\{\{\$[^{}]*\}\}")
_REPLACED = re.compile(
    r"\{\{\$\.(pipeline_(job_(name|resource_name|uuid|create_time_utc|schedule_time_utc)|task_(name|uuid))|inputs\..*)\}\}"
)
"""Placeholders that the server replaces where they are the whole value, and references to inputs, which the launcher replaces."""
_INJECTED = re.compile(r"MLFLOW_|KFP_|ARGO_|KUBERNETES_|RAY_(?!AUTH_)")
"""Beginnings of the variables that KFP, its MLflow plugin, Argo and KubeRay put into pods (recorded; see tests/recordings)."""
_IGNORES_FAILURES = "ALL_UPSTREAM_TASKS_COMPLETED"


class CompileError(UserError):
    """A pipeline that a cluster would refuse, or run differently than meant; the message lists every reason."""


def parse_documents(text: str) -> list[Any]:
    """Return the documents of a pipeline's YAML. libyaml, where PyYAML has it, needs a tenth of the time."""
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def check(text: str) -> None:
    """Check a pipeline's YAML.

    Raises:
        CompileError: Lists every violation.
    """
    documents = parse_documents(text)
    problems = [*_parse_problems(documents), *_size_problems(text)]
    if not problems:
        spec, platform = documents
        problems = [*_root_problems(spec), *_executor_problems(spec), *_pod_problems(spec, platform), *_task_problems(spec, platform)]
    if problems:
        raise CompileError("; ".join(problems))


def _parse_problems(documents: list[Any]) -> Iterator[str]:
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    if len(documents) != 2:
        yield f"there are {len(documents)} documents, not the specification and the pods"
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
    if len(_parameters(spec)) > MAX_PARAMETERS:
        yield f"there are {len(_parameters(spec))} parameters, more than {MAX_PARAMETERS}, which is what a form can show"
    for parameter, definition in _parameters(spec).items():
        if "defaultValue" not in definition:
            yield f"parameter {parameter} has no default, so the UI would show it as missing"
        if not definition.get("description"):
            yield f"parameter {parameter} has no description"
        literals = definition.get("literals")
        if literals and definition.get("defaultValue") not in literals:
            yield f"parameter {parameter}: its default {definition.get('defaultValue')!r} is not among {literals}"
    image = str(_parameters(spec).get(IMAGE_PARAMETER, {}).get("defaultValue", ""))
    try:
        image_from(image, variable=f"parameter {IMAGE_PARAMETER} (IDDPM_IMAGE)")
    except ImageError as error:
        yield str(error)


def _executor_problems(spec: dict[str, Any]) -> Iterator[str]:
    types = _channel_types(spec)
    for label, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        if _parameter_read(container["image"]) != IMAGE_PARAMETER:
            yield f"{label} runs {container['image']}, not the image of the parameter {IMAGE_PARAMETER}"
        if "pip install" in " ".join(map(str, container.get("command", []))):
            yield f"{label} installs packages when it runs"
        resources = container.get("resources", {})
        for name in _RESOURCES:
            if name not in resources:
                yield f"{label} has no {name}"
        accelerator = resources.get("accelerator", {})
        for value in (*(resources.get(name, "") for name in _RESOURCES), *map(str, accelerator.values())):
            channel = _parameter_read(value)
            if channel and types.get(channel) != "STRING":
                # KFP 2.17 silently reads a value of another type as empty (seen in its source).
                yield f"{label} asks for resources by {channel}, which must be text (str)"


def _pod_problems(spec: dict[str, Any], platform: dict[str, Any]) -> Iterator[str]:
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label in spec["deploymentSpec"]["executors"]:
        pod = pods.get(label, {})
        if not pod.get("imagePullPolicy"):
            yield f"{label} has no imagePullPolicy"
        sources = [*pod.get("secretAsEnv", ()), *pod.get("configMapAsEnv", ())]
        names = [item["envVar"] for source in sources for item in source["keyToEnv"]]
        for name in names:
            if _INJECTED.match(name) or names.count(name) > 1:
                yield f"{label} sets {name}, which the cluster injects too; Kubernetes refuses a pod with two sources of one variable"


def _task_problems(spec: dict[str, Any], platform: dict[str, Any]) -> Iterator[str]:
    components = spec["components"]
    deadline = platform["platforms"]["kubernetes"]["pipelineConfig"]["activeDeadlineSeconds"]
    for dag in (component["dag"] for component in (spec["root"], *components.values()) if "dag" in component):
        for name, task in dag["tasks"].items():
            yield from _order_problems(name, task, components, dag)
            yield from _placeholder_problems(name, task)
            component = components[task["componentRef"]["name"]]
            if "executorLabel" not in component:
                continue
            if "retryPolicy" not in task:
                yield f"{name} is not tried again when its pod is lost"
            elif int(task["retryPolicy"]["backoffMaxDuration"].removesuffix("s")) < deadline:
                yield f"{name}: its retries end {task['retryPolicy']['backoffMaxDuration']} after the first try, also if one still runs"
            artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
            pages = [key for key, value in artifacts.items() if value["artifactType"]["schemaTitle"] == "system.HTML"]
            if len(pages) > 1:
                yield f"{name} has {len(pages)} HTML artifacts; the UI shows one"


def _order_problems(name: str, task: dict[str, Any], components: dict[str, Any], dag: dict[str, Any]) -> Iterator[str]:
    """Yield steps that KFP 2.17 would run too early or never: it makes a step that ignores failures a hook of each step before it."""
    if task.get("triggerPolicy", {}).get("strategy") != _IGNORES_FAILURES:
        return
    upstream = [dag["tasks"][dependency] for dependency in task.get("dependentTasks", ())]
    groups = [one for one in upstream if "dag" in components[one["componentRef"]["name"]] and "parameterIterator" not in one]
    if len(upstream) != 1 or len(groups) != 1:
        yield f"{name} ignores failures of single steps or of a loop, which KFP does not wait for; make it an exit task (dsl.ExitHandler)"


def _placeholder_problems(name: str, task: dict[str, Any]) -> Iterator[str]:
    """Yield constants that contain a placeholder. The server replaces it only if it is the whole value; kfp.local replaces it anywhere."""
    for parameter, value in task.get("inputs", {}).get("parameters", {}).items():
        constant = str(value.get("runtimeValue", {}).get("constant", ""))
        if _PLACEHOLDER.search(constant) and not _PLACEHOLDER.fullmatch(constant):
            yield f"{name}: {parameter} is {constant!r}; KFP replaces a placeholder only if it is the whole value; join it in the step"
        elif _PLACEHOLDER.fullmatch(constant) and not _REPLACED.fullmatch(constant):
            yield f"{name}: {parameter} is {constant}, which KFP's server does not replace"


def _parameters(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    return found


def _channel_types(spec: dict[str, Any]) -> dict[str, str]:
    """Return the type of each value that can size a pod: the pipeline's parameters, and the steps' outputs as STEP-OUTPUT."""
    types = {name: definition["parameterType"] for name, definition in _parameters(spec).items()}
    for component in (spec["root"], *spec["components"].values()):
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            outputs = spec["components"][task["componentRef"]["name"]].get("outputDefinitions", {}).get("parameters", {})
            types |= {f"{name}-{output}": definition["parameterType"] for output, definition in outputs.items()}
    return types


def _parameter_read(value: str) -> str:
    match = _CHANNEL.fullmatch(value)
    return match["name"] if match else ""

"""A compiled pipeline and the arguments of a run of it, checked here as the server would, before anything is sent."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.cluster.workflows import require_sweep_fits
from components.container.image import VERSION, image_from
from components.launch.resources import MAP_ENTRY, merge_resources, read_resources
from components.steps.settings import (
    read_data_options,
    refuse_sources,
    require_dashboard,
    require_force_from,
    require_no_blanks_around,
    require_place,
    require_s3,
    require_tracking,
    resolve_experiment_form,
)
from pipelines.compile import PIPELINES, compiled
from pipelines.compile_checks import parse_documents
from training import storage
from training.config.addresses import without_passwords
from training.config.errors import UserError
from training.config.experiment import Resources
from training.config.files import read_text
from training.config.validation import close_to, parse_json, read_json
from training.tracking.runs import is_run_key

PRESET, OVERRIDES, FILE = "experiment_preset", "experiment_overrides", "experiment_file"
ABLATION = "ablation_name"
_DIRECTORIES = ("data_uri", "storage_root_uri")
FORCE_FROM, TRACKING = "force_from", "tracking_experiment"
_KINDS: dict[str, tuple[type, str]] = {
    "BOOLEAN": (bool, "true or false"),
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": (float, "a number"),
    "STRING": (str, "text"),
    "LIST": (list, "a JSON list"),
    "STRUCT": (dict, "a JSON object"),
}
_TUNING = {"experiment": ("preset", "overrides", "file"), "tune": ("search", "trials", "options")}
"""The tune pipeline's parameters that make a request, by their prefix, in the order of `components.tuning.directory.from_form`."""
_LEAST = {"seed": -1, "baseline_nights": 3}
"""Smallest value of a number, where it is not 0."""
_MAX_BYTES = 100_000
"""The most bytes of all arguments: KFP hands them to a step in one word of a command, and Linux takes 128 KiB in one."""
_MAX_LISTED = 20
"""A message about a wrong value lists so many right ones beside a similar one."""
_RESOURCES = "_resources"
"""End of the name of a stage's parameter; see `components.launch.resources`."""


class ArgumentsError(UserError):
    """An argument that the pipeline does not take; one line that names it and the remedy."""


@dataclass(frozen=True, slots=True)
class CompiledPipeline:
    """A pipeline as it is uploaded.

    Attributes:
        name: Ours, like "train".
        text: The YAML.
        spec: Its first document, the specification.
        platform: Its second, the pods.
    """

    name: str
    text: str
    spec: Mapping[str, Any]
    platform: Mapping[str, Any]

    @property
    def pipeline_name(self) -> str:
        """Name in KFP, like "iddpm-train"."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def version_name(self) -> str:
        """Name by the release and the YAML's digest, so that the same YAML is the same version."""
        return f"{VERSION}-{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> type, default and literals, from the specification."""
        found: Mapping[str, Mapping[str, Any]] = self.spec["root"].get("inputDefinitions", {}).get("parameters", {})
        return found

    @property
    def task_names(self) -> frozenset[str]:
        """Names of the steps, also of those in loops."""
        components = self.spec["components"]
        graphs = [part["dag"] for part in (self.spec["root"], *components.values()) if "dag" in part]
        tasks = [(name, task) for graph in graphs for name, task in graph["tasks"].items()]
        return frozenset(name for name, task in tasks if "executorLabel" in components[task["componentRef"]["name"]])


@functools.cache
def compiled_pipeline(name: str) -> CompiledPipeline:
    """Return the pipeline of that name, compiled once in a process.

    Raises:
        ArgumentsError: There is none.
        CompileError: A cluster would refuse it.
    """
    if name not in PIPELINES:
        near = close_to(name, PIPELINES)
        raise ArgumentsError(f"there is no pipeline {name!r}{f'{near} The' if near else '; the'} pipelines are {', '.join(PIPELINES)}")
    text = compiled(name)
    documents = parse_documents(text)
    return CompiledPipeline(name, text, documents[0], documents[1] if len(documents) > 1 else {})


def arguments_of(
    pipeline: CompiledPipeline,
    *,
    preset: str,
    overrides: Sequence[str],
    words: Sequence[str],
    resources: Sequence[str] = (),
    force_from: str = "",
    on_cluster: bool = False,
) -> dict[str, Any]:
    """Return the arguments of a run, each of its parameter's type; the others keep the pipeline's defaults.

    Args:
        preset: The experiment; empty leaves the default.
        overrides: Overrides of the experiment, like "optim.num_steps=500".
        words: "name=value" of the pipeline's parameters; for experiment_file also the path of a .toml file here, whose text is sent.
        resources: "stage.field=value", which changes one field of a stage's resources, or "stage=profile".
        force_from: The step from which finished work is done again; empty does none again.
        on_cluster: Refuse also what no cluster could use, such as an address that its steps do not share.

    Raises:
        UserError: An argument is unknown, given twice, or does not fit.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        name, value = _parse(f"--param {word}", word, "name=value")
        if name == "ablation_runs" and "ablation_options" in pipeline.parameters:
            raise ArgumentsError(f'--param {word}: runs are a field of ablation_options now: ablation_options={{"runs": {value}}}')
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
            raise ArgumentsError(f"{option} and --param {name} mean the same; give one")
        arguments[name] = given
    if force_from:
        if FORCE_FROM not in pipeline.parameters:
            raise ArgumentsError(f"--from {force_from}: pipeline {pipeline.name} can't do finished steps again")
        if FORCE_FROM in arguments:
            raise ArgumentsError(f"--from and --param {FORCE_FROM} mean the same; give one")
        arguments[FORCE_FROM] = force_from
    file = str(arguments.get(FILE, "")).strip()  # as the first step reads it
    if file.endswith(".toml") and not file.startswith("s3://"):
        arguments[FILE] = read_text(file)
    if arguments.get(FILE) and PRESET in arguments:
        raise ArgumentsError(f"give either a preset or {FILE}; the file's base names its preset")
    for word in _profiles_first(resources):
        stage, has_field, _ = word.partition("=")[0].partition(".")
        if not has_field and f"{stage}{_RESOURCES}" in arguments:
            raise ArgumentsError(f"--resources {word} and --param {stage}{_RESOURCES} mean the same; give one")
        _change_resources(pipeline, arguments, word)
    _check(pipeline, arguments)
    if on_cluster:
        _check_for_cluster(pipeline, arguments)
        return arguments
    # Records and MLflow keep these addresses, and a later command may be given in another folder.
    return {name: storage.absolute(value) if name in _DIRECTORIES else value for name, value in arguments.items()}


def _check(pipeline: CompiledPipeline, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit."""
    if len(json.dumps(dict(arguments))) > _MAX_BYTES:
        name = max(arguments, key=lambda each: len(json.dumps(arguments[each])))
        raise ArgumentsError(
            f"--param {name}: is too long; all parameters together may have {_MAX_BYTES:,} bytes. A long experiment file can be in S3: "
            "experiment_file=s3://BUCKET/FILE.toml"
        )
    _require_experiment(pipeline, arguments)
    for name, given in arguments.items():
        shown = without_passwords(str(given))
        if shown != str(given):
            raise ArgumentsError(
                f"--param {name}={shown}: an argument is visible to everybody; put a password into the environment or a Secret"
            )
        if "{{" in json.dumps(given):  # Argo fails the whole run where it does not know the variable, and kfp.local without a reason
            raise ArgumentsError(f"--param {name}: has '{{{{', with which variables of Argo and KFP begin; leave it out")
        _require_literal(name, given, pipeline.parameters[name])
        least = _LEAST.get(name, 0)
        if type(given) in (int, float) and given < least:
            raise ArgumentsError(f"--param {name}={given}: {name} is {least} or more")
    chosen = _chosen(pipeline, arguments)
    for stage in _stages(pipeline):
        read_resources(chosen[f"{stage}{_RESOURCES}"], stage=stage)
    if "data_source" in pipeline.parameters:
        refuse_sources(chosen.get("data_options", ""))
    read_data_options(chosen.get("data_options", ""))
    require_force_from(chosen.get(FORCE_FROM, ""))
    if TRACKING in arguments:
        require_tracking(arguments[TRACKING])


def require_possible_here(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a run on this machine could not follow.

    Args:
        arguments: As `arguments_of` returns them. A stage whose Ray cluster is elsewhere may have any GPUs.

    Raises:
        UserError: They name an image, which this machine would not use, or GPUs that it does not have; or resources do not fit.
    """
    if "image" in arguments:
        raise ArgumentsError(f"--param image={arguments['image']}: a run on this machine uses no image; leave it out")
    stages = {name.removesuffix(_RESOURCES): text for name, text in arguments.items() if name.endswith(_RESOURCES)}
    found = {stage: read_resources(text, stage=stage) for stage, text in stages.items()}
    require_gpus({stage: resources.work for stage, resources in found.items() if resources.ray_mode == "local"})


def require_gpus(resources: Mapping[str, Resources]) -> None:
    """Refuse GPUs that this machine does not have: one for each worker of a training, and one at least for another stage.

    Args:
        resources: Stage -> resources of its work, which is done on this machine.

    Raises:
        ArgumentsError: It has fewer.
    """
    needed = {
        stage: (each.min_workers or each.num_workers) if stage == "train" else 1
        for stage, each in resources.items()
        if each.num_gpus_per_worker
    }
    if not needed:
        return
    import torch

    present = torch.cuda.device_count()
    for stage, count in needed.items():
        if present < count:
            wanted = "a GPU" if count == 1 else f"{count} GPUs, one for each worker"
            remedy = f"ask for {present} at most" if present else "leave GPUs out, and the processor does the work"
            raise ArgumentsError(
                f"{stage}{_RESOURCES} asks for {wanted} (num_gpus_per_worker is 1), and this machine shows {present or 'none'}; {remedy}, "
                "or use a cluster's by `iddpm submit`"
            )


def local_resources(
    pipeline: CompiledPipeline, words: Sequence[str], *, stages: Sequence[str], num_workers: int | None = None, gpu: bool = False
) -> dict[str, Resources]:
    """Return the resources of each stage of a pipeline, for a command that does the work of its steps in processes of this machine.

    Args:
        words: "stage.field=value" or "stage=profile", as in `arguments_of`.
        stages: The stages that --num-workers and --gpu speak of.
        num_workers: The option --num-workers; None where it is not given.
        gpu: The option --gpu.

    Raises:
        UserError: A word is unknown, given twice, or does not fit; or it asks for a Ray cluster.
    """
    paths = [word.partition("=")[0] for word in words]
    words = list(words)
    for option, field, value in (("--num-workers", "num_workers", num_workers), ("--gpu", "num_gpus_per_worker", int(gpu) or None)):
        for path in [f"{stage}.{field}" for stage in stages] if value is not None else []:
            if path in paths:
                raise ArgumentsError(f"{option} and --resources {path} mean the same; give one")
            words.append(f"{path}={value}")
    if num_workers:  # there is no pod, so its memory must not limit the number
        words += [f"{stage}.memory={num_workers + 1}Gi" for stage in stages if f"{stage}.memory" not in paths]
    arguments: dict[str, Any] = {}
    for word in _profiles_first(words):
        _change_resources(pipeline, arguments, word)
    chosen = _chosen(pipeline, arguments)
    found = {stage: read_resources(chosen[f"{stage}{_RESOURCES}"], stage=stage) for stage in _stages(pipeline)}
    for stage, resources in found.items():
        require_place(stage, resources)
        if resources.ray_mode != "local":
            raise ArgumentsError(
                f"{stage}{_RESOURCES}.ray_mode {resources.ray_mode}: this command works in processes of this machine; "
                f"`iddpm run {pipeline.name}` takes a Ray cluster"
            )
    return {stage: resources.work for stage, resources in found.items()}


def change_for_retry(
    pipeline: CompiledPipeline,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    image: str,
    resources: Sequence[str],
    force_from: str = "",
) -> dict[str, Any]:
    """Return the arguments of a run with another image or other resources; what can change a result stays.

    Args:
        pipeline: The pipeline as it is now.
        given: The arguments that the run was given.
        defaults: The defaults of the version that it ran.
        image: Another image; empty keeps the run's. With another image, `defaults` are given explicitly, as today's may differ.
        resources: As in `arguments_of`.
        force_from: The step from which finished work is done again; empty does none again, even if the run did.

    Raises:
        UserError: A change does not fit, or the pipeline no longer has a parameter that the run was given.
    """
    require_force_from(force_from)
    if force_from and FORCE_FROM not in (pipeline.parameters if image else defaults):
        remedy = "; --image takes the pipeline of this installation" if FORCE_FROM in pipeline.parameters else ""
        raise ArgumentsError(f"--from {force_from}: this run's version of pipeline {pipeline.name} can't do finished steps again{remedy}")
    arguments = {name: value for name, value in given.items() if name != FORCE_FROM}
    if image:
        gone = {name for name in {**defaults, **given} if name not in pipeline.parameters}
        changed = sorted(name for name in gone if name in given and given[name] != defaults.get(name))
        if changed:
            raise ArgumentsError(f"pipeline {pipeline.name} has no parameter {changed[0]!r} any more; start the run by `iddpm submit`")
        arguments = {name: value for name, value in {**defaults, **given}.items() if name not in gone} | {"image": image}
    if force_from:
        arguments[FORCE_FROM] = force_from
    stages: set[str] = set()
    for word in _profiles_first(resources):
        stage = word.partition("=")[0].partition(".")[0]
        arguments.setdefault(f"{stage}{_RESOURCES}", defaults.get(f"{stage}{_RESOURCES}", ""))
        _change_resources(pipeline, arguments, word)
        stages.add(stage)
    for stage in sorted(stages):  # after all words: fields may fit together alone
        require_dashboard(stage, read_resources(arguments[f"{stage}{_RESOURCES}"], stage=stage))
    if image:  # without one the run's own version takes its own arguments again
        _check(pipeline, arguments)
        _check_for_cluster(pipeline, arguments)
    return arguments


def _check_for_cluster(pipeline: CompiledPipeline, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that no cluster could use."""
    chosen = _chosen(pipeline, arguments)
    image_from(chosen["image"], variable="--param image")
    if ABLATION in pipeline.parameters:
        require_sweep_fits([trial.label for trial in _ablation_trials(chosen)])
        for role, model in (chosen["ablation_options"] or {}).get("runs", {}).items():
            _require_model(f"--param ablation_options: runs.{role}", model)
    if chosen.get("storage_root_uri") == "":
        raise ArgumentsError("--param storage_root_uri: is empty; give the directory of all results, like s3://iddpm")
    for name in ("storage_root_uri", "data_uri"):
        if chosen.get(name):
            require_s3(f"--param {name}", chosen[name])
    _require_models(chosen)
    if chosen.get("data_source"):
        alone = read_resources(chosen[f"data{_RESOURCES}"], stage="data").ray_mode == "local"  # Ray's pods may have volumes
        if alone and "/" in chosen["data_source"] and Path(chosen["data_source"]).exists():
            raise ArgumentsError(f"--param data_source={chosen['data_source']}: is on this machine, and no step sees it; copy it to S3")
    for stage in _stages(pipeline):
        require_dashboard(stage, read_resources(chosen[f"{stage}{_RESOURCES}"], stage=stage))


def _require_models(chosen: Mapping[str, Any]) -> None:
    """Refuse names of models that mean nothing on a cluster, and a comparison of fewer than two."""
    models = chosen.get("models", [chosen["model"]] if "model" in chosen else [])
    parameter = "models" if "models" in chosen else "model"
    if parameter == "models" and len(models) < 2:
        raise ArgumentsError(f'--param models={json.dumps(models)}: name two or more, like ["models:/NAME/1", "models:/NAME@champion"]')
    for model in models:
        _require_model(f"--param {parameter}", model)


def _require_model(parameter: str, model: Any) -> None:
    if isinstance(model, str):
        require_no_blanks_around(parameter, model)
    if not isinstance(model, str) or not (model.startswith(("models:/", "runs:/", "s3://")) or is_run_key(model)):
        raise ArgumentsError(
            f"{parameter}={model}: write models:/NAME@ALIAS, runs:/ID, a run's key, or the s3:// address of a run or checkpoint"
        )


def _chosen(pipeline: CompiledPipeline, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters: those of `arguments`, and the others with their defaults."""
    return {**{name: parameter.get("defaultValue") for name, parameter in pipeline.parameters.items()}, **arguments}


def _require_experiment(pipeline: CompiledPipeline, arguments: Mapping[str, Any]) -> None:
    chosen = _chosen(pipeline, arguments)
    if not all(isinstance(override, str) for override in chosen.get(OVERRIDES) or ()):
        raise ArgumentsError(f'--param {OVERRIDES} is a JSON list of words like ["optim.num_steps=500"]')
    if ABLATION in pipeline.parameters:
        _ablation_trials(chosen)
    elif "tune_search" in pipeline.parameters:
        if not chosen[FILE].startswith("s3://"):
            _require_tuning(chosen)
    elif {PRESET, OVERRIDES, FILE, "seed"} & arguments.keys() and not chosen[FILE].startswith("s3://"):
        resolve_experiment_form(chosen[PRESET], chosen[OVERRIDES], chosen[FILE], chosen["seed"])


def _ablation_trials(chosen: Mapping[str, Any]) -> Sequence[Any]:
    from evaluation.ablations.definitions.request import from_parameters

    return from_parameters(chosen).trials()


def _require_tuning(chosen: Mapping[str, Any]) -> None:
    from components.tuning.directory import from_form

    experiment, tune = ([chosen[f"{group}_{name}"] for name in names] for group, names in _TUNING.items())
    from_form(*experiment, *tune)


def _value(name: str, text: str, definition: Mapping[str, Any]) -> Any:
    kind = definition["parameterType"]
    wanted, words = _KINDS.get(kind, (str, "text"))
    if wanted is str:
        return text
    reason = ""
    try:
        value = parse_json(text)
    except ValueError as error:
        value, reason = None, f", and this is not JSON: {error}" if wanted in (dict, list) else ""
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise ArgumentsError(f"--param {name}={text}: {name} is {words}{reason}")
    return read_json(text, f"--param {name}") if wanted in (dict, list) else value  # refuses a key that is there twice


def _require_literal(name: str, value: Any, definition: Mapping[str, Any]) -> None:
    literals = definition.get("literals")
    if literals and value not in literals:
        near = close_to(str(value), map(str, literals))
        listed = f" ({', '.join(map(str, literals))})" if len(literals) <= _MAX_LISTED or not near else ""
        raise ArgumentsError(f"--param {name}={value}: is not one of its values{listed}{near}")


def _parse(option: str, word: str, form: str) -> tuple[str, str]:
    name, separator, value = word.partition("=")
    if not separator:
        raise ArgumentsError(f"{option}: write {form}")
    return name, value


def _stages(pipeline: CompiledPipeline) -> list[str]:
    return [name.removesuffix(_RESOURCES) for name in pipeline.parameters if name.endswith(_RESOURCES)]


def _profiles_first(words: Sequence[str]) -> list[str]:
    """Return the words of --resources, profiles first: fields change a profile. Refuse a stage or field that is given twice."""
    paths = [word.partition("=")[0] for word in words]
    if doubled := [path for path in paths if paths.count(path) > 1]:
        raise ArgumentsError(f"--resources {doubled[0]} is given twice")
    return sorted(words, key=lambda word: "." in word.partition("=")[0])


def _change_resources(pipeline: CompiledPipeline, arguments: dict[str, Any], word: str) -> None:
    """Change a stage's resources in the arguments: by a profile's name, or one field."""
    path, value = _parse(f"--resources {word}", word, "STAGE.FIELD=VALUE, or STAGE=PROFILE")
    stage, _, field = path.partition(".")
    stages = _stages(pipeline)
    if stage not in stages:
        near = close_to(stage, stages)
        raise ArgumentsError(
            f"--resources {word}: pipeline {pipeline.name} has no stage {stage!r}{near or '; it has ' + ', '.join(stages)}"
        )
    name = f"{stage}{_RESOURCES}"
    text = _chosen(pipeline, arguments)[name]
    arguments[name] = merge_resources(text, {field: _plain(path, field, value)}, stage=stage) if field else value


def _plain(path: str, field: str, text: str) -> Any:
    """Return a field's value, written as JSON or as bare text. A map's entry is text even if it looks like a number: 2.20 stays 2.20."""
    try:
        value = parse_json(text)
    except ValueError:
        return text
    if MAP_ENTRY.fullmatch(field) and not isinstance(value, str):
        return text
    return read_json(text, f"--resources {path}") if isinstance(value, dict | list) else value  # refuses a key that is there twice

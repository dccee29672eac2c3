"""Read and check the settings of a pipeline's run, which are text parameters of its form."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from components.launch.resources import STAGES, StageResources, read_resources
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.files import decode_text, resolve_experiment
from training.config.validation import read_json, validate_parameter
from training.console import say
from training.data.preparation.options import ImageOptions

FORCED_STEPS = ("train", "evaluate", "report")
"""The steps of the train pipeline that `force_from` takes. Data sets and reference statistics belong to other runs too, so they stay."""
_S3_URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/.*)?")
_MAX_NAME = 500
"""MLflow's longest name of an experiment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions(ImageOptions):
    """Options of the preparation of images. The fields of `ImageOptions` describe the reading; these describe the source.

    Attributes:
        labels: Where labels come from: auto, none, folders, filename, or the address of a CSV or JSON file.
        num_test: Test images to hold out of a source that has no test split.
        other_sizes: More image sizes to make from the same decoded images, for the other models of a cascade. Each goes
            to its own default place where the data set has one, otherwise below it, to 64x64 for size 64.
        sources: For an ablation: name of a data set -> source of its images. The default source is the name itself.
    """

    labels: str = "auto"
    num_test: int = 0
    other_sizes: tuple[int, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ImageOptions.__post_init__(self)
        if self.num_test < 0:
            raise UserError(f"num_test must be 0 or more, got {self.num_test}")
        if any(size < 1 for size in self.other_sizes):
            raise UserError(f"other_sizes must be 1 or more, got {list(self.other_sizes)}")

    def arguments(self) -> dict[str, Any]:
        """Return these options as arguments of `components.steps.preprocess.prepare_data`."""
        return {
            "source_options": {"labels": self.labels, "num_test": self.num_test},
            "options": {each.name: getattr(self, each.name) for each in dataclasses.fields(ImageOptions)},
            "other_sizes": list(self.other_sizes),
        }


def read_data_options(text: str) -> DataOptions:
    """Read the parameter `data_options`: a JSON object of fields of `DataOptions`; empty changes nothing.

    Raises:
        UserError: The text is not a JSON object, or a field is unknown, is there twice or does not fit; the message has its path.
    """
    given = read_json(text or "{}", "data_options")
    if not isinstance(given, dict):
        raise UserError(f"data_options is a JSON object, got {text}")
    read: DataOptions = validate_parameter(DataOptions, given, "data_options")
    if "max_errors" in given and read.on_error != "skip":
        raise UserError('data_options.max_errors counts what "on_error": "skip" leaves out; add it')
    return read


def refuse_sources(text: str, remedy: str = "give data_source instead") -> None:
    """Refuse the field `sources` in the options where another one says the source; also whatever `read_data_options` refuses.

    Raises:
        UserError: The field is given.
    """
    if read_data_options(text).sources:
        raise UserError(f"data_options.sources is for the pipeline of ablations, which train on several data sets; {remedy}")


def describe_data_options() -> str:
    """Return the description of `data_options` in a form: an example, and all fields with their defaults."""
    values = dataclasses.asdict(DataOptions())
    fields = ", ".join(f"{name} ({json.dumps(value)})" for name, value in values.items())
    return f'A JSON object like {{"labels": "folders", "on_error": "skip"}}. Fields: {fields}.'


def resolve_experiment_form(preset: str, overrides: Sequence[str], file: str, seed: int) -> Experiment:
    """Return the experiment of a form.

    Args:
        preset: Name of a preset; unused if there is a file.
        overrides: Each `section.field=value`; they take precedence over the file.
        file: Text of an experiment file (TOML), or its s3:// address; empty takes the preset.
        seed: The experiment's seed; -1 leaves it.

    Raises:
        UserError: A value does not fit, or there is no such file.
    """
    if seed < -1:
        raise UserError(f"seed must be 0 or more, or -1, which leaves the experiment's own; got {seed}")
    text = read_experiment_file(file)
    return resolve_experiment(preset="" if text else preset, file_text=text, overrides=overrides, seed=seed if seed >= 0 else None)


def read_experiment_file(file: str) -> str:
    """Return the text of an experiment file, which a form has as text or as its s3:// address; empty where it is empty."""
    from training import storage

    text = file.strip()
    is_address = text.startswith("s3://") and "\n" not in text
    return decode_text(storage.retry(lambda: storage.read_bytes(text)), text) if is_address else text


def keep_experiment(experiment: str, storage_root_uri: str, pipeline_run_id: str) -> None:
    """Store the experiment of a pipeline's run for its last step: a file that the form names may be another by then.

    Args:
        experiment: The experiment as JSON; empty stores nothing.
    """
    from training import storage

    uri = _kept_uri(storage_root_uri, pipeline_run_id)
    if experiment:
        storage.retry(lambda: storage.write_bytes(uri, experiment.encode()))


def kept_experiment(storage_root_uri: str, pipeline_run_id: str, preset: str, overrides: Sequence[str], file: str, seed: int) -> Experiment:
    """Return the experiment that `keep_experiment` stored; without one, as after a failed first step, `resolve_experiment_form`."""
    from training import storage

    uri = _kept_uri(storage_root_uri, pipeline_run_id)
    try:
        return Experiment.from_json(storage.retry(lambda: storage.read_bytes(uri)))
    except storage.ObjectNotFoundError:
        return resolve_experiment_form(preset, overrides, file, seed)


def _kept_uri(storage_root_uri: str, pipeline_run_id: str) -> str:
    from components.launch.logs import pipeline_directory
    from components.steps.runs import EXPERIMENT

    return f"{pipeline_directory(storage_root_uri, pipeline_run_id)}/{EXPERIMENT}"


def require_force_from(step: str) -> None:
    """Refuse a step that can't be done again by force; empty forces none.

    Raises:
        UserError: It is none of `FORCED_STEPS`.
    """
    if step and step not in FORCED_STEPS:
        raise UserError(
            f"force_from: {step!r} can't be done again; the steps are {', '.join(FORCED_STEPS)} (data sets and reference statistics "
            "belong to all runs: another data_uri or storage_root_uri makes them anew)"
        )


def require_no_blanks_around(parameter: str, value: str) -> None:
    """Refuse a blank or a line's end before or after a name or an address, as of a pasted one: it would silently be another.

    Raises:
        UserError: There is one; the message shows the value in quotes.
    """
    if value != value.strip():
        raise UserError(f"{parameter} {value!r}: begins or ends with a blank or a line's end; leave it out")


def require_s3(parameter: str, uri: str) -> None:
    """Refuse an address that the steps of a run on a cluster do not share, as each has a pod of its own.

    Raises:
        UserError: It is none in S3, or has a blank around it.
    """
    require_no_blanks_around(parameter, uri)
    if not _S3_URI.fullmatch(uri):
        raise UserError(f"{parameter} {uri!r}: the steps of a run share only S3; write s3://BUCKET/PATH")


def require_shared(parameter: str, uri: str) -> None:
    """Call `require_s3` in a step's pod. The steps of a run on one machine share its disk."""
    if os.environ.get("KFP_POD_NAME"):
        require_s3(parameter, uri)


def require_tracking(tracking_experiment: str) -> None:
    """Refuse the name of an experiment of MLflow that no training could open, or that looks like another one's.

    Raises:
        UserError: It is empty, too long for MLflow, or has a blank around it.
    """
    if not tracking_experiment.strip():
        raise UserError("tracking_experiment is empty; give the name of MLflow's experiment, like iddpm")
    require_no_blanks_around("tracking_experiment", tracking_experiment)
    if len(tracking_experiment) > _MAX_NAME:
        raise UserError(f"tracking_experiment has {len(tracking_experiment)} characters; MLflow takes {_MAX_NAME}")


def require_rule(baseline_nights: int, threshold_difference: float) -> None:
    """Refuse parameters by which no history can be judged, before the model is scored.

    Raises:
        UserError: One is out of its range; the message names it.
    """
    from evaluation.monitoring.detector import Rule

    if not 0 <= threshold_difference < math.inf:
        raise UserError(f"threshold_difference must be a number of 0 or more, got {threshold_difference}")
    Rule(baseline_nights=baseline_nights)


def check_settings(
    experiment_preset: str,
    experiment_overrides: Sequence[str],
    experiment_file: str,
    seed: int,
    data_options: str,
    data_resources: str,
    train_resources: str,
    evaluate_resources: str,
    force_from: str = "",
) -> tuple[Any, ...]:
    """Check all settings of a run, before any step works.

    Args:
        experiment_preset: Name of a preset. With neither preset nor file, the pipeline trains no experiment.
        experiment_overrides: See `resolve_experiment_form`.
        experiment_file: See `resolve_experiment_form`.
        seed: See `resolve_experiment_form`.
        data_options: See `read_data_options`.
        data_resources: See `components.launch.resources.read_resources`.
        train_resources: See `components.launch.resources.read_resources`.
        evaluate_resources: See `components.launch.resources.read_resources`.
        force_from: See `require_force_from`.

    Returns:
        The experiment as JSON (empty where there is none), the fields of `PodSize` for each stage, in the order of `STAGES`, and the
        GPUs of the reference step, which is one of the evaluate stage's but has one worker.

    Raises:
        UserError: A setting does not fit, or the cluster does not have the queue; the message names it.
    """
    experiment = ""
    if experiment_preset or experiment_file:
        experiment = resolve_experiment_form(experiment_preset, experiment_overrides, experiment_file, seed).to_json()
        refuse_sources(data_options)
    read_data_options(data_options)
    require_force_from(force_from)
    sizes: list[Any] = []
    here = "in the step's pod" if os.environ.get("KFP_POD_NAME") else "on this machine"
    for stage, text in zip(STAGES, (data_resources, train_resources, evaluate_resources), strict=True):
        resources = read_resources(text, stage=stage)
        where = {"local": here, "rayjob": "on a Ray cluster made for it", "address": f"at {resources.ray_address}"}[resources.ray_mode]
        size = "" if where == "on this machine" else f", {resources.cpu} core(s) and {resources.memory} a pod"
        say(f"{stage}: {resources.num_workers} worker(s) {where}{size}")
        require_place(stage, resources)
        sizes.extend(resources.pod)
    return (experiment, *sizes, str(min(int(resources.pod.gpus), 1)))


def require_place(stage: str, resources: StageResources) -> None:
    """Refuse resources of a stage for which this run has no place: no Kubernetes, no such queue, or `require_dashboard` refuses them.

    Raises:
        UserError: The message begins with the stage's parameter.
    """
    if os.environ.get("KFP_POD_NAME"):
        require_dashboard(stage, resources)
    elif resources.ray_mode == "rayjob":
        _require_cluster(f"{stage}_resources")
    _require_queue(f"{stage}_resources", resources.queue)


def require_dashboard(stage: str, resources: StageResources) -> None:
    """Refuse the address of a standing Ray cluster that a step's pod could not use, as it is on none of that cluster's nodes.

    Raises:
        UserError: It is no address of a dashboard.
    """
    address = resources.ray_address
    if address and not address.startswith(("http://", "https://")):
        raise UserError(
            f"{stage}_resources.ray_address {address}: a step's pod is not on that cluster; give its dashboard, like http://HEAD:8265"
        )


def _require_cluster(parameter: str) -> None:
    """Refuse a Ray cluster for a run on a machine that knows no Kubernetes, before images are prepared."""
    from components.cluster.connection import KubernetesError, connect

    try:
        connect()
    except KubernetesError as error:
        raise UserError(f"{parameter}: {error}") from error


def _require_queue(parameter: str, queue: str) -> None:
    """Refuse a queue that the cluster does not have, before images are prepared; the stage's own step asks again."""
    from components.cluster.connection import KubernetesError, current_namespace
    from components.cluster.kubernetes_api import KubernetesApi

    if not queue:
        return
    try:
        problem = KubernetesApi(current_namespace(), patience_seconds=60.0).queue_problem(queue)
    except KubernetesError as error:
        say(f"{error}; queue {queue} is not checked")
        return
    if problem:
        raise UserError(f"{parameter}: {problem}")

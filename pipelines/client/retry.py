"""Retry a run that failed or was cancelled: the same pipeline with the same arguments, on another image or other resources if wanted.

It is a new run in KFP. Its steps find in S3 what the old one finished, and the same experiment on the same data has the same
directory and the same run in MLflow. KFP's own Retry keeps the run and its finished steps, but can change neither image nor resources.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipelines.client.arguments import CompiledPipeline, change_for_retry, compiled_pipeline
from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp
from pipelines.client.runs import FINISHED, PipelineNames, format_state, get_run
from pipelines.client.submit import SubmittedRun, Version, start, upload
from pipelines.compile import PIPELINES
from training.config.errors import UserError

_RETRY = re.compile(r" \(retry (\d+)\)$")
_PREFIX = "iddpm-"


class Retry(NamedTuple):
    """A run that was started in place of another."""

    run: SubmittedRun
    pipeline: CompiledPipeline
    arguments: dict[str, Any]


def retry(kfp: Kfp, run_id: str, *, image: str = "", resources: Sequence[str] = (), force_from: str = "") -> Retry:
    """Start a run again.

    Args:
        run_id: A run that has ended, without success unless `force_from` is given.
        image: Another image. The pipeline is then that of this installation, since steps and image belong together; otherwise it is the
            version that the run had. All that can change a result stays as it was.
        resources: Changes of the stages' resources; see `pipelines.client.arguments.arguments_of`.
        force_from: The step from which finished work is done again; one of `components.steps.settings.FORCED_STEPS`.

    Raises:
        UserError: There is no such run, it is not of this project, it has succeeded or goes on, or a change does not fit.
    """
    run = get_run(kfp, run_id)
    if run.state == "SUCCEEDED" and not force_from:
        raise UserError(f"run {run_id} has succeeded, so there is nothing to retry; --from STEP does a step again all the same")
    if run.state not in FINISHED:
        raise UserError(f"run {run_id} is {format_state(run.state)}; `iddpm cancel {run_id} --wait` ends it first")
    reference = run.pipeline_version_reference
    old = _version(kfp, run)
    spec = (old.pipeline_spec if old is not None else None) or {}
    spec = spec.get("pipeline_spec", spec)
    # A pipeline that was uploaded in the UI may have any name on the server. Only the specification has ours.
    name = str(spec.get("pipelineInfo", {}).get("name", ""))
    ours = [f"{_PREFIX}{each}" for each in PIPELINES]
    if old is None and PipelineNames(kfp).find(run) in ours:
        raise UserError(f"run {run_id} has no uploaded version of its pipeline, which a retry starts; `iddpm submit` starts another run")
    if name not in ours:
        raise UserError(
            f"run {run_id} is of pipeline {name or PipelineNames(kfp).find(run)}; only runs of {', '.join(ours)} can be retried"
        )
    pipeline = compiled_pipeline(name.removeprefix(_PREFIX))
    given = (run.runtime_config.parameters if run.runtime_config else None) or {}
    parameters = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    defaults = {key: each["defaultValue"] for key, each in parameters.items() if "defaultValue" in each}
    arguments = change_for_retry(pipeline, given, defaults, image=image, resources=resources, force_from=force_from)
    if image:
        version = upload(kfp, pipeline)
    else:
        version = Version(
            pipeline_id=reference.pipeline_id, version_id=reference.pipeline_version_id, name=old.display_name or old.name, is_new=False
        )
    number = _RETRY.search(run.display_name)
    run_name = f"{_RETRY.sub('', run.display_name)} (retry {int(number[1]) + 1 if number else 1})"
    experiment = kfp.client.get_experiment(experiment_id=run.experiment_id)
    return Retry(start(kfp, run.experiment_id, experiment.display_name, version, arguments, run_name), pipeline, arguments)


def _version(kfp: Kfp, run: Any) -> Any:
    """Return the version of a pipeline that a run had, None if it had none; raise UserError if the server has it no longer."""
    reference = run.pipeline_version_reference
    if reference is None or not reference.pipeline_version_id:
        return None
    try:
        return kfp.client.get_pipeline_version(reference.pipeline_id, reference.pipeline_version_id)
    except KfpError as error:
        if error.status == 404:
            raise UserError(
                f"run {run.run_id}: KFP no longer has its version of the pipeline; `iddpm submit` starts another run"
            ) from error
        raise

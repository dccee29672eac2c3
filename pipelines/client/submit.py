"""Submit a run: upload the pipeline if it has changed, find or make the experiment, start the run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.client.arguments import CompiledPipeline
from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp
from training.config.errors import UserError
from training.config.validation import close_to

DEFAULT_EXPERIMENT = "iddpm"
"""KFP's experiment of runs that name none; it is made if it is missing."""
_EQUALS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version of a pipeline on the server; it is new if it was uploaded now."""

    pipeline_id: str
    version_id: str
    name: str
    is_new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmittedRun:
    """A run that KFP has accepted.

    Attributes:
        experiment: Name of its experiment in KFP.
        page: Its page in the UI; empty if the UI's address is not known.
    """

    run_id: str
    run_name: str
    experiment: str
    version: Version
    page: str


def submit(
    kfp: Kfp,
    pipeline: CompiledPipeline,
    arguments: Mapping[str, Any],
    *,
    experiment: str = "",
    create_experiment: bool = False,
    run_name: str = "",
) -> SubmittedRun:
    """Start a run.

    Args:
        arguments: Its arguments, checked by `pipelines.client.arguments`.
        experiment: KFP's experiment; empty takes `DEFAULT_EXPERIMENT`.
        create_experiment: Make the experiment if it is missing.
        run_name: Name of the run; empty takes the pipeline's name and the time.

    Raises:
        UserError: There is no such experiment.
    """
    experiment_id, experiment = find_experiment(kfp, experiment, create=create_experiment)
    version = upload(kfp, pipeline)
    run_name = run_name.strip() or f"{pipeline.pipeline_name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    return start(kfp, experiment_id, experiment, version, arguments, run_name)


def start(kfp: Kfp, experiment_id: str, experiment: str, version: Version, arguments: Mapping[str, Any], run_name: str) -> SubmittedRun:
    """Start a run of a version that the server has; raise KfpError if KFP refuses, or does not answer."""
    run = kfp.call_silently(
        kfp.client.run_pipeline,
        experiment_id=experiment_id,
        job_name=run_name,
        params=dict(arguments),
        pipeline_id=version.pipeline_id,
        version_id=version.version_id,
    )
    return SubmittedRun(run_id=run.run_id, run_name=run_name, experiment=experiment, version=version, page=kfp.link("runs", run.run_id))


def upload(kfp: Kfp, pipeline: CompiledPipeline) -> Version:
    """Upload a pipeline unless the server has this version already. Of several commands at once, one uploads it."""
    pipeline_id, _ = _find_or_make(lambda: _pipeline_id(kfp, pipeline), lambda: _create_pipeline(kfp, pipeline))
    version_id, is_new = _find_or_make(
        lambda: _version_id(kfp, pipeline_id, pipeline.version_name), lambda: _upload(kfp, pipeline, pipeline_id)
    )
    return Version(pipeline_id=pipeline_id, version_id=version_id, name=pipeline.version_name, is_new=is_new)


def find_experiment(kfp: Kfp, name: str = "", *, create: bool = False, remedy: str = " (--create-experiment makes it)") -> tuple[str, str]:
    """Return the id and name of an experiment.

    Args:
        name: Its name; empty takes the default, which is made if it is missing.
        create: Make also an experiment of another name if it is missing.
        remedy: The end of the message where there is none; empty for a command that makes none.

    Raises:
        UserError: There is none of that name.
    """
    wanted = name or DEFAULT_EXPERIMENT
    found = _experiment(kfp, wanted)
    if found is not None:
        if found.storage_state == "ARCHIVED":
            raise UserError(f"experiment {wanted!r} is archived; restore it in the UI, or name another")
        return found.experiment_id, wanted
    if name and not create:
        where = f" in namespace {kfp.namespace}" if kfp.namespace else ""
        listed = kfp.list_all(kfp.client.list_experiments, "experiments", limit=100, namespace=kfp.namespace)
        names = sorted(each.display_name for each in listed)
        there = f"; existing ones are {', '.join(names[:10])}" if names else ""
        raise UserError(f"there is no experiment {wanted!r}{where}{close_to(wanted, names) or there}{remedy}")
    ident, _ = _find_or_make(
        lambda: getattr(_experiment(kfp, wanted), "experiment_id", None),
        lambda: str(kfp.call_silently(kfp.client.create_experiment, name=wanted, namespace=kfp.namespace).experiment_id),
    )
    return ident, wanted


def _experiment(kfp: Kfp, name: str) -> Any:
    """Return the experiment of that name, or None."""
    found = kfp.list_all(kfp.client.list_experiments, "experiments", namespace=kfp.namespace, filter=_filter("display_name", name))
    return found[0] if found else None


def _find_or_make(find: Callable[[], str | None], make: Callable[[], str]) -> tuple[str, bool]:
    """Return an id, and whether it was made now."""
    found = find()
    if found:
        return found, False
    try:
        return make(), True
    except KfpError as error:
        found = find() if error.status == 409 else None  # another command was faster
        if not found:
            raise
        return found, False


def _pipeline_id(kfp: Kfp, pipeline: CompiledPipeline) -> str | None:
    found = kfp.list_all(kfp.client.list_pipelines, "pipelines", namespace=kfp.namespace, filter=_filter("name", pipeline.pipeline_name))
    return next((each.pipeline_id for each in found), None)


def _create_pipeline(kfp: Kfp, pipeline: CompiledPipeline) -> str:
    # Without a version: KFP's own upload would give the first one the pipeline's name, and not its digest.
    body = kfp.client.api_models.V2beta1Pipeline(
        name=pipeline.pipeline_name,
        display_name=pipeline.pipeline_name,
        description=pipeline.spec["pipelineInfo"].get("description"),
        namespace=kfp.namespace,
    )
    return str(kfp.client.pipelines.pipeline_service_create_pipeline(body).pipeline_id)


def _version_id(kfp: Kfp, pipeline_id: str, name: str) -> str | None:
    versions = kfp.list_all(kfp.client.list_pipeline_versions, "pipeline_versions", pipeline_id=pipeline_id, filter=_filter("name", name))
    return next((each.pipeline_version_id for each in versions), None)


def _upload(kfp: Kfp, pipeline: CompiledPipeline, pipeline_id: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline.name}.yaml"
        path.write_text(pipeline.text, encoding="utf-8")
        version = kfp.call_silently(
            kfp.client.upload_pipeline_version, str(path), pipeline_version_name=pipeline.version_name, pipeline_id=pipeline_id
        )
    return str(version.pipeline_version_id)


def _filter(key: str, name: str) -> str:
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": key, "stringValue": name}]})

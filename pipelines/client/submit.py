"""A run on the cluster: the pipeline uploaded where it changed, an experiment to put the run in, and the run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.client.arguments import CompiledPipeline, close_to
from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp

DEFAULT_EXPERIMENT = "iddpm"
"""KFP's experiment of runs that name none; made where it is missing."""
FINISHED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_EQUALS = 1


class SubmitError(ValueError):
    """What was asked of KFP is not there; one line with the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version of a pipeline on the server.

    Attributes:
        pipeline_id: Of the pipeline.
        version_id: Of the version.
        name: Of the version.
        is_new: Whether it was uploaded now.
    """

    pipeline_id: str
    version_id: str
    name: str
    is_new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A run that KFP took on.

    Attributes:
        run_id: Its id.
        run_name: Its name.
        experiment: Of KFP.
        version: Of the pipeline.
        page: Its page in the UI; empty where the UI's address is not known.
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
) -> Submitted:
    """Starts a run.

    Args:
        kfp: The connection.
        pipeline: What to run.
        arguments: Its arguments, as `pipelines.client.arguments` checked them.
        experiment: KFP's experiment; empty takes `DEFAULT_EXPERIMENT`.
        create_experiment: Whether to make the experiment where it is missing.
        run_name: Of the run; empty takes the pipeline's and the time.

    Raises:
        SubmitError: There is no such experiment.
        KfpError: KFP refuses, or does not answer.
    """
    experiment_id, experiment = find_experiment(kfp, experiment, create=create_experiment)
    version = uploaded(kfp, pipeline)
    run_name = run_name or f"{pipeline.pipeline_name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    run = kfp.quietly(
        kfp.client.run_pipeline,
        experiment_id=experiment_id,
        job_name=run_name,
        params=dict(arguments),
        pipeline_id=version.pipeline_id,
        version_id=version.version_id,
    )
    return Submitted(run_id=run.run_id, run_name=run_name, experiment=experiment, version=version, page=kfp.link("runs", run.run_id))


def uploaded(kfp: Kfp, pipeline: CompiledPipeline) -> Version:
    """The pipeline's version on the server, uploaded where it is not there; of two who upload at once one does.

    Raises:
        KfpError: KFP refuses, or does not answer.
    """
    pipeline_id, _ = _made_once(lambda: _pipeline_id(kfp, pipeline), lambda: _create_pipeline(kfp, pipeline))
    version_id, is_new = _made_once(
        lambda: _version_id(kfp, pipeline_id, pipeline.version_name), lambda: _upload(kfp, pipeline, pipeline_id)
    )
    return Version(pipeline_id=pipeline_id, version_id=version_id, name=pipeline.version_name, is_new=is_new)


def find_experiment(kfp: Kfp, name: str = "", *, create: bool = False) -> tuple[str, str]:
    """Id and name of an experiment.

    Args:
        kfp: The connection.
        name: Which; empty takes the default, which is made where it is missing.
        create: Whether to make another that is missing.

    Raises:
        SubmitError: There is none of that name.
        KfpError: KFP refuses, or does not answer.
    """
    wanted = name or DEFAULT_EXPERIMENT
    found = _experiments(kfp)
    if wanted in found:
        ident, archived = found[wanted]
        if archived:
            raise SubmitError(f"experiment {wanted!r} is archived; restore it in the UI, or name another")
        return ident, wanted
    if name and not create:
        where = f" in namespace {kfp.namespace}" if kfp.namespace else ""
        there = f"; there are {', '.join(sorted(found)[:10])}" if found else ""
        raise SubmitError(f"there is no experiment {wanted!r}{where}{close_to(wanted, found) or there} (--create-experiment makes it)")
    ident, _ = _made_once(
        lambda: _experiments(kfp).get(wanted, (None, False))[0],
        lambda: str(kfp.quietly(kfp.client.create_experiment, name=wanted, namespace=kfp.namespace).experiment_id),
    )
    return ident, wanted


def _experiments(kfp: Kfp) -> dict[str, tuple[str, bool]]:
    """Name -> id, and whether it is archived."""
    found = kfp.every(kfp.client.list_experiments, "experiments", namespace=kfp.namespace)
    return {each.display_name: (each.experiment_id, each.storage_state == "ARCHIVED") for each in found}


def _made_once(find: Callable[[], str | None], make: Callable[[], str]) -> tuple[str, bool]:
    """The id of what is there or is made now, and whether it was made now."""
    found = find()
    if found:
        return found, False
    try:
        return make(), True
    except KfpError as error:
        found = find() if error.status == 409 else None  # somebody else was faster
        if not found:
            raise
        return found, False


def _pipeline_id(kfp: Kfp, pipeline: CompiledPipeline) -> str | None:
    found = kfp.every(kfp.client.list_pipelines, "pipelines", namespace=kfp.namespace, filter=_named("name", pipeline.pipeline_name))
    return next((each.pipeline_id for each in found), None)


def _create_pipeline(kfp: Kfp, pipeline: CompiledPipeline) -> str:
    # Without a version: KFP's own upload would call the first one by the pipeline's name, and not by its digest.
    body = kfp.client.api_models.V2beta1Pipeline(
        name=pipeline.pipeline_name,
        display_name=pipeline.pipeline_name,
        description=pipeline.spec["pipelineInfo"].get("description"),
        namespace=kfp.namespace,
    )
    return str(kfp.client.pipelines.pipeline_service_create_pipeline(body).pipeline_id)


def _version_id(kfp: Kfp, pipeline_id: str, name: str) -> str | None:
    versions = kfp.every(kfp.client.list_pipeline_versions, "pipeline_versions", pipeline_id=pipeline_id, filter=_named("name", name))
    return next((each.pipeline_version_id for each in versions), None)


def _upload(kfp: Kfp, pipeline: CompiledPipeline, pipeline_id: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pipeline.name}.yaml"
        path.write_text(pipeline.text)
        version = kfp.quietly(
            kfp.client.upload_pipeline_version, str(path), pipeline_version_name=pipeline.version_name, pipeline_id=pipeline_id
        )
    return str(version.pipeline_version_id)


def _named(key: str, name: str) -> str:
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": key, "stringValue": name}]})

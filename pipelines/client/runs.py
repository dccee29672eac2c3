"""The runs that KFP knows: the latest of them, and the end of one."""

from __future__ import annotations

from typing import Any

from pipelines.client.errors import KfpError
from pipelines.client.follow import words
from pipelines.client.kfp_client import Kfp
from pipelines.client.submit import FINISHED, SubmitError, find_experiment


def latest(kfp: Kfp, *, experiment: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """The latest runs, as plain values.

    Args:
        kfp: The connection.
        experiment: Only those of this one; empty takes all.
        limit: How many.

    Raises:
        SubmitError: There is no such experiment.
        KfpError: KFP refuses, or does not answer.
    """
    where: dict[str, Any] = {"namespace": kfp.namespace}
    if experiment:
        where = {"experiment_id": find_experiment(kfp, experiment)[0]}
    runs = kfp.every(kfp.client.list_runs, "runs", limit=limit, sort_by="created_at desc", **where)
    names = PipelineNames(kfp)
    return [
        {
            "run_id": run.run_id,
            "name": run.display_name,
            "state": words(run.state),
            "created": run.created_at.isoformat() if run.created_at else "",
            "finished": run.finished_at.isoformat() if run.finished_at and run.state in FINISHED else None,
            "pipeline": names.of(run),
            "schedule_id": run.recurring_run_id,
        }
        for run in runs
    ]


def terminate(kfp: Kfp, run_id: str) -> str | None:
    """Tells a run to end.

    Returns:
        The state of one that had ended already; None of one that was told.

    Raises:
        SubmitError: There is no such run.
        KfpError: KFP refuses, or does not answer.
    """
    state = _state(kfp, run_id)
    if state in FINISHED:
        return state
    if state != "CANCELING":
        try:
            kfp.client.terminate_run(run_id)
        except KfpError:
            state = _state(kfp, run_id)  # it may have ended meanwhile, which KFP answers with an error
            if state in FINISHED:
                return state
            if state != "CANCELING":
                raise
    return None


class PipelineNames:
    """Names of pipelines by what refers to them, each asked for once."""

    def __init__(self, kfp: Kfp) -> None:
        self._kfp = kfp
        self._names: dict[str, str] = {}

    def of(self, referring: Any) -> str:
        """The name of the pipeline of a run or schedule; "-" where it is gone or has none."""
        reference = referring.pipeline_version_reference
        if reference is None or not reference.pipeline_id:
            spec = referring.pipeline_spec or {}
            spec = spec.get("pipeline_spec", spec)
            return str(spec.get("pipelineInfo", {}).get("name", "-"))
        if reference.pipeline_id not in self._names:
            self._names[reference.pipeline_id] = self._name(reference.pipeline_id)
        return self._names[reference.pipeline_id]

    def _name(self, pipeline_id: str) -> str:
        try:
            return str(self._kfp.client.get_pipeline(pipeline_id).display_name)
        except KfpError as error:
            if error.status != 404:
                raise
            return "-"


def _state(kfp: Kfp, run_id: str) -> str:
    try:
        return str(kfp.client.get_run(run_id).state or "RUNTIME_STATE_UNSPECIFIED")
    except KfpError as error:
        if error.status == 404:
            raise SubmitError(f"there is no run {run_id}; `iddpm runs` lists them") from error
        raise

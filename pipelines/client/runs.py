"""The runs on the server: their states, the latest of them, and the end of one."""

from __future__ import annotations

from typing import Any

from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp
from pipelines.client.submit import find_experiment
from training.config.errors import UserError

FINISHED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_STATE_NAMES = {"RUNTIME_STATE_UNSPECIFIED": "pending", "CANCELED": "cancelled", "CANCELING": "being cancelled"}


def format_state(state: str | None) -> str:
    """Return a state of KFP in plain words, like "running"."""
    return _STATE_NAMES.get(state or "RUNTIME_STATE_UNSPECIFIED", (state or "").lower())


def was_cancelled(run: Any) -> bool:
    """Return True if somebody ended the run. KFP 2.17 shows such a run as CANCELING at first, and as FAILED at its end."""
    states = [change.state for change in run.state_history or ()]
    return run.state == "CANCELED" or (run.state == "FAILED" and "CANCELING" in states)


def state_of(run: Any) -> str:
    """Return the state of a run in plain words."""
    return format_state("CANCELED" if was_cancelled(run) else run.state)


def list_runs(kfp: Kfp, *, experiment: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """Return the latest runs as plain values.

    Args:
        experiment: Only runs of this experiment; empty takes all.
        limit: The most to return.

    Raises:
        UserError: There is no such experiment.
    """
    scope: dict[str, Any] = {"namespace": kfp.namespace}
    if experiment:
        scope = {"experiment_id": find_experiment(kfp, experiment, remedy="")[0]}
    runs = kfp.list_all(kfp.client.list_runs, "runs", limit=limit, sort_by="created_at desc", **scope)
    names = PipelineNames(kfp)
    return [
        {
            "run_id": run.run_id,
            "name": run.display_name,
            "state": state_of(run),
            "created": run.created_at.isoformat() if run.created_at else "",
            "finished": run.finished_at.isoformat() if run.finished_at and run.state in FINISHED else None,
            "pipeline": names.find(run),
            "schedule_id": run.recurring_run_id,
        }
        for run in runs
    ]


def terminate(kfp: Kfp, run_id: str) -> str | None:
    """Terminate a run; return its state in plain words if it had finished already, else None.

    Raises:
        UserError: There is no such run.
    """
    run = get_run(kfp, run_id)
    if run.state not in (*FINISHED, "CANCELING"):
        try:
            kfp.client.terminate_run(run_id)
            return None
        except KfpError:
            run = get_run(kfp, run_id)  # KFP refuses also if the run has finished meanwhile
            if run.state not in (*FINISHED, "CANCELING"):
                raise
    return state_of(run) if run.state in FINISHED else None


class PipelineNames:
    """Names of the pipelines of runs and schedules; each is requested once."""

    def __init__(self, kfp: Kfp) -> None:
        self._kfp = kfp
        self._names: dict[str, str] = {}

    def find(self, run: Any) -> str:
        """Return the name of the pipeline of a run or schedule; "-" if it was deleted or has none."""
        reference = run.pipeline_version_reference
        if reference is None or not reference.pipeline_id:
            spec = run.pipeline_spec or {}
            spec = spec.get("pipeline_spec", spec)
            return str(spec.get("pipelineInfo", {}).get("name", "-"))
        if reference.pipeline_id not in self._names:
            self._names[reference.pipeline_id] = self._request(reference.pipeline_id)
        return self._names[reference.pipeline_id]

    def _request(self, pipeline_id: str) -> str:
        try:
            return str(self._kfp.client.get_pipeline(pipeline_id).display_name)
        except KfpError as error:
            if error.status != 404:
                raise
            return "-"


def get_run(kfp: Kfp, run_id: str) -> Any:
    """Return a run; raise UserError if there is none of that id."""
    try:
        return kfp.client.get_run(run_id)
    except KfpError as error:
        if error.status == 404:
            raise UserError(f"there is no run {run_id}; `iddpm runs` lists them") from error
        raise

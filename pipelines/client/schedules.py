"""Schedules: KFP's recurring runs by name. Creating one twice leaves one.

KFP cannot change a recurring run, so a changed schedule is created anew and the old one deleted. The digest of its
specification is stored in its description and tells whether it has changed: the server stores the rest in its own form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from croniter import CroniterError

from pipelines.client.arguments import CompiledPipeline
from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp
from pipelines.client.runs import FINISHED, PipelineNames
from pipelines.client.submit import Version, find_experiment, upload
from pipelines.client.timing import Timing, find_zone, format_interval, next_times
from training.config.errors import UserError
from training.config.validation import close_to

NIGHTLY = "0 0 2 * * *"
"""Default expression of the nightly pipeline."""
MAX_CONCURRENCY = 10
"""KFP's limit."""
_CLOCKS_DIFFER = timedelta(minutes=10)
"""Largest difference of two clocks: Kubernetes dates a run, and KFP's server dates its schedule."""
_DIGEST = re.compile(r"iddpm schedule, state ([0-9a-f]{12})")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSpec:
    """Specification of a schedule.

    Attributes:
        experiment: KFP's experiment; empty takes the default.
        max_concurrency: Number of its runs that may run at once, 1 to 10.
        catch_up: Make up for missed runs.
    """

    name: str
    timing: Timing
    arguments: Mapping[str, Any]
    experiment: str = ""
    max_concurrency: int = 1
    catch_up: bool = False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise UserError("a schedule needs a name; give --name")
        if not 1 <= self.max_concurrency <= MAX_CONCURRENCY:
            raise UserError(f"--max-concurrency must be 1 to {MAX_CONCURRENCY}, got {self.max_concurrency}")

    def digest(self, version: Version, experiment_id: str) -> str:
        """Return what tells a changed schedule from an unchanged one."""
        timing = self.timing
        facts = [
            version.version_id,
            experiment_id,
            self.arguments,
            timing.cron or None,
            timing.every_seconds,
            self.max_concurrency,
            self.catch_up,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True, slots=True)
class AppliedSchedule:
    """The result of `apply`; the outcome is "created", "replaced" or "unchanged"."""

    outcome: str
    schedule_id: str
    version: Version
    experiment: str
    paused: bool


def apply(kfp: Kfp, pipeline: CompiledPipeline, spec: ScheduleSpec, *, create_experiment: bool = False) -> AppliedSchedule:
    """Create a schedule, replace a changed one, or leave an unchanged one.

    Raises:
        UserError: A schedule of that name was made by other means, there is no such experiment, or a run of a changed schedule goes on.
    """
    existing = [each for each in list_schedules(kfp) if each.display_name == spec.name]
    foreign = [each for each in existing if _digest(each) is None]
    if foreign:
        ident = foreign[0].recurring_run_id
        raise UserError(f"schedule {spec.name!r} was not made by iddpm ({ident}); take another --name, or delete it in the UI")
    experiment_id, experiment = find_experiment(kfp, spec.experiment, create=create_experiment)
    version = upload(kfp, pipeline)
    digest = spec.digest(version, experiment_id)
    current = _oldest(existing, digest)
    outcome = "unchanged"
    if current is None:
        _refuse_while_runs_go_on(kfp, existing)
        # The new one first: if KFP refuses it, the old one goes on.
        paused = bool(existing) and all(each.mode == "DISABLE" for each in existing)
        _create(kfp, spec, version, experiment_id, digest, enabled=not paused)
        # Two commands at once see each other's schedule here, and both keep the older one.
        existing = [each for each in list_schedules(kfp) if each.display_name == spec.name]
        outcome = "replaced" if any(_digest(each) != digest for each in existing) else "created"
        current = _oldest(existing, digest)
        if current is None:
            raise KfpError(f"KFP created schedule {spec.name!r} and does not list it; look with 'iddpm schedule list'")
    others = [each for each in existing if each.recurring_run_id != current.recurring_run_id and _digest(each) is not None]
    if outcome == "unchanged":  # these remain of an earlier command; otherwise they were checked before the new one was created
        _refuse_while_runs_go_on(kfp, others)
    for each in others:
        _delete(kfp, each.recurring_run_id)
    return AppliedSchedule(
        outcome=outcome, schedule_id=current.recurring_run_id, version=version, experiment=experiment, paused=current.mode == "DISABLE"
    )


def list_schedules(kfp: Kfp) -> list[Any]:
    """Return all recurring runs, sorted by name."""
    found = kfp.list_all(kfp.client.list_recurring_runs, "recurring_runs", namespace=kfp.namespace)
    return sorted(found, key=lambda each: (each.display_name or "", str(each.created_at)))


def find_schedule(kfp: Kfp, name: str) -> Any:
    """Return the recurring run of a name or id; raise UserError if there is none, or there are several."""
    existing = list_schedules(kfp)
    found = [each for each in existing if name in (each.display_name, each.recurring_run_id)]
    if not found:
        names = sorted({each.display_name for each in existing})
        known = f"; existing ones are {', '.join(names[:10])}" if names else "; there are none"
        raise UserError(f"there is no schedule {name!r}{close_to(name, names) or known}")
    if len(found) > 1:
        ids = ", ".join(each.recurring_run_id for each in found)
        raise UserError(f"there are {len(found)} schedules named {name!r}; give the id of one: {ids}")
    return found[0]


def set_enabled(kfp: Kfp, name: str, *, enabled: bool) -> bool:
    """Resume or pause a schedule; return True if that changed its state. It raises as `find_schedule` does."""
    found = find_schedule(kfp, name)
    if (found.mode != "DISABLE") == enabled:
        return False
    change: Callable[[str], Any] = kfp.client.enable_recurring_run if enabled else kfp.client.disable_recurring_run
    change(found.recurring_run_id)
    return True


def delete(kfp: Kfp, name: str) -> str:
    """Delete a schedule and return its id; its past runs stay. It raises as `find_schedule` does, and while a run of it goes on."""
    found = find_schedule(kfp, name)
    _refuse_while_runs_go_on(kfp, [found])
    _delete(kfp, found.recurring_run_id)
    return str(found.recurring_run_id)


def summarize(kfp: Kfp, cluster_zone: str) -> list[dict[str, Any]]:
    """Return all schedules as plain values; `cluster_zone` is the one in which KFP reads cron expressions."""
    find_zone(cluster_zone)
    names = PipelineNames(kfp)
    return [_summary(each, names.find(each), cluster_zone) for each in list_schedules(kfp)]


def _summary(recurring_run: Any, pipeline: str, cluster_zone: str) -> dict[str, Any]:
    trigger = recurring_run.trigger
    when, next_time = "never", None
    paused = recurring_run.mode == "DISABLE"
    if trigger is not None and trigger.cron_schedule is not None:
        when = f"{trigger.cron_schedule.cron} {cluster_zone}"
        next_time = None if paused else _next_time(trigger.cron_schedule.cron, cluster_zone)
    elif trigger is not None and trigger.periodic_schedule is not None:
        when = f"every {format_interval(int(trigger.periodic_schedule.interval_second))}"
    return {
        "name": recurring_run.display_name,
        "schedule_id": recurring_run.recurring_run_id,
        "state": "paused" if paused else "active",
        "when": when,
        "next": next_time,
        "pipeline": pipeline,
        "max_concurrency": int(recurring_run.max_concurrency or 1),
        "catch_up": not recurring_run.no_catchup,
    }


def _next_time(cron: str, zone: str) -> str | None:
    if len(cron.split()) != 6:  # made by other means, and KFP reads fewer fields in its own way
        return None
    try:
        return next_times(cron, zone, 1)[0].isoformat()
    except CroniterError:
        return None


def _digest(recurring_run: Any) -> str | None:
    """Return the digest of the specification; None for a recurring run that was made by other means."""
    match = _DIGEST.search(recurring_run.description or "")
    return match[1] if match else None


def _refuse_while_runs_go_on(kfp: Kfp, schedules: Iterable[Any]) -> None:
    """Raise UserError if a run of these schedules has not ended: its Workflow goes with the schedule, and KFP never sees its end."""
    created = {each.recurring_run_id: each.created_at for each in schedules}
    if not created:
        return
    oldest = None if None in created.values() else min(created.values()) - _CLOCKS_DIFFER
    # The latest first, page by page: a run that takes days may stand behind hundreds of younger ones.
    for run in kfp.iterate(kfp.client.list_runs, "runs", sort_by="created_at desc", namespace=kfp.namespace):
        if oldest and run.created_at and run.created_at < oldest:
            return
        if run.recurring_run_id in created and run.state not in (*FINISHED, "CANCELING"):
            raise UserError(
                f"run {run.run_id} of the schedule goes on and would vanish with it; wait for its end, or run 'iddpm cancel {run.run_id}'"
            )


def _oldest(recurring_runs: list[Any], digest: str) -> Any:
    same = [each for each in recurring_runs if _digest(each) == digest]
    return min(same, key=lambda each: (str(each.created_at), each.recurring_run_id), default=None)


def _create(kfp: Kfp, spec: ScheduleSpec, version: Version, experiment_id: str, digest: str, *, enabled: bool) -> None:
    kfp.client.create_recurring_run(
        experiment_id=experiment_id,
        job_name=spec.name,
        description=f"iddpm schedule, state {digest}",
        cron_expression=spec.timing.cron or None,
        interval_second=spec.timing.every_seconds or None,
        max_concurrency=spec.max_concurrency,
        no_catchup=not spec.catch_up,
        params=dict(spec.arguments),
        pipeline_id=version.pipeline_id,
        version_id=version.version_id,
        enabled=enabled,
    )


def _delete(kfp: Kfp, ident: str) -> None:
    try:
        kfp.client.delete_recurring_run(ident)
    except KfpError as error:
        if error.status != 404:
            raise

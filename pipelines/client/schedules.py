"""Schedules: KFP's recurring runs, found again by name, and made so that making one twice leaves one.

KFP can't change a recurring run, so a changed one is made anew and the old one deleted. What was asked for is digested
into the description, which is what tells whether something changed: the server writes the rest in its own way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.client.arguments import CompiledPipeline, close_to
from pipelines.client.cron import CronError, parse
from pipelines.client.errors import KfpError
from pipelines.client.kfp_client import Kfp
from pipelines.client.runs import PipelineNames
from pipelines.client.submit import Version, find_experiment, uploaded
from pipelines.client.timing import ScheduleError, Timing, interval_words, zone_of

NIGHTLY = "0 0 2 * * *"
"""When the nightly pipeline runs that is not told when."""
MAX_CONCURRENCY = 10
"""KFP's limit."""
_MARK = re.compile(r"iddpm schedule, state ([0-9a-f]{12})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a schedule should be.

    Attributes:
        name: Its name.
        timing: When it runs.
        arguments: Of the pipeline.
        experiment: KFP's; empty takes the default.
        max_concurrency: How many of its runs may go on at once.
        catch_up: Whether runs that were missed are made up for.
    """

    name: str
    timing: Timing
    arguments: Mapping[str, Any]
    experiment: str = ""
    max_concurrency: int = 1
    catch_up: bool = False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ScheduleError("a schedule needs a name")
        if not 1 <= self.max_concurrency <= MAX_CONCURRENCY:
            raise ScheduleError(f"--max-concurrency must be 1 to {MAX_CONCURRENCY}, got {self.max_concurrency}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What came of it.

    Attributes:
        outcome: "made", "replaced" or "unchanged".
        schedule_id: The recurring run's id.
        version: Of the pipeline; None where nothing had to be done.
        experiment: KFP's.
        paused: Whether it stands still.
    """

    outcome: str
    schedule_id: str
    version: Version
    experiment: str
    paused: bool


def apply(kfp: Kfp, pipeline: CompiledPipeline, wanted: Wanted, *, create_experiment: bool = False) -> Applied:
    """Makes a schedule, or leaves it as it is where it is as wanted already, or replaces it.

    Raises:
        ScheduleError: One of the name exists that was not made here.
        SubmitError: There is no such experiment.
        KfpError: KFP refuses, or does not answer.
    """
    there = [each for each in listed(kfp) if each.display_name == wanted.name]
    foreign = [each for each in there if _state_of(each) is None]
    if foreign:
        raise ScheduleError(
            f"a schedule {wanted.name!r} exists that was made elsewhere ({foreign[0].recurring_run_id}); take another --name, or delete it"
        )
    experiment_id, experiment = find_experiment(kfp, wanted.experiment, create=create_experiment)
    version = uploaded(kfp, pipeline)
    state = _digest(wanted, version, experiment_id)
    kept = _oldest(each for each in there if _state_of(each) == state)
    outcome = "unchanged"
    if kept is None:
        # The new one first: should it be refused, the old one goes on.
        paused = bool(there) and all(each.mode == "DISABLE" for each in there)
        _create(kfp, wanted, version, experiment_id, state, enabled=not paused)
        # Two who make it at once see each other's here, and keep the same one.
        there = [each for each in listed(kfp) if each.display_name == wanted.name]
        outcome = "replaced" if any(_state_of(each) != state for each in there) else "made"
        kept = _oldest(each for each in there if _state_of(each) == state)
        if kept is None:
            raise KfpError(f"KFP made schedule {wanted.name!r} and does not list it; look with 'iddpm schedule list'")
    for each in there:
        if each.recurring_run_id != kept.recurring_run_id and _state_of(each) is not None:
            _gone_is_fine(lambda ident=each.recurring_run_id: kfp.client.delete_recurring_run(ident))
    return Applied(
        outcome=outcome, schedule_id=kept.recurring_run_id, version=version, experiment=experiment, paused=kept.mode == "DISABLE"
    )


def listed(kfp: Kfp) -> list[Any]:
    """All recurring runs, by name."""
    found = kfp.every(kfp.client.list_recurring_runs, "recurring_runs", namespace=kfp.namespace)
    return sorted(found, key=lambda each: (each.display_name or "", str(each.created_at)))


def named(kfp: Kfp, name: str) -> Any:
    """The recurring run of a name or id.

    Raises:
        ScheduleError: There is none, or there are several.
    """
    there = listed(kfp)
    found = [each for each in there if name in (each.display_name, each.recurring_run_id)]
    if not found:
        names = sorted({each.display_name for each in there})
        known = f"; there are {', '.join(names[:10])}" if names else "; there are none"
        raise ScheduleError(f"there is no schedule {name!r}{close_to(name, names) or known}")
    if len(found) > 1:
        ids = ", ".join(each.recurring_run_id for each in found)
        raise ScheduleError(f"{len(found)} schedules are called {name!r}; name one by its id: {ids}")
    return found[0]


def set_enabled(kfp: Kfp, name: str, *, enabled: bool) -> bool:
    """Resumes or pauses a schedule.

    Returns:
        Whether that changed anything.

    Raises:
        ScheduleError: See `named`.
    """
    found = named(kfp, name)
    if (found.mode != "DISABLE") == enabled:
        return False
    change = kfp.client.enable_recurring_run if enabled else kfp.client.disable_recurring_run
    change(found.recurring_run_id)
    return True


def delete(kfp: Kfp, name: str) -> str:
    """Deletes a schedule; its past runs stay. Returns its id.

    Raises:
        ScheduleError: See `named`.
    """
    ident = str(named(kfp, name).recurring_run_id)
    _gone_is_fine(lambda: kfp.client.delete_recurring_run(ident))
    return ident


def summaries(kfp: Kfp, cluster_zone: str) -> list[dict[str, Any]]:
    """All schedules as plain values.

    Args:
        kfp: The connection.
        cluster_zone: In which KFP reads cron.
    """
    zone_of(cluster_zone)
    names = PipelineNames(kfp)
    return [_summary(each, names.of(each), cluster_zone) for each in listed(kfp)]


def _summary(recurring_run: Any, pipeline: str, cluster_zone: str) -> dict[str, Any]:
    trigger = recurring_run.trigger
    when, coming = "never", ""
    paused = recurring_run.mode == "DISABLE"
    if trigger is not None and trigger.cron_schedule is not None:
        when = f"{trigger.cron_schedule.cron} {cluster_zone}"
        coming = "" if paused else _next_time(trigger.cron_schedule.cron, cluster_zone)
    elif trigger is not None and trigger.periodic_schedule is not None:
        when = f"every {interval_words(int(trigger.periodic_schedule.interval_second))}"
    return {
        "name": recurring_run.display_name,
        "schedule_id": recurring_run.recurring_run_id,
        "state": "paused" if paused else "runs",
        "when": when,
        "next": coming or None,
        "pipeline": pipeline,
        "max_concurrency": int(recurring_run.max_concurrency or 1),
        "catch_up": not recurring_run.no_catchup,
    }


def _next_time(text: str, zone: str) -> str:
    try:
        return next((time.isoformat() for time in Timing(cron=parse(text), zone=zone).next_times(1)), "")
    except CronError:  # made elsewhere, as with five fields
        return ""


def _digest(wanted: Wanted, version: Version, experiment_id: str) -> str:
    cron = wanted.timing.cron.text if wanted.timing.cron else None
    facts = [
        version.version_id,
        experiment_id,
        wanted.arguments,
        cron,
        wanted.timing.every_seconds,
        wanted.max_concurrency,
        wanted.catch_up,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _state_of(recurring_run: Any) -> str | None:
    """The digest of what was asked for; None of a recurring run that was not made here."""
    match = _MARK.search(recurring_run.description or "")
    return match[1] if match else None


def _oldest(recurring_runs: Any) -> Any:
    return min(recurring_runs, key=lambda each: (str(each.created_at), each.recurring_run_id), default=None)


def _create(kfp: Kfp, wanted: Wanted, version: Version, experiment_id: str, state: str, *, enabled: bool) -> None:
    kfp.client.create_recurring_run(
        experiment_id=experiment_id,
        job_name=wanted.name,
        description=f"iddpm schedule, state {state}",
        cron_expression=wanted.timing.cron.text if wanted.timing.cron else None,
        interval_second=wanted.timing.every_seconds or None,
        max_concurrency=wanted.max_concurrency,
        no_catchup=not wanted.catch_up,
        params=dict(wanted.arguments),
        pipeline_id=version.pipeline_id,
        version_id=version.version_id,
        enabled=enabled,
    )


def _gone_is_fine(delete: Any) -> None:
    try:
        delete()
    except KfpError as error:
        if error.status != 404:
            raise

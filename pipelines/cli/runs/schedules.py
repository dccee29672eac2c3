"""schedule create, list, pause, resume, delete: recurring runs."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import typer

from pipelines.cli import options
from pipelines.cli.options import format_time, format_upload, out, print_table, warn
from pipelines.client.connection import Connection

if TYPE_CHECKING:
    from pipelines.client.schedules import AppliedSchedule
    from pipelines.client.timing import Timing

_NAME = typer.Argument(..., help="Name of the schedule, or its id.")
_OUTCOMES = {"created": "is created", "replaced": "has changed and is replaced", "unchanged": "exists already, unchanged"}


def create(
    connection: Connection,
    pipeline: str = options.PIPELINE,
    trained: str = options.TRAINED,
    name: str = typer.Option("", help="Name of the schedule; empty takes the pipeline's."),
    cron: str = typer.Option("", help="Times: second, minute, hour, day, month, weekday. The default of nightly-fid is '0 0 2 * * *'."),
    every: str = typer.Option("", help="Interval instead of times, like 24h."),
    time_zone: str = typer.Option("", help="Time zone of --cron; empty takes the cluster's."),
    cluster_time_zone: str = options.CLUSTER_ZONE,
    preset: str = options.PRESET,
    overrides: list[str] = options.SET,
    parameters: list[str] = options.PARAM,
    resources: list[str] = options.RESOURCES,
    experiment: str = options.EXPERIMENT,
    create_experiment: bool = options.CREATE_EXPERIMENT,
    max_concurrency: int = typer.Option(1, help="Number of its runs that may run at once, 1 to 10."),
    catch_up: bool = typer.Option(False, "--catch-up", help="Make up for missed runs, one by one."),
    as_json: bool = options.JSON,
) -> None:
    """Create or update a recurring run."""
    from pipelines.cli.runs.experiment import add_experiment
    from pipelines.client import schedules
    from pipelines.client.arguments import arguments_of, compiled_pipeline
    from pipelines.client.kfp_client import connected
    from pipelines.client.timing import parse_timing

    compiled = compiled_pipeline(pipeline)
    preset, words = add_experiment(compiled, trained, preset=preset, words=parameters)
    arguments = arguments_of(compiled, preset=preset, overrides=overrides, words=words, resources=resources, on_cluster=True)
    cron = cron or (schedules.NIGHTLY if pipeline == "nightly-fid" and not every else "")
    timing = parse_timing(cron, every, time_zone=time_zone, cluster_zone=cluster_time_zone)
    spec = schedules.ScheduleSpec(
        name=name or pipeline,
        timing=timing,
        arguments=arguments,
        experiment=experiment,
        max_concurrency=max_concurrency,
        catch_up=catch_up,
    )
    with connected(connection, warn) as kfp:
        applied = schedules.apply(kfp, compiled, spec, create_experiment=create_experiment)
    if as_json:
        out(json.dumps(_applied_json(spec.name, timing, applied), indent=2))
        return
    out(f"schedule {spec.name} {_OUTCOMES[applied.outcome]} ({applied.schedule_id})")
    out(f"pipeline    {compiled.pipeline_name}, version {applied.version.name} {format_upload(applied.version.is_new)}")
    out(f"experiment  {applied.experiment}")
    for line in _timing_lines(timing):
        out(line)
    if applied.paused:
        out(f"it is paused; `iddpm schedule resume {shlex.quote(spec.name)}` resumes it")


def list_schedules(connection: Connection, cluster_time_zone: str = options.CLUSTER_ZONE, as_json: bool = options.JSON) -> None:
    """List the schedules, with their next times."""
    from pipelines.client.kfp_client import connected
    from pipelines.client.schedules import summarize

    with connected(connection, warn) as kfp:
        found = summarize(kfp, cluster_time_zone)
    if as_json:
        out(json.dumps(found, indent=2))
    elif not found:
        out("no schedules")
    else:
        nexts = [each["next"] and f"next {format_time(each['next'], cluster_time_zone)}" for each in found]
        print_table(
            [(each["name"], each["state"], each["when"], each["pipeline"], next_) for each, next_ in zip(found, nexts, strict=True)]
        )


def pause(connection: Connection, name: str = _NAME) -> None:
    """Pause a schedule."""
    _set_enabled(connection, name, enabled=False)


def resume(connection: Connection, name: str = _NAME) -> None:
    """Resume a paused schedule."""
    _set_enabled(connection, name, enabled=True)


def delete(connection: Connection, name: str = _NAME) -> None:
    """Delete a schedule. Its past runs stay."""
    from pipelines.client import schedules
    from pipelines.client.kfp_client import connected

    with connected(connection, warn) as kfp:
        ident = schedules.delete(kfp, name)
    out(f"schedule {name} is deleted ({ident}); its past runs stay")


def _set_enabled(connection: Connection, name: str, *, enabled: bool) -> None:
    from pipelines.client import schedules
    from pipelines.client.kfp_client import connected

    with connected(connection, warn) as kfp:
        changed = schedules.set_enabled(kfp, name, enabled=enabled)
    out(f"schedule {name} is {'' if changed else 'already '}{'active' if enabled else 'paused'}")


def _applied_json(name: str, timing: Timing, applied: AppliedSchedule) -> dict[str, Any]:
    return {
        "name": name,
        "schedule_id": applied.schedule_id,
        "outcome": applied.outcome,
        "version": applied.version.name,
        "experiment": applied.experiment,
        "cron": timing.cron or None,
        "every_seconds": timing.every_seconds or None,
        "time_zone": timing.zone,
        "next": [time.isoformat() for time in timing.next_times(3)],
        "paused": applied.paused,
    }


def _timing_lines(timing: Timing) -> list[str]:
    from pipelines.client.timing import format_interval

    if not timing.cron:
        return [f"when        every {format_interval(timing.every_seconds)}, counted from now"]
    times = ", ".join(f"{time:%a %d %b %Y %H:%M:%S}" for time in timing.next_times(3))
    return [
        f"when        {timing.cron}" + (f"  ({timing.written_as})" if timing.written_as else ""),
        f"zone        {timing.zone}: KFP reads all cron expressions in the one zone of its cluster, which is UTC unless an",
        "            administrator has set another (cronScheduleTimezone; `iddpm doctor` shows it, give it as --cluster-time-zone)",
        f"next        {times} ({timing.zone})",
    ]

"""schedule create, list, pause, resume, delete: pipelines by the clock."""

from __future__ import annotations

import json
from typing import Any

import typer

from pipelines.cli.kfp_options import (
    CLUSTER_ZONE,
    CREATE_EXPERIMENT,
    EXPERIMENT,
    JSON,
    PANEL,
    PARAM,
    PIPELINE,
    PRESET,
    SET,
    moment,
    out,
    table,
    uploaded,
    warn,
    with_connection,
)
from pipelines.client.connection import Connection


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(no_args_is_help=True, help="Run a pipeline again and again: create, list, pause, resume, delete.")
    for command in (create, list_schedules, pause, resume, delete):
        group.command(command.__name__.removesuffix("_schedules"))(with_connection(command))
    app.add_typer(group, name="schedule", rich_help_panel=PANEL)


def create(
    connection: Connection,
    pipeline: str = PIPELINE,
    name: str = typer.Option("", help="Name of the schedule; empty takes the pipeline's."),
    cron: str = typer.Option("", help="When: second, minute, hour, day, month, weekday. nightly-fid without one runs at '0 0 2 * * *'."),
    every: str = typer.Option("", help="Or at which interval, like 24h."),
    time_zone: str = typer.Option("", help="Zone in which --cron is meant; empty takes the cluster's."),
    cluster_time_zone: str = CLUSTER_ZONE,
    preset: str = PRESET,
    overrides: list[str] = SET,
    parameters: list[str] = PARAM,
    experiment: str = EXPERIMENT,
    create_experiment: bool = CREATE_EXPERIMENT,
    max_concurrency: int = typer.Option(1, help="How many of its runs may go on at once."),
    catch_up: bool = typer.Option(False, "--catch-up", help="Make up for runs that were missed, one by one."),
    as_json: bool = JSON,
) -> None:
    """Run a pipeline by the clock. The same command again changes nothing; a changed one replaces the schedule."""
    from pipelines.client import schedules
    from pipelines.client.arguments import cluster_arguments_of, compiled_pipeline
    from pipelines.client.kfp_client import connected
    from pipelines.client.timing import timing_of

    compiled = compiled_pipeline(pipeline)
    arguments = cluster_arguments_of(compiled, preset=preset, overrides=overrides, words=parameters)
    cron = cron or (schedules.NIGHTLY if pipeline == "nightly-fid" and not every else "")
    timing = timing_of(cron, every, time_zone=time_zone, cluster_zone=cluster_time_zone)
    wanted = schedules.Wanted(
        name=name or pipeline,
        timing=timing,
        arguments=arguments,
        experiment=experiment,
        max_concurrency=max_concurrency,
        catch_up=catch_up,
    )
    with connected(connection, warn) as kfp:
        applied = schedules.apply(kfp, compiled, wanted, create_experiment=create_experiment)
    if as_json:
        out(json.dumps(_applied_json(wanted, applied), indent=2))
        return
    outcome = {"made": "is made", "replaced": "had changed and is replaced", "unchanged": "is there already, unchanged"}[applied.outcome]
    out(f"schedule {wanted.name} {outcome} ({applied.schedule_id})")
    out(f"pipeline    {compiled.pipeline_name}, version {applied.version.name} {uploaded(applied.version.is_new)}")
    out(f"experiment  {applied.experiment}")
    for line in _timing_lines(timing):
        out(line)
    if applied.paused:
        out(f"it is paused; `iddpm schedule resume {wanted.name}` lets it run")


def list_schedules(connection: Connection, cluster_time_zone: str = CLUSTER_ZONE, as_json: bool = JSON) -> None:
    """List the schedules."""
    from pipelines.client.kfp_client import connected
    from pipelines.client.schedules import summaries

    with connected(connection, warn) as kfp:
        found = summaries(kfp, cluster_time_zone)
    if as_json:
        out(json.dumps(found, indent=2))
        return
    if not found:
        out("no schedules")
    table(
        [
            (
                each["name"],
                each["state"],
                each["when"],
                each["pipeline"],
                each["next"] and f"next {moment(each['next'], cluster_time_zone)}",
            )
            for each in found
        ]
    )


def pause(connection: Connection, name: str = typer.Argument(..., help="Name of the schedule, or its id.")) -> None:
    """Let a schedule stand still."""
    _set_enabled(connection, name, enabled=False)


def resume(connection: Connection, name: str = typer.Argument(..., help="Name of the schedule, or its id.")) -> None:
    """Let a paused schedule run again."""
    _set_enabled(connection, name, enabled=True)


def delete(connection: Connection, name: str = typer.Argument(..., help="Name of the schedule, or its id.")) -> None:
    """Delete a schedule; the runs that it made stay."""
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
    state = "runs" if enabled else "is paused"
    out(f"schedule {name} {state}{'' if changed else ' already'}")


def _applied_json(wanted: Any, applied: Any) -> dict[str, Any]:
    timing = wanted.timing
    return {
        "name": wanted.name,
        "schedule_id": applied.schedule_id,
        "outcome": applied.outcome,
        "version": applied.version.name,
        "experiment": applied.experiment,
        "cron": timing.cron.text if timing.cron else None,
        "every_seconds": timing.every_seconds or None,
        "time_zone": timing.zone,
        "next": [time.isoformat() for time in timing.next_times(3)],
        "paused": applied.paused,
    }


def _timing_lines(timing: Any) -> list[str]:
    from pipelines.client.timing import interval_words

    if timing.cron is None:
        return [f"when        every {interval_words(timing.every_seconds)}, counted from now"]
    coming = ", ".join(f"{time:%a %d %b %H:%M:%S}" for time in timing.next_times(3))
    return [
        f"when        {timing.cron.text}" + (f"  ({timing.meant})" if timing.meant else ""),
        f"zone        {timing.zone}: KFP reads every cron expression in the one zone of its cluster, which is UTC unless an",
        "            administrator set another (cronScheduleTimezone; `iddpm doctor` shows it, --cluster-time-zone tells it here)",
        f"next        {coming} ({timing.zone})",
    ]

"""submit, runs, cancel, schedule, doctor: Kubeflow Pipelines on a cluster, from here."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import typer

from pipelines.connection import Connection

_PANEL = "On a cluster"
_PRESET = typer.Option("", help="The experiment; `iddpm presets` lists them.")
_SET = typer.Option([], "--set", help="Override of the experiment, like optim.num_steps=500; repeat it.")
_PARAM = typer.Option([], "--param", help="Parameter of the pipeline, like train_gpus=8; repeat it.")
_EXPERIMENT = typer.Option("", help="KFP's experiment; empty takes iddpm, made where it is missing.")
_CREATE_EXPERIMENT = typer.Option(False, "--create-experiment", help="Make the experiment where it is missing.")
_CLUSTER_ZONE = typer.Option("UTC", help="Zone in which KFP reads cron; `iddpm doctor` shows it.")
_JSON = typer.Option(False, "--json", help="As JSON.")
_PIPELINE = typer.Argument(..., help="train, ablation or nightly-fid.")


def _way(default: Any, *names: str, help_text: str) -> Any:
    return typer.Option(default, *names, help=help_text, rich_help_panel="The way to KFP")


_CONNECTION: dict[str, tuple[type, Any]] = {
    "endpoint": (str, _way("", help_text="KFP's address, like https://kfp.example.com; empty reads KF_PIPELINES_ENDPOINT.")),
    "port_forward": (bool, _way(False, "--port-forward", help_text="Through kubectl port-forward, for the time of the command.")),
    "kfp_namespace": (str, _way("kubeflow", help_text="Where KFP is installed.")),
    "token_file": (str, _way("", help_text="File with a token for KFP; empty reads KFP_TOKEN, in a pod its own token.")),
    "ca_file": (str, _way("", help_text="Certificates to trust; empty reads SSL_CERT_FILE.")),
    "namespace": (str, _way("", help_text="Your namespace, where KFP serves several users.")),
}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel=_PANEL)(_with_connection(submit))
    app.command(rich_help_panel=_PANEL)(_with_connection(runs))
    app.command(rich_help_panel=_PANEL)(_with_connection(cancel))
    group = typer.Typer(no_args_is_help=True, help="Run a pipeline again and again: create, list, pause, resume, delete.")
    for command in (create, list_schedules, pause, resume, delete):
        group.command(command.__name__.removesuffix("_schedules"))(_with_connection(command))
    app.add_typer(group, name="schedule", rich_help_panel=_PANEL)
    app.command(rich_help_panel=_PANEL)(_with_connection(doctor))


def _with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes a connection, as one that takes the options which say it."""

    @functools.wraps(command)
    def run(**words: Any) -> None:
        connection = Connection(**{name: words.pop(name) for name in _CONNECTION})
        command(connection, **words)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)
        for name, (kind, option) in _CONNECTION.items()
    ]
    signature = inspect.Signature([*own, *shared])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    return run


# -- runs --------------------------------------------------------------------------------------------------------------


def submit(
    connection: Connection,
    pipeline: str = _PIPELINE,
    preset: str = _PRESET,
    overrides: list[str] = _SET,
    parameters: list[str] = _PARAM,
    experiment: str = _EXPERIMENT,
    create_experiment: bool = _CREATE_EXPERIMENT,
    run_name: str = typer.Option("", help="Name of the run; empty takes the pipeline's and the time."),
    wait: bool = typer.Option(True, help="Follow the run to its end; its failure is this command's."),
    timeout: str = typer.Option("", help="How long to follow, like 30m or 12h; the run goes on."),
    as_json: bool = _JSON,
) -> None:
    """Start a run on the cluster, and follow it."""
    from pipelines.arguments import arguments_of, compiled_pipeline
    from pipelines.durations import parse_duration
    from pipelines.kfp_client import connected
    from pipelines.submit import submit as start

    seconds = parse_duration(timeout, "--timeout") if timeout else None
    compiled = compiled_pipeline(pipeline)
    arguments = arguments_of(compiled, preset=preset, overrides=overrides, words=parameters)
    say = _err if as_json else _out
    with connected(connection, _warn) as kfp:
        started = start(kfp, compiled, arguments, experiment=experiment, create_experiment=create_experiment, run_name=run_name)
        say(f"pipeline    {compiled.pipeline_name}, version {started.version.name} {_uploaded(started.version.is_new)}")
        say(f"experiment  {started.experiment}")
        say(f"run         {started.run_id}  {started.run_name}")
        if started.page:
            say(f"page        {started.page}")
        run = _follow(kfp, connection, started.run_id, compiled.task_names, seconds, say) if wait else None
        if as_json:
            _out(json.dumps(_submitted_json(started, compiled, arguments, run), indent=2))
        if run is None:
            say("it goes on without this command; `iddpm runs` lists it, `iddpm cancel` ends it")
            return
        _require_success(run, compiled.task_names, connection, kfp)
        say(f"the run succeeded in {_took(run)}")


def runs(
    connection: Connection,
    experiment: str = typer.Option("", help="Only those of this experiment."),
    limit: int = typer.Option(20, min=1, help="How many, the latest first."),
    as_json: bool = _JSON,
) -> None:
    """List the runs on the cluster, the latest first."""
    from pipelines.kfp_client import connected
    from pipelines.runs_on_cluster import latest

    with connected(connection, _warn) as kfp:
        found = latest(kfp, experiment=experiment, limit=limit)
    if as_json:
        _out(json.dumps(found, indent=2))
        return
    if not found:
        _out("no runs" + (f" in experiment {experiment}" if experiment else ""))
    _table([(run["run_id"], run["state"], _moment(run["created"]), run["pipeline"], run["name"]) for run in found])


def cancel(
    connection: Connection,
    run_id: str = typer.Argument(..., help="The run's id; `iddpm runs` shows it."),
    wait: bool = typer.Option(False, "--wait", help="Wait until it has ended."),
    timeout: str = typer.Option("", help="How long to wait, like 10m."),
) -> None:
    """End a run on the cluster; harmless where it has ended already."""
    from pipelines.durations import parse_duration
    from pipelines.following import follow, words
    from pipelines.kfp_client import connected
    from pipelines.runs_on_cluster import terminate

    seconds = parse_duration(timeout, "--timeout") if timeout else None
    with connected(connection, _warn) as kfp:
        ended = terminate(kfp, run_id)
        if ended is not None:
            _out(f"run {run_id} has ended already: it {_ended(ended)}")
            return
        _out(f"run {run_id} is told to end; a training that it left on a Ray cluster ends with it")
        if wait:
            _out(f"it is {words(follow(kfp, run_id, task_names=(), say=_out, timeout_seconds=seconds).state)}")


# -- schedules ---------------------------------------------------------------------------------------------------------


def create(
    connection: Connection,
    pipeline: str = _PIPELINE,
    name: str = typer.Option("", help="Name of the schedule; empty takes the pipeline's."),
    cron: str = typer.Option("", help="When: second, minute, hour, day, month, weekday. nightly-fid without one runs at '0 0 2 * * *'."),
    every: str = typer.Option("", help="Or at which interval, like 24h."),
    time_zone: str = typer.Option("", help="Zone in which --cron is meant; empty takes the cluster's."),
    cluster_time_zone: str = _CLUSTER_ZONE,
    preset: str = _PRESET,
    overrides: list[str] = _SET,
    parameters: list[str] = _PARAM,
    experiment: str = _EXPERIMENT,
    create_experiment: bool = _CREATE_EXPERIMENT,
    max_concurrency: int = typer.Option(1, help="How many of its runs may go on at once."),
    catch_up: bool = typer.Option(False, "--catch-up", help="Make up for runs that were missed, one by one."),
    as_json: bool = _JSON,
) -> None:
    """Run a pipeline by the clock. The same command again changes nothing; a changed one replaces the schedule."""
    from pipelines import schedules
    from pipelines.arguments import arguments_of, compiled_pipeline
    from pipelines.kfp_client import connected
    from pipelines.timing import timing_of

    compiled = compiled_pipeline(pipeline)
    arguments = arguments_of(compiled, preset=preset, overrides=overrides, words=parameters)
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
    with connected(connection, _warn) as kfp:
        applied = schedules.apply(kfp, compiled, wanted, create_experiment=create_experiment)
    if as_json:
        _out(json.dumps(_applied_json(wanted, applied), indent=2))
        return
    outcome = {"made": "is made", "replaced": "had changed and is replaced", "unchanged": "is there already, unchanged"}[applied.outcome]
    _out(f"schedule {wanted.name} {outcome} ({applied.schedule_id})")
    _out(f"pipeline    {compiled.pipeline_name}, version {applied.version.name} {_uploaded(applied.version.is_new)}")
    _out(f"experiment  {applied.experiment}")
    for line in _timing_lines(timing):
        _out(line)
    if applied.paused:
        _out(f"it is paused; `iddpm schedule resume {wanted.name}` lets it run")


def list_schedules(connection: Connection, cluster_time_zone: str = _CLUSTER_ZONE, as_json: bool = _JSON) -> None:
    """List the schedules."""
    from pipelines.kfp_client import connected
    from pipelines.schedules import summaries

    with connected(connection, _warn) as kfp:
        found = summaries(kfp, cluster_time_zone)
    if as_json:
        _out(json.dumps(found, indent=2))
        return
    if not found:
        _out("no schedules")
    _table(
        [
            (
                each["name"],
                each["state"],
                each["when"],
                each["pipeline"],
                each["next"] and f"next {_moment(each['next'], cluster_time_zone)}",
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
    from pipelines import schedules
    from pipelines.kfp_client import connected

    with connected(connection, _warn) as kfp:
        ident = schedules.delete(kfp, name)
    _out(f"schedule {name} is deleted ({ident}); its past runs stay")


def _set_enabled(connection: Connection, name: str, *, enabled: bool) -> None:
    from pipelines import schedules
    from pipelines.kfp_client import connected

    with connected(connection, _warn) as kfp:
        changed = schedules.set_enabled(kfp, name, enabled=enabled)
    state = "runs" if enabled else "is paused"
    _out(f"schedule {name} {state}{'' if changed else ' already'}")


# -- doctor ------------------------------------------------------------------------------------------------------------


def doctor(
    connection: Connection,
    runs_namespace: str = typer.Option("", help="Where the pods of runs are; empty takes --namespace, or KFP's own."),
    service_account: str = typer.Option("pipeline-runner", help="What runs' pods run as; with several users default-editor."),
    bucket: str = typer.Option("s3://iddpm", help="Where runs are kept; a small object is written there and deleted."),
    pull_image: bool = typer.Option(False, "--pull-image", help="Start a pod with the project's image, to see whether nodes can pull it."),
    as_json: bool = _JSON,
) -> None:
    """Look whether a cluster has all that a run needs, and say what to do where it has not."""
    from pipelines.doctor import examine
    from pipelines.doctor_findings import FAILURE, WARNING

    findings = examine(
        connection,
        runs_namespace=runs_namespace or connection.namespace or connection.kfp_namespace,
        service_account=service_account,
        bucket=bucket,
        pull_image=pull_image,
        watch=(lambda finding: None) if as_json else (lambda finding: _out(str(finding))),
    )
    failures, warnings = (sum(1 for each in findings if each.state == state) for state in (FAILURE, WARNING))
    if as_json:
        told = [each.to_dict() for each in findings]
        _out(json.dumps({"ok": not failures, "failures": failures, "warnings": warnings, "findings": told}, indent=2))
    else:
        _out(f"\n{_count(failures, 'failure')}, {_count(warnings, 'warning')}, {len(findings) - failures - warnings} in order")
    if failures:
        raise typer.Exit(1)


# -- words -------------------------------------------------------------------------------------------------------------


def _follow(kfp: Any, connection: Connection, run_id: str, task_names: Any, seconds: float | None, say: Callable[[str], None]) -> Any:
    from pipelines.following import StillRunningError, follow

    def say_when(line: str) -> None:
        say(f"{datetime.now():%H:%M:%S}    {line}")

    try:
        return follow(kfp, run_id, task_names=task_names, say=say_when, timeout_seconds=seconds)
    except StillRunningError as error:
        raise StillRunningError(f"{error} (`iddpm cancel {run_id}` ends it)") from None
    except KeyboardInterrupt:
        _err(f"the run goes on; `iddpm cancel {run_id}` ends it")
        raise


def _require_success(run: Any, task_names: Any, connection: Connection, kfp: Any) -> None:
    from pipelines.following import require_success

    require_success(run, task_names=task_names, namespace=kfp.namespace or connection.kfp_namespace)


def _submitted_json(started: Any, compiled: Any, arguments: Any, run: Any) -> dict[str, Any]:
    return {
        "run_id": started.run_id,
        "name": started.run_name,
        "pipeline": compiled.pipeline_name,
        "version": started.version.name,
        "uploaded": started.version.is_new,
        "experiment": started.experiment,
        "parameters": arguments,
        "page": started.page or None,
        "state": run.state.lower() if run is not None else "submitted",
    }


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
    from pipelines.timing import interval_words

    if timing.cron is None:
        return [f"when        every {interval_words(timing.every_seconds)}, counted from now"]
    coming = ", ".join(f"{time:%a %d %b %H:%M:%S}" for time in timing.next_times(3))
    return [
        f"when        {timing.cron.text}" + (f"  ({timing.meant})" if timing.meant else ""),
        f"zone        {timing.zone}: KFP reads every cron expression in the one zone of its cluster, which is UTC unless an",
        "            administrator set another (cronScheduleTimezone; `iddpm doctor` shows it, --cluster-time-zone tells it here)",
        f"next        {coming} ({timing.zone})",
    ]


def _uploaded(is_new: bool) -> str:
    return "(uploaded)" if is_new else "(there already)"


def _ended(state: str) -> str:
    return {"SUCCEEDED": "succeeded", "FAILED": "failed", "CANCELED": "was cancelled", "SKIPPED": "was skipped"}[state]


def _took(run: Any) -> str:
    from training.progress import format_duration

    return format_duration((run.finished_at - run.created_at).total_seconds()) if run.finished_at else "no time that KFP knows"


def _moment(text: str, zone: str = "UTC") -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} {zone}" if text else "-"


def _table(rows: list[tuple[str | None, ...]]) -> None:
    widths = [max(len(word or "") for word in column) for column in zip(*rows, strict=True)]
    for row in rows:
        _out("  ".join((word or "").ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _out(line: str) -> None:
    print(line, flush=True)


def _err(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _warn(line: str) -> None:
    _err(f"warning: {line}")

"""submit, runs, cancel, doctor: Kubeflow Pipelines on a cluster, from here."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import typer

from pipelines.cli.kfp_options import (
    CREATE_EXPERIMENT,
    EXPERIMENT,
    JSON,
    PANEL,
    PARAM,
    PIPELINE,
    PRESET,
    SET,
    err,
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
    app.command(rich_help_panel=PANEL)(with_connection(submit))
    app.command(rich_help_panel=PANEL)(with_connection(runs))
    app.command(rich_help_panel=PANEL)(with_connection(cancel))
    app.command(rich_help_panel=PANEL)(with_connection(doctor))


# -- runs --------------------------------------------------------------------------------------------------------------


def submit(
    connection: Connection,
    pipeline: str = PIPELINE,
    preset: str = PRESET,
    overrides: list[str] = SET,
    parameters: list[str] = PARAM,
    experiment: str = EXPERIMENT,
    create_experiment: bool = CREATE_EXPERIMENT,
    run_name: str = typer.Option("", help="Name of the run; empty takes the pipeline's and the time."),
    wait: bool = typer.Option(True, help="Follow the run to its end; its failure is this command's."),
    timeout: str = typer.Option("", help="How long to follow, like 30m or 12h; the run goes on."),
    as_json: bool = JSON,
) -> None:
    """Start a run on the cluster, and follow it."""
    from pipelines.client.arguments import cluster_arguments_of, compiled_pipeline
    from pipelines.client.durations import parse_duration
    from pipelines.client.kfp_client import connected
    from pipelines.client.submit import submit as start

    seconds = parse_duration(timeout, "--timeout") if timeout else None
    compiled = compiled_pipeline(pipeline)
    arguments = cluster_arguments_of(compiled, preset=preset, overrides=overrides, words=parameters)
    say = err if as_json else out
    with connected(connection, warn) as kfp:
        started = start(kfp, compiled, arguments, experiment=experiment, create_experiment=create_experiment, run_name=run_name)
        say(f"pipeline    {compiled.pipeline_name}, version {started.version.name} {uploaded(started.version.is_new)}")
        say(f"experiment  {started.experiment}")
        say(f"run         {started.run_id}  {started.run_name}")
        if started.page:
            say(f"page        {started.page}")
        run = _follow(kfp, started.run_id, compiled.task_names, seconds, say) if wait else None
        if as_json:
            out(json.dumps(_submitted_json(started, compiled, arguments, run), indent=2))
        if run is None:
            say("it goes on without this command; `iddpm runs` lists it, `iddpm cancel` ends it")
            return
        _require_success(run, compiled.task_names, connection, kfp)
        say(f"the run succeeded in {_took(run)}")


def runs(
    connection: Connection,
    experiment: str = typer.Option("", help="Only those of this experiment."),
    limit: int = typer.Option(20, min=1, help="How many, the latest first."),
    as_json: bool = JSON,
) -> None:
    """List the runs on the cluster, the latest first."""
    from pipelines.client.kfp_client import connected
    from pipelines.client.runs import latest

    with connected(connection, warn) as kfp:
        found = latest(kfp, experiment=experiment, limit=limit)
    if as_json:
        out(json.dumps(found, indent=2))
        return
    if not found:
        out("no runs" + (f" in experiment {experiment}" if experiment else ""))
    table([(run["run_id"], run["state"], moment(run["created"]), run["pipeline"], run["name"]) for run in found])


def cancel(
    connection: Connection,
    run_id: str = typer.Argument(..., help="The run's id; `iddpm runs` shows it."),
    wait: bool = typer.Option(False, "--wait", help="Wait until it has ended."),
    timeout: str = typer.Option("", help="How long to wait, like 10m."),
) -> None:
    """End a run on the cluster; harmless where it has ended already."""
    from pipelines.client.durations import parse_duration
    from pipelines.client.follow import follow, words
    from pipelines.client.kfp_client import connected
    from pipelines.client.runs import terminate

    seconds = parse_duration(timeout, "--timeout") if timeout else None
    with connected(connection, warn) as kfp:
        ended = terminate(kfp, run_id)
        if ended is not None:
            out(f"run {run_id} has ended already: it {_ended(ended)}")
            return
        out(f"run {run_id} is told to end; a training that it left on a Ray cluster ends with it")
        if wait:
            out(f"it is {words(follow(kfp, run_id, task_names=(), say=out, timeout_seconds=seconds).state)}")


# -- doctor ------------------------------------------------------------------------------------------------------------


def doctor(
    connection: Connection,
    runs_namespace: str = typer.Option("", help="Where the pods of runs are; empty takes --namespace, or KFP's own."),
    service_account: str = typer.Option("pipeline-runner", help="What runs' pods run as; with several users default-editor."),
    bucket: str = typer.Option("s3://iddpm", help="Where runs are kept; a small object is written there and deleted."),
    pull_image: bool = typer.Option(False, "--pull-image", help="Start a pod with the project's image, to see whether nodes can pull it."),
    as_json: bool = JSON,
) -> None:
    """Look whether a cluster has all that a run needs, and say what to do where it has not."""
    from pipelines.doctor.examine import examine
    from pipelines.doctor.findings import FAILURE, WARNING

    findings = examine(
        connection,
        runs_namespace=runs_namespace or connection.namespace or connection.kfp_namespace,
        service_account=service_account,
        bucket=bucket,
        pull_image=pull_image,
        watch=(lambda finding: None) if as_json else (lambda finding: out(str(finding))),
    )
    failures, warnings = (sum(1 for each in findings if each.state == state) for state in (FAILURE, WARNING))
    if as_json:
        told = [each.to_dict() for each in findings]
        out(json.dumps({"ok": not failures, "failures": failures, "warnings": warnings, "findings": told}, indent=2))
    else:
        out(f"\n{_count(failures, 'failure')}, {_count(warnings, 'warning')}, {len(findings) - failures - warnings} in order")
    if failures:
        raise typer.Exit(1)


# -- words -------------------------------------------------------------------------------------------------------------


def _follow(kfp: Any, run_id: str, task_names: Any, seconds: float | None, say: Callable[[str], None]) -> Any:
    from pipelines.client.follow import StillRunningError, follow

    def say_when(line: str) -> None:
        say(f"{datetime.now():%H:%M:%S}    {line}")

    try:
        return follow(kfp, run_id, task_names=task_names, say=say_when, timeout_seconds=seconds)
    except StillRunningError as error:
        raise StillRunningError(f"{error} (`iddpm cancel {run_id}` ends it)") from None
    except KeyboardInterrupt:
        err(f"the run goes on; `iddpm cancel {run_id}` ends it")
        raise


def _require_success(run: Any, task_names: Any, connection: Connection, kfp: Any) -> None:
    from pipelines.client.follow import require_success

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


def _ended(state: str) -> str:
    return {"SUCCEEDED": "succeeded", "FAILED": "failed", "CANCELED": "was cancelled", "SKIPPED": "was skipped"}[state]


def _took(run: Any) -> str:
    from training.console import format_duration

    return format_duration((run.finished_at - run.created_at).total_seconds()) if run.finished_at else "no time that KFP knows"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

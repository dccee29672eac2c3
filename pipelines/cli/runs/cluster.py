"""submit, retry, runs, logs, cancel, doctor: Kubeflow Pipelines on a cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from pipelines.cli import options
from pipelines.cli.options import err, format_upload, out, warn
from pipelines.client.connection import Connection
from training.config.errors import UserError

if TYPE_CHECKING:
    from pipelines.client.arguments import CompiledPipeline
    from pipelines.client.kfp_client import Kfp
    from pipelines.client.submit import SubmittedRun
    from training.tracking.trainings import LatestTrainings, Training

_REFUSED = "Refused: a retry goes on with the same experiment."


def submit(
    connection: Connection,
    pipeline: str = options.PIPELINE,
    trained: str = options.TRAINED,
    preset: str = options.PRESET,
    overrides: list[str] = options.SET,
    parameters: list[str] = options.PARAM,
    resources: list[str] = options.RESOURCES,
    force_from: str = options.FROM,
    experiment: str = options.EXPERIMENT,
    create_experiment: bool = options.CREATE_EXPERIMENT,
    run_name: str = typer.Option("", help="Name of the run; empty takes the pipeline's name and the time."),
    wait: bool = typer.Option(True, help="Follow the run to its end, and fail if it fails."),
    timeout: str = typer.Option("", help="The longest time to follow, like 30m or 12h; the run goes on after it."),
    as_json: bool = options.JSON,
) -> None:
    """Start a run on the cluster, and follow it."""
    from pipelines.cli.runs.experiment import add_experiment
    from pipelines.client.arguments import arguments_of, compiled_pipeline
    from pipelines.client.kfp_client import connected
    from pipelines.client.submit import submit as start

    seconds = _seconds(timeout, wait)
    compiled = compiled_pipeline(pipeline)
    preset, words = add_experiment(compiled, trained, preset=preset, words=parameters)
    arguments = arguments_of(
        compiled, preset=preset, overrides=overrides, words=words, resources=resources, force_from=force_from, on_cluster=True
    )
    with connected(connection, warn) as kfp:
        started = start(kfp, compiled, arguments, experiment=experiment, create_experiment=create_experiment, run_name=run_name)
        _report(kfp, started, compiled, arguments, wait=wait, seconds=seconds, as_json=as_json)


def retry(
    connection: Connection,
    run_id: str = typer.Argument(..., help="Id of a run that failed or was cancelled; `iddpm runs` shows it."),
    image: str = typer.Option("", help="Another image, as after a fix of the code; the pipeline is then that of this installation."),
    force_from: str = options.FROM,
    resources: list[str] = options.RESOURCES,
    wait: bool = typer.Option(True, help="Follow the run to its end, and fail if it fails."),
    timeout: str = typer.Option("", help="The longest time to follow, like 30m or 12h; the run goes on after it."),
    as_json: bool = options.JSON,
    preset: str = typer.Option("", hidden=True, help=_REFUSED),
    overrides: list[str] = typer.Option([], "--set", hidden=True, help=_REFUSED),
    parameters: list[str] = typer.Option([], "--param", hidden=True, help=_REFUSED),
) -> None:
    """Start a run again that failed or was cancelled: finished steps are found in S3, training goes on from its last checkpoint.

    It is a new run with the same arguments, so it has the same directory and the same run in MLflow. A nightly check is a new night.
    With --from, finished steps of a train run are done again, also of one that has succeeded.
    """
    from pipelines.client.kfp_client import connected
    from pipelines.client.retry import retry as start_again

    if preset or overrides or parameters:  # options of `iddpm submit`, so somebody may try them here
        raise UserError(
            "a retry goes on with the same experiment, so --preset, --set and --param can't change it; `iddpm submit` starts another run"
        )
    seconds = _seconds(timeout, wait)
    with connected(connection, warn) as kfp:
        started = start_again(kfp, run_id, image=image, resources=resources, force_from=force_from)
        _report(kfp, started.run, started.pipeline, started.arguments, wait=wait, seconds=seconds, as_json=as_json)


def runs(
    connection: Connection,
    experiment: str = typer.Option("", help="List only runs of this experiment of KFP."),
    limit: int = typer.Option(20, min=1, help="The most runs to list."),
    watch: bool = typer.Option(False, "--watch", "-w", help="Show the list again every five seconds, until Ctrl-C."),
    price_per_hour: float | None = typer.Option(
        None, min=0, help="Price of one card per hour; shows prices for card-hours.", show_default=False
    ),
    as_json: bool = options.JSON,
) -> None:
    """List runs and the progress of their trainings, the latest first: the cluster's if an address of KFP is given, else this machine's.

    Updates, rate, best score and cost are MLflow's (MLFLOW_TRACKING_URI, or that of `iddpm up`). The cost is that of the training: its
    updates so far, and in all, at the present rate.
    """
    from dataclasses import asdict

    from pipelines.cli.runs.progress import run_lines, training_lines
    from pipelines.cli.runs.progress import watch as show_again
    from pipelines.cli.services import connect
    from training.tracking.trainings import LatestTrainings

    if watch and as_json:
        raise UserError("--watch and --json exclude each other; give one")
    if as_json and price_per_hour is not None:
        raise UserError("--price-per-hour goes with the table; --json has card-hours")
    if experiment and not connection.is_given:
        raise UserError("--experiment is one of KFP's; without a KFP there is none (see --endpoint)")
    connect()
    latest = LatestTrainings()
    with _connected_if_given(connection) as kfp:

        def lines() -> list[str]:
            found, trainings = _look(kfp, latest, experiment, limit)
            if kfp is None:
                return training_lines(trainings, price_per_hour) or ["no runs"]
            return run_lines(found, trainings, price_per_hour) or [f"no runs{experiment and f' in experiment {experiment}'}"]

        if watch:
            show_again(lines)
        elif as_json:
            found, trainings = _look(kfp, latest, experiment, limit)
            plain = [asdict(each) for each in trainings]
            by_run = [{**run, "trainings": [each for each in plain if each["pipeline_run_id"] == run["run_id"]]} for run in found]
            out(json.dumps(plain if kfp is None else by_run, indent=2))
        else:
            for line in lines():
                out(line)


def _seconds(timeout: str, wait: bool, *, waits_by_default: bool = True) -> int | None:
    from pipelines.client.timing import parse_duration

    seconds = parse_duration(timeout, "--timeout") if timeout else None
    if seconds is not None and not wait:
        remedy = "leave out --no-wait" if waits_by_default else "add --wait"
        raise UserError(f"--timeout {timeout} is the longest time to wait, but this command does not wait: {remedy}")
    return seconds


@contextlib.contextmanager
def _connected_if_given(connection: Connection) -> Iterator[Kfp | None]:
    if not connection.is_given:
        yield None
        return
    from pipelines.client.kfp_client import connected

    with connected(connection, warn) as kfp:
        yield kfp


def _look(kfp: Kfp | None, latest: LatestTrainings, experiment: str, limit: int) -> tuple[list[dict[str, Any]], list[Training]]:
    """Return the runs of the cluster with their trainings; without a cluster the latest trainings alone."""
    from pipelines.client.runs import list_runs
    from training.tracking.client import TrackingError

    if kfp is None:
        return [], latest.read(limit)
    found = list_runs(kfp, experiment=experiment, limit=limit)
    try:
        return found, latest.read_of(run["run_id"] for run in found)
    except TrackingError as error:
        err(f"how far the trainings are is not known: {error}")
        return found, []


def logs(
    connection: Connection,
    run: str = typer.Argument(
        ..., help="Id of a run on the cluster, or a training: its key, the key's ten digits, or its directory; or a data set's."
    ),
    step: str = typer.Argument("", help="Step, like train; without it all steps."),
    rank: int | None = typer.Option(None, min=0, help="Show the log of this worker of the training instead.", show_default=False),
    follow: bool = typer.Option(False, "--follow", "-f", help="Print also what comes until the run has ended."),
) -> None:
    """Print the logs of a run's steps or workers.

    With a connection to KFP, a running step's log is read from its pod. A finished step's log is read from S3, or from its pod if S3 has
    none. Without a connection, logs are read from S3: those of a training, of its evaluation and of its workers from the run's directory,
    that of the preparation of images from the data set's. While they are written they are up to half a minute late.
    """
    from pipelines.cli.services import connect
    from pipelines.client.stored_logs import find_directories, show_stored_logs

    if rank is not None and step not in ("", "train"):
        raise UserError(f"--rank {rank}: only the step train has workers with a rank, not {step}")
    connect()
    directories = find_directories(run, by_pipeline=rank is not None or not connection.is_given)
    if directories:
        show_stored_logs(directories, "train" if rank is not None else step, rank, follow=follow, out=out, err=err)
        return
    from pipelines.client.kfp_client import connected
    from pipelines.client.logs import show_logs

    with connected(connection, warn) as kfp:
        show_logs(kfp, run, step, follow=follow, out=out, err=err)


def cancel(
    connection: Connection,
    run_id: str = typer.Argument(..., help="Id of the run; `iddpm runs` shows it."),
    wait: bool = typer.Option(False, "--wait", help="Wait until it has ended."),
    timeout: str = typer.Option("", help="The longest time to wait, like 10m."),
) -> None:
    """Cancel a run on the cluster. A run that has ended stays as it is."""
    from pipelines.client.follow import follow
    from pipelines.client.kfp_client import connected
    from pipelines.client.runs import state_of, terminate

    seconds = _seconds(timeout, wait, waits_by_default=False)
    with connected(connection, warn) as kfp:
        ended = terminate(kfp, run_id)
        if ended is not None:
            out(f"run {run_id} has ended already: it {'was ' if ended == 'cancelled' else ''}{ended}")
            return
        out(f"run {run_id} is being cancelled; what it started on a Ray cluster ends with it")
        if wait:
            out(f"it is {state_of(follow(kfp, run_id, task_names=(), say=out, timeout_seconds=seconds))}")


def doctor(
    connection: Connection,
    runs_namespace: str = typer.Option("", help="Namespace of the pods of runs; empty takes --namespace, or else KFP's own."),
    service_account: str = typer.Option("pipeline-runner", help="Service account of runs; with several users default-editor."),
    bucket: str = typer.Option("s3://iddpm", help="Bucket of runs; a small object is written there and deleted."),
    resources: list[str] = options.RESOURCES,
    pull_image: bool = typer.Option(False, "--pull-image", help="Start a pod with the project's image, to test that nodes can pull it."),
    as_json: bool = options.JSON,
) -> None:
    """Check that a cluster has everything that a run needs, and print a remedy for each thing that is missing."""
    from pipelines.doctor.examine import examine
    from pipelines.doctor.findings import FAILURE, WARNING

    findings = examine(
        connection,
        runs_namespace=runs_namespace or connection.namespace or connection.kfp_namespace,
        service_account=service_account,
        bucket=bucket,
        resources=resources,
        pull_image=pull_image,
        report=(lambda finding: None) if as_json else (lambda finding: out(str(finding))),
    )
    failures, warnings = (sum(1 for each in findings if each.state == state) for state in (FAILURE, WARNING))
    if as_json:
        plain = [each.to_dict() for each in findings]
        out(json.dumps({"ok": not failures, "failures": failures, "warnings": warnings, "findings": plain}, indent=2))
    else:
        out(f"\n{_count(failures, 'failure')}, {_count(warnings, 'warning')}, {len(findings) - failures - warnings} ok")
    if failures:
        raise typer.Exit(1)


def images(
    sources: list[str] = typer.Argument(None, help="Folders for kubectl kustomize, or files of manifests; - reads them from a pipe."),
) -> None:
    """List the images that manifests name, for a cluster without internet; by default those of k8s/overlays/kind."""
    from pipelines.doctor.manifests import images_of, read_manifests

    found = {name for source in sources or ["k8s/overlays/kind"] for name in images_of(read_manifests(source))}
    for name in sorted(found):
        out(name)


def _report(
    kfp: Kfp,
    started: SubmittedRun,
    compiled: CompiledPipeline,
    arguments: Mapping[str, Any],
    *,
    wait: bool,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Print what was started, and follow it if wanted."""
    from pipelines.client.follow import require_success
    from training.console import format_duration

    say = err if as_json else out
    say(f"pipeline    {compiled.pipeline_name}, version {started.version.name} {format_upload(started.version.is_new)}")
    say(f"experiment  {started.experiment}")
    say(f"run         {started.run_id}  {started.run_name}")
    if started.page:
        say(f"page        {started.page}")
    run = None
    try:
        run = _follow(kfp, started.run_id, compiled.task_names, seconds, say) if wait else None
    finally:  # also where the time is over: a script needs the id of the run
        if as_json:
            out(json.dumps(_submitted_json(started, compiled, arguments, run), indent=2))
    if run is None:
        say("the run goes on without this command; `iddpm runs` lists it, `iddpm cancel` ends it")
        return
    require_success(kfp, run)
    took = format_duration((run.finished_at - run.created_at).total_seconds()) if run.finished_at else "an unknown time"
    say(f"the run succeeded in {took}")


def _follow(kfp: Kfp, run_id: str, task_names: Collection[str], seconds: float | None, say: Callable[[str], None]) -> Any:
    from pipelines.client.follow import StillRunningError, follow

    def say_with_time(line: str) -> None:
        say(f"{datetime.now():%H:%M:%S}    {line}")

    try:
        return follow(kfp, run_id, task_names=task_names, say=say_with_time, timeout_seconds=seconds)
    except StillRunningError as error:
        raise StillRunningError(f"{error} (`iddpm cancel {run_id}` ends it)") from None
    except KeyboardInterrupt:
        err(f"the run goes on; `iddpm cancel {run_id}` ends it")
        raise


def _submitted_json(started: SubmittedRun, compiled: CompiledPipeline, arguments: Mapping[str, Any], run: Any) -> dict[str, Any]:
    from pipelines.client.runs import state_of

    return {
        "run_id": started.run_id,
        "name": started.run_name,
        "pipeline": compiled.pipeline_name,
        "version": started.version.name,
        "uploaded": started.version.is_new,
        "experiment": started.experiment,
        "parameters": arguments,
        "page": started.page or None,
        "state": state_of(run) if run is not None else "submitted",
    }


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

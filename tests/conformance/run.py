"""Prove a cluster: run the scenarios one after the other, and print a table of what each proved.

    python tests/conformance/run.py [--scenarios "train_local cancel"] [--out FOLDER]

A scenario is a module of `scenarios`: its docstring is the sentence that it proves, `drive` does it, `judge` reads what was recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conformance.cluster import Cluster, NotHereError, Recorder, Settings
from conformance.record import Claim, Record

from components.container.image import BASE_IMAGE
from pipelines.client.connection import Connection
from pipelines.client.kfp_client import connected
from pipelines.client.port_forward import forward_port
from training.console import format_duration
from training.distributed.signals import termination_raised

SCENARIOS = (
    "doctor_before",
    "train_local",
    "train_rayjob",
    "rayjob_options",
    "runs_shown",
    "logs_kept",
    "bad_source",
    "pod_refused",
    "sweep",
    "nightly",
    "cancel",
    "pod_drained",
    "ray_worker_killed",
    "ray_head_killed",
    "deadline",
    "submitter_killed",
    "out_of_memory",
    "container_killed",
    "submitted_twice",
    "trained_twice",
    "retry",
    "retry_from",
    "retry_button",
    "compare",
    "tune",
    "model_leaves",
    "kueue",
    "kueue_preempted",
    "webhook",
    "told_again",
    "hung",
    "garbage",
    "mlflow_away",
    "s3_away",
    "pod_deleted_twice",
    "doctor_after",
)
GREEN, RED, NOT_HERE = "proven", "RED", "not here"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        name: The scenario.
        sentence: What it proves.
        result: GREEN, RED or NOT_HERE.
        seconds: How long it took.
        reasons: Why it is not green.
    """

    name: str
    sentence: str
    result: str
    seconds: float
    reasons: tuple[str, ...] = ()


def scenario(name: str) -> tuple[str, Callable[[Cluster], None], Callable[[Record], list[Claim]]]:
    """Return the sentence, `drive` and `judge` of a scenario."""
    module = importlib.import_module(f"conformance.scenarios.{name}")
    return " ".join((module.__doc__ or "").split()), module.drive, module.judge


def run_scenario(cluster: Cluster, name: str) -> Row:
    """Run a scenario, judge and record it, and put back what it changed."""
    sentence, drive, judge = scenario(name)
    print(f"\n{name}: {sentence}", flush=True)
    began = time.monotonic()
    cluster.record, cluster.run_ids = Record(name=name), []
    reasons: list[str] = []
    result = GREEN
    try:
        with cluster.undo:
            cluster.undo.callback(_note_ends, cluster)
            with Recorder(cluster):
                drive(cluster)
    except NotHereError as error:
        result, reasons = NOT_HERE, [str(error)]
    except Exception as error:  # a red row; the others go on
        reasons = [f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"]
        traceback.print_exc()
    cluster.record.save(cluster.settings.folder)
    if result != NOT_HERE:
        try:
            reasons += [f"{claim.text}: no. {claim.seen}" for claim in judge(cluster.record) if not claim.holds]
        except Exception as error:  # what was recorded is not as the judgement expects; it is kept
            reasons.append(f"it can't be judged: {type(error).__name__}: {error}")
            traceback.print_exc()
        result = RED if reasons else GREEN
    row = Row(name=name, sentence=sentence, result=result, seconds=time.monotonic() - began, reasons=tuple(reasons))
    print(f"  {result} in {format_duration(row.seconds)}", *(f"\n    {reason}" for reason in reasons), flush=True)
    return row


def _note_ends(cluster: Cluster) -> None:
    """Note what KFP and MLflow say of the scenario's runs."""
    for run_id in cluster.run_ids:
        with contextlib.suppress(Exception):  # the judgement names what is missing
            cluster.record.runs.append(cluster.kfp_run(run_id))
    if cluster.run_ids:
        with contextlib.suppress(Exception):
            cluster.record.mlflow = [run for run_id in cluster.run_ids for run in cluster.mlflow_runs(run_id)]


def versions(cluster: Cluster) -> str:
    """Return the versions of what the cluster consists of, as far as they can be read."""
    found = [f"Kubernetes {(cluster.call('GET', '/version') or {}).get('gitVersion', 'unknown').removeprefix('v')}"]
    found.append(f"Kubeflow Pipelines {cluster.kfp.version}")
    images: list[str] = []
    with contextlib.suppress(Exception):  # an account may not be allowed to list all namespaces
        for each in cluster.items("/apis/apps/v1/deployments"):
            images += [container["image"] for container in each["spec"]["template"]["spec"]["containers"]]
    for name, part in (("Argo Workflows", "/workflow-controller"), ("KubeRay", "kuberay/operator"), ("KubeRay", "kuberay-operator")):
        tags = [image.partition("@")[0].rpartition(":")[2].removeprefix("v") for image in images if part in image]
        found += [f"{name} {tag}" for tag in tags[:1]]
    return ", ".join(found)


def table(rows: list[Row], about: str) -> str:
    """Return the table as Markdown."""
    lines = [about, "", "| scenario | proven | took | result |", "|---|---|---|---|"]
    for row in rows:
        result = row.result if row.result == GREEN else f"**{row.result}**: {'; '.join(row.reasons)}".replace("|", "/")
        lines.append(f"| {row.name.replace('_', ' ')} | {row.sentence} | {format_duration(row.seconds)} | {result} |")
    return "\n".join(lines) + "\n"


def _clean_up(cluster: Cluster) -> None:
    """Delete what the session wrote: in S3 by a pod, in MLflow by its API."""
    print("\ndeleting the session's data", flush=True)
    with cluster.undo:
        bucket, _, prefix = cluster.settings.storage_root_uri.removeprefix("s3://").partition("/")
        code = f"import boto3; boto3.resource('s3').Bucket({bucket!r}).objects.filter(Prefix={prefix + '/'!r}).delete()"
        name = "iddpm-conformance-cleaner"
        cluster.start_pod(name, code)
        path = f"/api/v1/namespaces/{cluster.settings.namespace}/pods/{name}"
        cluster.wait(
            "it is deleted", lambda: (cluster.call("GET", path) or {}).get("status", {}).get("phase") in ("Succeeded", "Failed"), 300
        )
    found = cluster.mlflow(f"experiments/get-by-name?experiment_name={cluster.settings.tracking_experiment}")
    if "experiment" in found:
        cluster.mlflow("experiments/delete", {"experiment_id": found["experiment"]["experiment_id"]})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prove a cluster. KUBECONFIG names it.")
    parser.add_argument("--scenarios", default="", help=f"which, in this order; all: {' '.join(SCENARIOS)}")
    parser.add_argument("--namespace", default="kubeflow", help="namespace of the pods of runs")
    parser.add_argument("--services-namespace", default="iddpm", help="namespace of MLflow and S3")
    parser.add_argument("--image", default=BASE_IMAGE, help="the project's image, as the nodes know it")
    parser.add_argument("--other-image", default="", help="another name or build of that image, to retry a run with; as a rule the same")
    parser.add_argument("--bucket", default="s3://iddpm", help="bucket to write to")
    parser.add_argument("--gap", type=float, default=600.0, help="seconds between the two deletions of a step's pod")
    parser.add_argument("--away", type=float, default=180.0, help="seconds for which MLflow and S3 are away")
    parser.add_argument("--steps-per-second", type=float, default=0.0, help="pace of a training; 0 measures it")
    parser.add_argument("--beside", action="store_true", help="another session runs there: leave alone what it has changed and started")
    parser.add_argument("--keep", action="store_true", help="keep what the session wrote to S3 and MLflow")
    parser.add_argument("--out", type=Path, default=Path(".iddpm/conformance"), help="folder for the table and the recordings")
    options = parser.parse_args()
    options.scenarios = options.scenarios.split() or list(SCENARIOS)
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    return options


def main() -> int:
    """Run the scenarios; return 0 if no row is red."""
    options = _options()
    os.environ["IDDPM_IMAGE"] = options.image
    began = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    settings = Settings(
        namespace=options.namespace,
        services_namespace=options.services_namespace,
        image=options.image,
        other_image=options.other_image or options.image,
        bucket=options.bucket.rstrip("/"),
        gap_seconds=options.gap,
        away_seconds=options.away,
        # Two may begin in one second, and each deletes its own data at its end.
        session=f"{time.strftime('%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}",
        folder=options.out.resolve(),
    )
    settings.folder.mkdir(parents=True, exist_ok=True)
    connection = Connection(port_forward=not os.environ.get("KF_PIPELINES_ENDPOINT"), kfp_namespace=options.namespace)
    rows: list[Row] = []
    with termination_raised(), ExitStack() as open_ports:
        kfp = open_ports.enter_context(connected(connection, lambda line: print(f"warning: {line}")))
        port = open_ports.enter_context(forward_port(options.services_namespace, "mlflow", 5000))
        cluster = Cluster(
            settings=settings, kfp=kfp, mlflow_url=lambda: port.ensure() or port.url, steps_per_second=options.steps_per_second
        )
        about = f"{began} UTC. {versions(cluster)}; image {options.image}."
        print(about, flush=True)
        if not options.beside:
            cluster.repair()
        try:
            for name in options.scenarios:
                rows.append(run_scenario(cluster, name))
                (settings.folder / "conformance.md").write_text(table(rows, about))
        finally:
            if not options.keep:
                _clean_up(cluster)
    print(f"\n{table(rows, about)}\nwritten to {settings.folder}")
    return int(any(row.result == RED for row in rows) or len(rows) < len(options.scenarios))


if __name__ == "__main__":
    sys.exit(main())

"""Growth with the number of runs, workers, trials, checkpoints and shards: requests, sizes and waits.

Kubernetes and Kubeflow Pipelines are the small servers of the tests, with recorded Workflows; MLflow and S3 are real. A proxy in front
of MLflow and S3 counts the requests. Two hours of a RayJob passes on a clock of its own.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import fake_kfp
import fake_kubernetes
import numpy as np
import psutil
from counting_proxy import Counted, counting, words
from fake_cluster import FakeCluster, node, operator, whole
from fake_kubernetes import NAMESPACE, FakeKubernetes, recorded_statuses
from measuring import Measured, Run
from recorded_workflows import workflow_states
from workflow_size import LIMIT, stored_bytes, sweep_nodes

from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.names import RUN_LABEL
from components.cluster.workflows import Owner
from components.launch.rayjob.follow import Pace, run_rayjob
from components.launch.rayjob.manifest import RayJob, render
from components.launch.resources import read_resources
from evaluation.monitoring.checkpoint_scorer import read_history, score_uri
from pipelines.services import services
from training import storage
from training.checkpoints import checkpoint
from training.data.format.manifest import MANIFEST, Manifest, manifest_digest
from training.data.format.shards import ShardWriter
from training.data.loading.loader import Loader
from training.tracking.runs import PIPELINE_RUN_TAG, RUN_URI_TAG, open_run

_IDDPM = [sys.executable, "-m", "pipelines.cli.main"]
_REAPER_SECONDS = 120.0
"""The reaper's schedule (k8s/base/runs/reaper.yaml)."""
_HOUR = 3600.0


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    yield from _workflows()
    with tempfile.TemporaryDirectory(prefix="iddpm-growth-") as directory:
        home = Path(directory)
        running = services.up(home / "services")
        try:
            with counting(running.mlflow_url) as mlflow, counting(running.s3_endpoint) as s3:
                os.environ.update(running.env | {"MLFLOW_TRACKING_URI": mlflow.url, "AWS_ENDPOINT_URL": s3.url})
                yield from _checkpoints(f"{running.bucket_uri}/many", s3, count=20 if run.quick else 1000)
                yield from _shards(f"{running.bucket_uri}/shards", home, s3, count=500 if run.quick else 10_000)
                yield from _logging(f"{running.bucket_uri}/runs/logging", mlflow, seconds=11.0 if run.quick else 60.0)
                count, num_open = (50, 5) if run.quick else (10_000, 100)
                pipeline_ids = _fill_mlflow(home / "services" / "mlflow" / "mlflow.db", count, num_open)
                yield from _commands(home, mlflow, pipeline_ids, num_open, run.rounds(3))
        finally:
            services.down(home / "services")


# -- Workflows ---------------------------------------------------------------------------------------------------------


def _workflows() -> Iterator[tuple[str, Measured]]:
    sweep = sweep_nodes()
    for count in (12, 60, 200):
        size = stored_bytes(sweep, count)
        yield f"workflow-{count}", Measured(value=size / LIMIT * 100, note=f"{size / 1024:,.0f} KiB")


# -- S3 ----------------------------------------------------------------------------------------------------------------


def _checkpoints(run_uri: str, s3: Counted, *, count: int) -> Iterator[tuple[str, Measured]]:
    files = {checkpoint.EXPERIMENT: b"{}", "state.json": b"{}", "model.pt": b"m", "ema_0.9999.pt": b"e", "optimizer.pt": b"o"}
    first = _counted(lambda: checkpoint.save(run_uri, 0, files), s3)
    uris = [checkpoint.checkpoint_uri(run_uri, step) for step in range(1, count - 1)]
    _store({score_uri(uri): b'{"step": %d, "scores": {"model": 1.0}}' % checkpoint.step_of(uri) for uri in uris}, s3)
    _store({storage.join(uri, name): b"x" for uri in uris for name in (*files, checkpoint.COMPLETE)}, s3)
    last = _counted(lambda: checkpoint.save(run_uri, count, files), s3)
    yield "checkpoint", Measured(value=last.total() / first.total(), note=f"{words(last)}")
    start = _counted(lambda: (checkpoint.clean(run_uri), checkpoint.latest(run_uri)), s3)
    yield "resume", Measured(value=start.total(), note=words(start))
    history = _counted(lambda: read_history(run_uri), s3)
    yield "history", Measured(value=history.total() / count, note=words(history))


def _shards(dataset_uri: str, home: Path, s3: Counted, *, count: int) -> Iterator[tuple[str, Measured]]:
    path = home / "shard.parquet"
    writer = ShardWriter(path, 64)
    writer.add(np.zeros((8, 8, 1), np.uint8), 0, "image")
    shard = writer.close("")
    shards = tuple(dataclasses.replace(shard, file=f"shard-{number:05d}.parquet") for number in range(count))
    _store({storage.join(dataset_uri, each.file): path.read_bytes() for each in shards}, s3)
    manifest = Manifest(
        schema_version=1,
        name="digits",
        split="train",
        image_size=8,
        image_channels=1,
        num_images=count,
        num_classes=0,
        class_names=(),
        class_counts=(),
        resize="none",
        reduced_decode=False,
        num_upscaled=0,
        shuffle_seed=0,
        split_seed=None,
        plan_sha256="",
        content_digest="",
        shards=shards,
        errors=(),
    )
    manifest = dataclasses.replace(manifest, content_digest=manifest_digest(manifest))
    storage.write_bytes(storage.join(dataset_uri, MANIFEST), manifest.to_json().encode())

    def load(cache: str) -> None:
        Loader(dataset_uri, seed=0, global_batch_size=1, cache_dir=home / cache).batch(0)

    def stream() -> None:
        Loader(dataset_uri, seed=0, global_batch_size=1, cache_dir=home / "streamed", disk_budget_bytes=64 * count - 1).batch(0)

    staged = _counted(lambda: load("staged"), s3)
    yield "staging", Measured(value=staged.total() / count, note=words(staged))
    again = _counted(lambda: load("staged"), s3)
    yield "staged-again", Measured(value=again.total(), note=words(again))
    streamed = _counted(stream, s3)
    yield "streaming", Measured(value=streamed.total(), note=f"to the first batch: {words(streamed)}")


# -- MLflow ------------------------------------------------------------------------------------------------------------


def _logging(run_uri: str, mlflow: Counted, *, seconds: float) -> Iterator[tuple[str, Measured]]:
    """A training that logs every second, once 5 metrics and once 50."""
    rates = {}
    for num_metrics in (5, 50):
        key = f"logging-{uuid.uuid4().hex[:8]}"
        tracked = open_run(run_key=key, experiment_name="logging", run_name=key, tags={}, params={})
        tracked = type(tracked)(tracked._client, tracked.run_id, run_uri=f"{run_uri}-{num_metrics}")
        tracked.log_metrics({"train/loss": 1.0}, 0)
        tracked.flush()
        mlflow.take()
        began, step = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            step += 1
            tracked.log_metrics({f"train/metric-{number}": float(step) for number in range(num_metrics)}, step)
            time.sleep(1.0)
        rates[num_metrics] = mlflow.take().total() * 60 / seconds
        tracked.finish("FINISHED")
    yield "mlflow-logging", Measured(value=rates[50], note=f"with 5 metrics {rates[5]:.0f}")


def _fill_mlflow(database: Path, count: int, num_open: int) -> list[str]:
    """Insert runs of an experiment, the latest of them open; return the ids of the pipeline's runs, the oldest first."""
    key = f"many-{uuid.uuid4().hex[:8]}"
    open_run(run_key=key, experiment_name="many", run_name=key, tags={}, params={}).finish("FINISHED")
    now, pipeline_ids = int(time.time() * 1000), []
    with sqlite3.connect(database, timeout=60) as connection:
        ((experiment_id, artifacts),) = connection.execute("SELECT experiment_id, artifact_location FROM experiments WHERE name = 'many'")
        for number in range(count):
            run_id, pipeline_id, is_open = uuid.uuid4().hex, str(uuid.uuid4()), number >= count - num_open
            pipeline_ids.append(pipeline_id)
            values = (run_id, f"run-{number}", "UNKNOWN", "", "", "me", "RUNNING" if is_open else "FINISHED", now + number, "active")
            columns = "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, lifecycle_stage"
            connection.execute(
                f"INSERT INTO runs ({columns}, source_version, artifact_uri, experiment_id) VALUES ({','.join('?' * 12)})",
                (*values, "", f"{artifacts}/{run_id}", experiment_id),
            )
            tags = {"iddpm.run_key": f"run-{number}", PIPELINE_RUN_TAG: pipeline_id, RUN_URI_TAG: f"s3://iddpm/runs/run-{number}"}
            tags["mlflow.runName"] = f"run-{number}"
            connection.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", [(*tag, run_id) for tag in tags.items()])
            params = [(f"optim.parameter-{each}", str(number), run_id) for each in range(40)]
            connection.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", params)
            metrics = [(f"metric-{each}", float(number), now, run_id, 0, False) for each in range(10)]
            connection.executemany(
                'INSERT INTO latest_metrics ("key", value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)', metrics
            )
    return pipeline_ids


# -- Kubernetes and Kubeflow Pipelines ---------------------------------------------------------------------------------


def _commands(home: Path, mlflow: Counted, pipeline_ids: list[str], num_open: int, rounds: int) -> Iterator[tuple[str, Measured]]:
    server, open_ids = services.status(home / "services").services[1].pid, pipeline_ids[-num_open:]
    with _kubernetes(home) as cluster, fake_kfp.serve() as kfp:
        alone = _launcher(cluster, "rayjob-1xgpu")
        many = _launcher(cluster, "rayjob-8x8gpu")
        note = f"{60 * many / _HOUR:.2f} a minute, with one worker {60 * alone / _HOUR:.2f}"
        yield "kubernetes-workers", Measured(value=many / alone, note=note)
        launchers = many * len(open_ids) / _HOUR  # they know nothing of each other
        _fill_cluster(cluster, open_ids)
        reap = [sys.executable, "-m", "components.reaper"]
        _command(reap, 1, server=server)  # after the first time, all runs have their tags
        cluster.requests.clear()
        mlflow.take()
        took = _command(reap, rounds, server=server)
        to_kubernetes, to_mlflow = len(cluster.requests) // rounds, Counter({kind: n // rounds for kind, n in mlflow.take().items()})
        reaper = to_kubernetes / _REAPER_SECONDS
        note = f"launchers {launchers:.2f}, the reaper {reaper:.2f}"
        yield "kubernetes-rayjobs", Measured(value=launchers + reaper, note=note)
        note = f"{took.note}; {to_kubernetes} requests to Kubernetes, {to_mlflow.total()} to MLflow"
        yield "reaper", dataclasses.replace(took, note=note)
        yield "mlflow-reaper", Measured(value=to_mlflow.total() / len(open_ids), note=f"with {len(open_ids)} open runs: {words(to_mlflow)}")
        for number, pipeline_id in enumerate(pipeline_ids):
            kfp.add_run("RUNNING" if pipeline_id in open_ids else "SUCCEEDED", run_id=pipeline_id, display_name=f"run-{number}")
        os.environ["KF_PIPELINES_ENDPOINT"] = kfp.url
        kfp.requests.clear()
        mlflow.take()
        took = _command([*_IDDPM, "runs"], rounds, server=server)
        note = f"{took.note}; {len(kfp.requests) // rounds} requests to KFP, {mlflow.take().total() // rounds} to MLflow"
        yield "runs", dataclasses.replace(took, note=note)
        cluster.objects = whole(mlflow.url, os.environ["AWS_ENDPOINT_URL"]) | _machines(200, 2000)
        cluster.requests.clear()
        kfp.requests.clear()
        took = _command([*_IDDPM, "doctor", "--kfp-namespace", NAMESPACE], rounds, codes=(0, 1), server=server)
        note = f"{took.note}; {len(cluster.requests) // rounds} requests to Kubernetes, {len(kfp.requests) // rounds} to KFP"
        yield "doctor", dataclasses.replace(took, note=note)


@contextmanager
def _kubernetes(home: Path) -> Iterator[FakeCluster]:
    fake_kubernetes.FakeKubernetes = FakeCluster
    with fake_kubernetes.serve(home) as (cluster, kubeconfig):
        assert isinstance(cluster, FakeCluster)
        os.environ["KUBECONFIG"] = str(kubeconfig)
        yield cluster


def _machines(num_nodes: int, num_pods: int) -> dict[str, Any]:
    """Nodes with eight GPUs, and pods that run on them."""
    nodes = [node(cpu="96", gpus=8) for _ in range(num_nodes)]
    for number, each in enumerate(nodes):
        each["metadata"]["name"] = f"node-{number}"
    container = {"image": "x", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
    pods = [
        {"metadata": {"name": f"p-{each}"}, "spec": {"nodeName": f"node-{each % num_nodes}", "containers": [container]}}
        for each in range(num_pods)
    ]
    return {"/api/v1/nodes": {"items": nodes}, "/api/v1/pods": {"items": [*operator()["items"], *pods]}}


def _job(profile: str, number: int) -> RayJob:
    return RayJob(
        run_key=f"growth-{number}",
        run_uri=f"s3://iddpm/runs/growth-{number}",
        entrypoint=("true",),
        namespace=NAMESPACE,
        image="iddpm:1",
        resources=read_resources(profile, stage="train"),
        owner=Owner("argoproj.io/v1alpha1", f"train-{number}", f"workflow-{number}"),
    )


def _launcher(cluster: FakeKubernetes, profile: str) -> int:
    """Follow a RayJob for two hours of its clock; return the requests of the second one."""
    random.seed(0)  # of the pauses between two looks
    job, seconds, requests = _job(profile, 0), 0.0, 0
    statuses = recorded_statuses("4504db")
    running = next(status for status in statuses if status.get("jobStatus") == "RUNNING")

    def sleep(pause: float) -> None:
        nonlocal seconds
        seconds += pause

    def before(method: str, path: str) -> None:
        nonlocal requests
        requests += _HOUR <= seconds < 2 * _HOUR
        for pod in cluster.pods.values():  # a job's pods come with it; before, they would be of an earlier one
            pod["metadata"]["labels"] = {RUN_LABEL: job.name} if cluster.created else {}

    for remembered in (cluster.rayjobs, cluster.pods, cluster.created):
        remembered.clear()
    for number in range(job.num_worker_pods + 1):
        cluster.add_pod(f"pod-{number}", {})
    cluster.before, cluster.on_look = before, lambda rayjob: rayjob.update(status=statuses[-1] if seconds > 2 * _HOUR else running)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        run_rayjob(job, KubernetesApi(NAMESPACE), is_done=lambda: True, pace=Pace(clock=lambda: seconds, sleep=sleep))
    cluster.before, cluster.on_look = lambda method, path: None, lambda rayjob: None
    return requests


def _fill_cluster(cluster: FakeKubernetes, open_ids: list[str]) -> None:
    """A RayJob and a Workflow that run, for each open run."""
    running = next(status for status in recorded_statuses("4504db") if status.get("jobStatus") == "RUNNING")
    (*_, workflow) = (state for state in workflow_states("train-rayjob-succeeded") if state["status"].get("phase") == "Running")
    for number, pipeline_id in enumerate(open_ids):
        cluster.add_rayjob(render(_job("rayjob-8x8gpu", number)), running)
        labels = {**workflow["metadata"]["labels"], "pipeline/runid": pipeline_id}
        metadata = {**workflow["metadata"], "name": f"train-{number}", "uid": f"workflow-{number}", "labels": labels}
        cluster.workflows[f"train-{number}"] = {**workflow, "metadata": metadata}


# -- counting ----------------------------------------------------------------------------------------------------------


def _store(objects: dict[str, bytes], s3: Counted) -> None:
    """Store many objects, past the proxy."""
    os.environ["AWS_ENDPOINT_URL"] = s3.target
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(storage.write_bytes, objects.keys(), objects.values()):
            pass
    os.environ["AWS_ENDPOINT_URL"] = s3.url


def _counted(work: Callable[[], Any], proxy: Counted) -> Counter[str]:
    proxy.take()
    work()
    return proxy.take()


def _command(command: list[str], rounds: int, *, codes: tuple[int, ...] = (0,), server: int | None) -> Measured:
    """Seconds by the clock that a command takes; noted are those of the processor, with the server of MLflow, whose process id is given."""
    by_clock, of_processor = [], []
    for _ in range(rounds):
        began, before = time.monotonic(), _processor_seconds(server)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        by_clock.append(time.monotonic() - began)
        of_processor.append(_processor_seconds(server) - before)
        if done.returncode not in codes:
            raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    note = f"{statistics.median(of_processor):.1f} s of the processor, MLflow's server included"
    return Measured(value=statistics.median(by_clock), low=min(by_clock), high=max(by_clock), note=note)


def _processor_seconds(server: int | None) -> float:
    """The seconds of this process's children, of the server and of the server's."""
    times, serving = os.times(), psutil.Process(server)
    of_server = sum(sum(each.cpu_times()[:2]) for each in (serving, *serving.children(recursive=True)))
    return times.children_user + times.children_system + of_server

"""One run in a real MLflow, through restarts of either end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from urllib3.connectionpool import HTTPConnectionPool

from pipelines.services import daemons
from pipelines.services import services as local_services
from training import storage
from training.tracking import client as mlflow_client
from training.tracking import metrics_file, registry, sender
from training.tracking import runs as tracking
from training.tracking.metrics_file import METRICS, MetricsFile, read_metric
from training.tracking.runs import TrackingError, attach


@pytest.fixture
def key(services) -> str:
    return f"run-{uuid.uuid4().hex[:10]}"


def open_run(key: str, **changes) -> tracking.TrackedRun:
    given = {"run_key": key, "experiment_name": "tests", "run_name": key, "tags": {}, "params": {}}
    return tracking.open_run(**{**given, **changes})


def server():
    from mlflow import MlflowClient

    return MlflowClient()


def points(run: tracking.TrackedRun, metric: str) -> list[tuple[int, float]]:
    """The metrics that the server has, read without our code."""
    return sorted((point.step, point.value) for point in server().get_metric_history(run.run_id, metric))


def test_the_same_key_finds_the_same_run_marks_it_running_and_removes_a_tag_that_is_empty_now(key):
    first = open_run(key, params={"seed": 1}, tags={"variant": "a", "reason": "slow", "other": ""})
    assert first.finish("KILLED")
    second = open_run(key, params={"seed": 1}, tags={"reason": "", "other": ""})
    assert second.flush()
    assert second.run_id == first.run_id != open_run(key + "-other").run_id
    run = server().get_run(first.run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["iddpm.run_key"]) == ("RUNNING", key, key)
    assert run.data.tags["variant"] == "a"
    assert not run.data.tags.keys() & {"reason", "other"}
    assert first.url.endswith(f"/#/experiments/{run.info.experiment_id}/runs/{first.run_id}?workflowType=machine_learning")


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "the oldest arrives last"])
def test_openers_at_the_same_moment_share_one_run(key, is_late, monkeypatch):
    from mlflow import MlflowClient

    start, found, first, created = threading.Barrier(4), [], threading.Lock(), threading.Event()
    create_run = MlflowClient.create_run

    def create_in_turn(client, *arguments, **options):
        began = int(time.time() * 1000)
        if is_late and first.acquire(blocking=False):  # the run with the oldest start time is long on its way
            created.wait(30)
            time.sleep(0.1)
            began -= 1000
        run = create_run(client, *arguments, start_time=began, **options)
        created.set()
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_in_turn)

    def open_it() -> None:
        start.wait()
        found.append(open_run(key, experiment_name=f"new-{key}").run_id)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    experiment = server().get_experiment_by_name(f"new-{key}")
    active = server().search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in active} == set(found)
    assert len(active) == 1


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_gets_its_status_after_everything_has_arrived(key, status):
    run = open_run(key)
    run.log_metrics({"loss": 1.0}, 3)
    assert run.finish(status)
    assert server().get_run(run.run_id).info.status == status
    assert points(run, "loss") == [(3, 1.0)]


def test_steps_that_are_replayed_after_a_resume_are_not_logged_again(key):
    run = open_run(key)
    for step in range(50):
        run.log_metrics({"loss": step, "grad_norm": 1.0}, step)
    run.flush()
    again = open_run(key)
    for step in range(30, 80):
        again.log_metrics({"loss": 1000 + step, "grad_norm": 1.0}, step)
    again.flush()
    assert points(run, "loss") == [(step, step if step < 50 else 1000 + step) for step in range(80)]
    assert [step for step, _ in points(run, "grad_norm")] == list(range(80))


class LateServer:
    """MLflow's client, and a server that carries out an earlier request only once it has been asked what is there."""

    def __init__(self, client, late):
        self._client, self._late = client, late

    def __getattr__(self, name):
        return getattr(self._client, name)

    def log_batch(self, *args, **kwargs):
        late, self._late = self._late, lambda: None
        late()
        return self._client.log_batch(*args, **kwargs)


class AbsentServer:
    """A server that accepts requests for metrics and answers none."""

    def __init__(self, client):
        self._client, self.requests = client, []

    def __getattr__(self, name):
        return getattr(self._client, name)

    def log_batch(self, *args, **kwargs):
        self.requests.append((args, kwargs))
        raise ConnectionError("no answer")


def test_a_request_of_a_process_that_is_gone_may_come_late(key, bucket_uri):
    opened = open_run(key)
    absent = AbsentServer(server())
    gone = tracking.TrackedRun(absent, opened.run_id, run_uri=bucket_uri)
    for step in (10, 20):
        gone.log_metrics({"loss": step, "seconds": 0.5, "score": math.nan}, step)
    while not absent.requests:
        assert not gone.flush(timeout_seconds=0.5)
    args, kwargs = absent.requests[-1]
    late = LateServer(server(), lambda: server().log_batch(*args, **kwargs))
    again = tracking.TrackedRun(late, opened.run_id, run_uri=bucket_uri)
    for step in (20, 30):  # from the checkpoint before, and not to the last bit
        again.log_metrics({"loss": 1000 + step, "seconds": 0.7, "score": math.nan}, step)
    assert again.close()
    assert points(opened, "loss") == read_metric(bucket_uri, "loss") == [(10, 10), (20, 20), (30, 1030)]
    assert points(opened, "seconds") == [(10, 0.5), (20, 0.5), (30, 0.7)]
    assert [step for step, _ in points(opened, "score")] == [10, 20, 30]
    lines = storage.read_bytes(f"{bucket_uri}/{METRICS}").decode().splitlines()
    assert json.loads(lines[0])["values"] == {"loss": 10.0, "seconds": 0.5, "score": "NaN"}
    assert len(lines) == 3


def test_metrics_that_a_killed_process_could_not_send_are_sent_by_the_one_that_resumes(key, bucket_uri):
    opened = open_run(key)
    gone = tracking.TrackedRun(AbsentServer(server()), opened.run_id, run_uri=bucket_uri)
    for step in range(1, 400):
        gone.log_metrics({"loss": step, "grad_norm": 1.0, "seconds": 2.0}, step)
    gone.save_metrics()  # as before a checkpoint
    again = tracking.TrackedRun(server(), opened.run_id, run_uri=bucket_uri)
    assert again.flush()  # without a value of its own
    assert points(opened, "loss") == [(step, step) for step in range(1, 400)]
    assert len(points(opened, "seconds")) == 399


def test_after_a_rollback_the_newer_values_are_the_curve_here_and_in_mlflow(key, bucket_uri):
    opened = open_run(key)
    run = tracking.TrackedRun(server(), opened.run_id, run_uri=bucket_uri)
    for step, loss in ((10, 2.0), (20, 9.0), (30, 8.0)):
        run.log_metrics({"loss": loss}, step)
    assert run.flush()
    time.sleep(0.002)  # MLflow counts milliseconds
    run.abandon_metrics_after(10)
    run.log_metrics({"loss": 1.5}, 20)
    assert run.flush()
    gone = tracking.TrackedRun(AbsentServer(server()), opened.run_id, run_uri=bucket_uri)  # it could not send the last one
    gone.log_metrics({"loss": 1.0}, 30)
    gone.save_metrics()
    for _ in range(2):
        assert attach(opened.run_id, run_uri=bucket_uri).close()
        assert opened.metric_history("loss") == read_metric(bucket_uri, "loss") == [(10, 2.0), (20, 1.5), (30, 1.0)]
        assert points(opened, "loss") == [(10, 2.0), (20, 1.5), (20, 9.0), (30, 1.0), (30, 8.0)], "MLflow deletes none"


def test_corrected_metrics_replace_what_an_earlier_process_logged_and_add_nothing_that_is_there(key):
    first = open_run(key)
    first.correct_metrics({("loss", 10): 2.0, ("loss", 20): 9.0, ("count", 0): 1.0, ("lost", 0): math.inf})
    assert first.finish("FAILED")
    again = open_run(key)
    for _ in range(2):
        again.correct_metrics({("loss", 10): 2.0, ("loss", 20): 1.0, ("loss", 30): 0.5, ("count", 0): 0.0, ("lost", 0): math.nan})
        assert again.flush()
        assert again.metric_history("loss") == [(10, 2.0), (20, 1.0), (30, 0.5)]
        assert points(again, "loss") == [(10, 2.0), (20, 1.0), (20, 9.0), (30, 0.5)], "MLflow deletes none"
        assert len(points(again, "lost")) == 1
        assert server().get_run(again.run_id).data.metrics["count"] == 0.0, "the newer value is shown, also if it is smaller"


def test_an_mlflow_that_lost_its_runs_gets_all_metrics_again(key, bucket_uri):
    first = tracking.TrackedRun(server(), open_run(key).run_id, run_uri=bucket_uri)
    first.log_metrics({"loss": 1.0}, 10)
    assert first.close()
    other = open_run(key + "-other")
    assert attach(other.run_id, run_uri=bucket_uri).close()
    assert points(other, "loss") == [(10, 1.0)]


def test_metrics_that_mlflow_did_not_take_at_the_end_are_sent_afterwards(key, bucket_uri):
    opened = open_run(key)
    ended = tracking.TrackedRun(AbsentServer(server()), opened.run_id, run_uri=bucket_uri)
    ended.log_metrics({"loss": 1.0}, 10)
    assert not ended.flush(timeout_seconds=1.0)
    ended.save_metrics()
    for _ in range(2):
        assert attach(opened.run_id, run_uri=bucket_uri).close()
        assert points(opened, "loss") == [(10, 1.0)]


def test_metrics_that_an_earlier_version_left_for_mlflow_are_sent_too(key, bucket_uri):
    opened = open_run(key)
    opened.log_metrics({"loss": 1.0}, 10, milliseconds=1)
    opened.flush()
    old = {"run_id": opened.run_id, "points": [["loss", 1.0, 10, 1], ["loss", 2.0, 20, 2], ["score", math.nan, 20, 2]]}
    storage.write_bytes(f"{bucket_uri}/metrics_for_mlflow.json", json.dumps(old).encode())
    assert attach(opened.run_id, run_uri=bucket_uri).close()
    assert points(opened, "loss") == read_metric(bucket_uri, "loss") == [(10, 1.0), (20, 2.0)]
    assert storage.list_uris(bucket_uri) == [f"{bucket_uri}/{METRICS}"]
    resumed = tracking.TrackedRun(server(), opened.run_id, run_uri=bucket_uri)
    resumed.log_metrics({"loss": 3.0}, 20)
    assert resumed.close()
    assert points(opened, "loss") == [(10, 1.0), (20, 2.0)]


def test_a_metric_that_mlflow_refuses_costs_no_other_metric(key, capsys):
    run = open_run(key)
    for step in range(3):
        run.log_metrics({"a//b": step, "loss": step}, step)  # MLflow takes no path with an empty part
    assert run.flush()
    assert points(run, "loss") == [(0, 0), (1, 1), (2, 2)]
    run.log_metrics({"a//b": 3, "loss": 3}, 3)
    assert run.flush()
    assert points(run, "loss")[-1] == (3, 3)
    assert capsys.readouterr().out.count("MLflow refused the metrics a//b: ") == 1


def test_a_run_that_was_deleted_in_mlflow_refuses_all_metrics_in_one_line(key, capsys):
    run = open_run(key)
    server().delete_run(run.run_id)
    for step in range(3):
        run.log_metrics({"loss": step, "learning_rate": step, "grad_norm": step}, step)
        assert run.flush()
    said = [line for line in capsys.readouterr().out.splitlines() if "refused the metrics" in line]
    assert len(said) == 1
    assert "MLflow refused the metrics grad_norm, learning_rate, loss: INVALID_PARAMETER_VALUE" in said[0]
    assert "must be in the 'active' state" in said[0]


def test_requests_that_do_not_fit_into_memory_cost_no_metric(key, bucket_uri, monkeypatch, capsys):
    monkeypatch.setattr(sender, "_CAPACITY", 3)
    client = AbsentServer(server())
    run = tracking.TrackedRun(client, open_run(key).run_id, run_uri=bucket_uri)
    for number in range(10):
        run.set_tags({"number": str(number)})
    run.log_metrics({"loss": 1.0}, 1)
    assert capsys.readouterr().out.count("wait in the run's directory only") == 1
    client.log_batch = server().log_batch
    assert run.flush()
    run.log_metrics({"loss": 2.0}, 2)
    assert run.flush()
    assert points(run, "loss") == [(1, 1.0), (2, 2.0)]


def test_a_step_repeated_within_one_process_keeps_its_first_value(key):
    run = open_run(key)
    run.log_metrics({"loss": 1.0}, 5)
    run.log_metrics({"loss": 2.0}, 5)  # in the same request
    run.flush()
    run.log_metrics({"loss": 3.0}, 5)  # after a roll-back, in a later one
    run.flush()
    assert points(run, "loss") == [(5, 1.0)]


def test_a_score_that_arrives_late_still_finds_its_place(key):
    run = open_run(key)
    run.log_metrics({"distance": 2.0}, 200)
    run.flush()
    again = open_run(key)
    again.log_metrics({"distance": 1.0}, 100)
    assert again.metric_history("distance") == [(100, 1.0), (200, 2.0)]
    assert again.metric_history("never logged") == []


def test_more_points_than_one_request_takes_all_arrive(key):
    run = open_run(key)
    for step in range(1300):
        run.log_metrics({"a": step, "b": -step}, step)
    assert run.flush()
    assert points(run, "a") == [(step, step) for step in range(1300)]
    assert len(points(run, "b")) == 1300


def test_the_requests_of_a_running_training_grow_with_time_alone(key, bucket_uri, mlflow_calls, monkeypatch):
    assert MetricsFile(bucket_uri).seconds_between_writes == 10.0  # six requests a minute, however many metrics and lines
    monkeypatch.setattr(metrics_file, "_SECONDS_BETWEEN_WRITES", 1e6)  # `flush` ends an interval, so that no clock decides
    opened = open_run(key)
    assert opened.flush()  # its tags and parameters are on their way
    run = attach(opened.run_id, run_uri=bucket_uri)
    values = {f"train/{number}": 1.0 for number in range(25)} | {f"system/{number}": 1.0 for number in range(15)}

    def requests_so_far() -> int:
        return sum(opened.run_id in request for request in mlflow_calls)

    before = requests_so_far()
    for interval in range(3):
        for step in range(50):
            run.log_metrics(values, 50 * interval + step)
        sent = requests_so_far() - before
        assert sent == (0 if interval == 0 else 1 + 2 * interval)  # nothing within the interval
        assert run.flush()
    assert requests_so_far() - before == 1 + 3 * 2  # one to learn what MLflow has, and for each interval one for each 1,000 points
    assert len(points(run, "system/14")) == 150


def test_values_that_are_not_numbers_are_shown_as_such(key):
    run = open_run(key)
    for step, value in enumerate([1.0, float("nan"), float("inf"), -float("inf")]):
        run.log_metrics({"loss": value}, step)
    run.flush()
    assert [str(value) for _, value in points(run, "loss")] == ["1.0", "nan", "nan", "nan"]


def test_a_process_killed_in_the_middle_and_started_again_leaves_every_step_once(key):
    code = (
        "import os, signal, sys; from training.tracking import runs as tracking\n"
        "run = tracking.open_run(run_key=sys.argv[1], experiment_name='tests', run_name='n', tags={}, params={})\n"
        "for step in range(int(sys.argv[2]), int(sys.argv[3])):\n"
        "    run.log_metrics({'loss': step}, step)\n"
        "    if step % 10 == 9: run.flush()\n"
        "    if step == 36: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, key, "0", "60"], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    run = open_run(key)
    for step in range(20, 60):  # from the checkpoint before
        run.log_metrics({"loss": step}, step)
    run.flush()
    assert points(run, "loss") == [(step, step) for step in range(60)]


@contextlib.contextmanager
def nothing_sent():
    """Hold back every request of the background thread until the block ends; this thread may neither send one nor wait for one."""
    here, is_over = threading.current_thread(), threading.Event()
    send = HTTPConnectionPool.urlopen

    def hold(*arguments, **options):
        assert threading.current_thread() is not here, "it asks the server itself"
        assert is_over.wait(300), "somebody waits for this request"
        return send(*arguments, **options)

    def refuse(*arguments):
        raise AssertionError("it waits for the server")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sender.BackgroundSender, "flush", refuse)
        patched.setattr(HTTPConnectionPool, "urlopen", hold)
        try:
            yield
        finally:
            is_over.set()


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_misses_nothing(key, services, capsys):
    run = open_run(key)
    run.log_metrics({"loss": 0}, 0)
    run.log_image("samples", np.zeros((8, 8, 1), np.uint8), 0)
    assert run.flush()
    for process in daemons.find(services.home, "mlflow"):
        process.kill()
    with nothing_sent():
        for step in range(1, 40):
            run.log_metrics({"loss": step}, step)
        run.log_image("samples", np.zeros((8, 8, 3), np.uint8), 20)
        run.log_artifact("text", "report/note.txt")
        run.set_tags({"checkpoint": "s3://x"})
    assert not run.flush(timeout_seconds=2.0)
    assert local_services.up(services.home) == services
    assert run.flush(timeout_seconds=60)
    assert points(run, "loss") == [(step, step) for step in range(40)]
    assert [file.path for file in server().list_artifacts(run.run_id, "report")] == ["report/note.txt"]
    assert server().get_run(run.run_id).data.tags["checkpoint"] == "s3://x"
    assert len(server().list_artifacts(run.run_id, "images")) == 4
    said = capsys.readouterr().out
    assert said.count("MLflow does not answer; work goes on, the numbers are kept in memory and sent once it answers") == 1
    assert said.count("MLflow answers again; what was kept is being sent") == 1


@pytest.mark.slow
def test_a_server_that_hangs_costs_no_time_and_gets_each_step_once(key, services, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    run = open_run(key)
    run.log_metrics({"loss": 0}, 0)
    assert run.flush()
    hung = daemons.find(services.home, "mlflow")
    for process in hung:
        process.suspend()
    try:
        with nothing_sent():
            for step in range(1, 200):
                run.log_metrics({"loss": step}, step)
        assert not run.flush(timeout_seconds=5.0)  # a few requests are lost on the way, and will be answered all the same
    finally:
        for process in hung:
            process.resume()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    assert run.flush(timeout_seconds=60)
    time.sleep(1.0)
    assert points(run, "loss") == [(step, step) for step in range(200)]


def test_a_step_has_one_picture_however_often_it_is_drawn(key):
    from PIL import Image

    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    run = open_run(key)
    for step in (10, 20, 10):
        run.log_image("train/samples", pictures[step // 20], step)
    run.log_image("grey", pictures[0][..., :1], 10)
    assert run.flush()
    again = open_run(key)
    again.log_image("train/samples", pictures[1], 10)
    assert again.flush()
    names = [file.path for file in server().list_artifacts(run.run_id, "images") if file.path.endswith(".png")]
    assert sorted(name.partition("+timestamp")[0] for name in names) == [
        "images/grey+step+10",
        "images/train~samples+step+10",
        "images/train~samples+step+20",
    ]
    stored = next(name for name in names if "train~samples+step+10" in name)
    assert np.array_equal(np.asarray(Image.open(server().download_artifacts(run.run_id, stored))), pictures[0])


def test_the_parent_is_the_one_that_is_named_and_never_the_one_that_kfp_injects(key, monkeypatch):
    parent = open_run(key)
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.run_id)
    named = open_run(key + "-a", parent_run_id=parent.run_id)
    open_run(key + "-b")
    found = server().search_runs([server().get_run(parent.run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert {run.info.run_id for run in found} == {named.run_id}
    assert parent.run_id in parent.children_url(order_by_metric="FID")


def test_parameters_are_dotted_and_a_later_value_becomes_a_tag(key):
    run = open_run(
        key, params={"data": {"name": "digits"}, "seed": 0, "resources": {"num_workers": 2}, "many": {str(i): i for i in range(150)}}
    )
    run.flush()
    again = open_run(key, params={"data": {"name": "digits"}, "seed": 0, "resources": {"num_workers": 1}})
    again.flush()
    data = server().get_run(run.run_id).data
    assert (data.params["data.name"], data.params["seed"], data.params["resources.num_workers"]) == ("digits", "0", "2")
    assert len(data.params) == 153
    assert {name: value for name, value in data.tags.items() if name.startswith("resumed.")} == {"resumed.resources.num_workers": "1"}
    back = open_run(key, params={"resources": {"num_workers": 2}})
    back.flush()
    assert server().get_run(run.run_id).data.tags["resumed.resources.num_workers"] == "2"


def test_files_texts_and_the_data_set_are_stored_with_the_run(key):
    run = open_run(key)
    run.log_artifact(b"<p>report</p>", "report/report.html")
    run.log_artifact("note", "note.txt")
    for _ in range(2):
        run.log_dataset("digits", "0123456789abcdef" * 4, "s3://iddpm/data/digits/train")
    assert run.flush()
    report = server().download_artifacts(run.run_id, "report/report.html")
    assert open(report).read() == "<p>report</p>"  # noqa: SIM115, PTH123
    (dataset,) = [entry.dataset for entry in server().get_run(run.run_id).inputs.dataset_inputs]
    assert (dataset.name, dataset.digest) == ("digits", ("0123456789abcdef" * 4)[:36])


def test_a_data_set_that_another_run_logs_at_the_same_moment_is_not_lost(key, monkeypatch):
    """MLflow looks for it before it inserts it, so its database may refuse one of the two."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST
    from mlflow.store.tracking.rest_store import RestStore

    log_inputs = RestStore.log_inputs

    def refuse_once(store, *arguments, **options):
        monkeypatch.setattr(RestStore, "log_inputs", log_inputs)
        raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id", error_code=BAD_REQUEST)

    monkeypatch.setattr(RestStore, "log_inputs", refuse_once)
    run = open_run(key)
    run.log_dataset("digits", "0123456789abcdef", "s3://iddpm/data/digits/train")
    assert run.flush()
    assert [each.dataset.name for each in server().get_run(run.run_id).inputs.dataset_inputs] == ["digits"]


def test_another_process_writes_to_the_same_run_by_its_id(key):
    run = open_run(key)
    code = (
        "import sys; from training.tracking.runs import attach\nr = attach(sys.argv[1]); r.log_metrics({'score': 2.5}, 7); assert r.flush()"
    )
    subprocess.run([sys.executable, "-c", code, run.run_id], check=True, timeout=120)
    run.log_metrics({"loss": 1.0}, 7)
    assert run.metric_history("score") == [(7, 2.5)]
    assert run.metric_history("loss") == [(7, 1.0)]


def test_a_deleted_run_refuses_metrics_and_takes_later_ones_once_it_is_restored(key, capsys):
    run = open_run(key)
    server().set_terminated(run.run_id)
    server().delete_run(run.run_id)
    run.log_metrics({"loss": 1.0}, 1)
    assert run.flush()
    assert "MLflow refused the metrics loss: " in capsys.readouterr().out
    server().restore_run(run.run_id)
    run.log_metrics({"loss": 2.0}, 2)
    assert run.flush()
    assert points(run, "loss") == [(2, 2.0)]
    server().delete_run(run.run_id)
    run.log_metrics({"loss": 3.0}, 3)
    assert run.flush()
    assert "MLflow refused the metrics loss: " in capsys.readouterr().out, "MLflow had taken some in between"


def test_an_address_where_nobody_listens_is_named_with_the_remedy(key, monkeypatch):
    monkeypatch.setattr(mlflow_client, "RETRY_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer; .*iddpm up") as caught:
        open_run(key)
    assert "\n" not in str(caught.value)


def test_in_a_cluster_a_step_waits_for_an_mlflow_that_it_needs(key, services, monkeypatch, capsys):
    address = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    threading.Timer(3.0, lambda: os.environ.update({"MLFLOW_TRACKING_URI": address})).start()  # MLflow comes back
    monkeypatch.setattr(mlflow_client, "RETRY_SECONDS", 0.0)
    assert open_run(key).flush()
    assert "does not answer; this step needs it and waits" in capsys.readouterr().out


def test_an_environment_without_an_address_is_named(key, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(TrackingError, match="no MLflow server is known"):
        open_run(key)


def test_a_request_that_can_never_work_is_refused_at_once(key):
    with pytest.raises(TrackingError, match=r"refused: .*not found"):
        tracking.attach("0" * 32)
    with pytest.raises(TrackingError, match=r"has no run '0{32}'; `iddpm runs` lists the trainings"):
        tracking.tags_of("0" * 32)
    with pytest.raises(TrackingError, match="is not a metric's name"):
        open_run(key).log_metrics({"loss:x": 1.0}, 0)
    with pytest.raises(TrackingError, match="contains a quote"):
        open_run("it's")
    experiment = server().create_experiment(f"gone-{key}")
    server().delete_experiment(experiment)
    with pytest.raises(TrackingError, match=r"experiment 'gone-.*' is deleted; restore it there, or use another name"):
        open_run(key, experiment_name=f"gone-{key}")


def test_a_user_or_password_that_mlflow_refuses_is_named_by_its_variables(monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import UNAUTHENTICATED

    def ask() -> None:  # what MLflow's client raises for the answer of its server
        raise MlflowException("API request failed with error code 401 != 200. Response body: 'You are not authenticated.'", UNAUTHENTICATED)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"refused: .*not authenticated.*; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        mlflow_client.request(ask)


def test_importing_it_does_not_import_mlflow():
    code = "import sys, training.tracking.runs; assert not {'boto3', 'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def registered_model(key, run_id, root):
    return registry.RegisteredModel(
        name=key,
        run_id=run_id,
        checkpoint_uri=f"{root}/runs/{key}/checkpoints/step=00000010",
        weights="model",
        data_uri="",
        distance_name="FID",
        distance=1.0,
    )


def test_a_model_in_a_directory_is_registered_and_found_by_mlflow(key, tmp_path):
    """An MLflow server takes no version whose source is a path of its clients."""
    import mlflow.artifacts

    run = open_run(key)
    model = registered_model(key, run.run_id, tmp_path)
    found = registry.register(model, loader_module="evaluation.sampling.pyfunc")
    assert registry.resolve(key) == found
    assert registry.register(model, loader_module="evaluation.sampling.pyfunc") == found
    loaded = Path(mlflow.artifacts.download_artifacts(f"models:/{key}@champion", dst_path=str(tmp_path / "loaded")))
    assert json.loads(next(loaded.rglob("model.json")).read_text()) == {"checkpoint_uri": model.checkpoint_uri, "weights": "model"}
    assert run.finish("FINISHED")


def test_after_the_champion_was_deleted_by_hand_the_best_of_the_others_is_the_champion(key, bucket_uri):
    run = open_run(key)
    model = registered_model(key, run.run_id, bucket_uri)
    best, second, _ = (
        registry.register(
            dataclasses.replace(model, weights=f"ema_0.{digit}", distance=digit / 10), loader_module="evaluation.sampling.pyfunc"
        )
        for digit in (2, 4, 5)
    )
    server().delete_model_version(key, best.version)
    registry.register(dataclasses.replace(model, weights="ema_0.6", distance=0.6), loader_module="evaluation.sampling.pyfunc")
    assert registry.resolve(key).version == second.version
    assert run.finish("FINISHED")


def test_a_champion_that_is_evaluated_again_with_a_worse_number_leaves_its_place_to_the_best(key, bucket_uri):
    run = open_run(key)
    model = registered_model(key, run.run_id, bucket_uri)

    def register(weights: str, distance: float) -> registry.RegisteredModel:
        return registry.register(dataclasses.replace(model, weights=weights, distance=distance), loader_module="evaluation.sampling.pyfunc")

    first, second = register("ema_0.2", 0.2), register("ema_0.4", 0.4)
    assert registry.resolve(key) == first
    register("ema_0.2", 0.5)
    assert registry.resolve(key) == second
    again = register("ema_0.4", 0.45)
    assert registry.resolve(key) == again, "its old number, 0.4, counts no more"
    server().delete_registered_model_alias(key, registry.CHAMPION)
    register("ema_0.6", 0.6)
    assert registry.resolve(key) == again, "nor do those of versions that were evaluated again: 0.2 and 0.4"
    assert run.finish("FINISHED")


def test_a_model_of_other_images_leaves_the_champion_in_its_place(key, bucket_uri, capsys):
    run = open_run(key)
    model = registered_model(key, run.run_id, bucket_uri)

    def register(weights: str, distance: float, data_uri: str) -> registry.RegisteredModel:
        given = dataclasses.replace(model, weights=weights, distance=distance, data_uri=data_uri)
        return registry.register(given, loader_module="evaluation.sampling.pyfunc")

    cats = register("ema_0.1", 15.0, "s3://b/data/cats-64x64x3-area")
    for _ in range(3):  # as three steps of a pipeline do
        register("ema_0.2", 12.0, "s3://b/data/dogs-64x64x3-area")
    assert registry.resolve(key) == cats
    said = (
        f"{key} version 2 does not compete with the registry's champion, version 1: its images are dogs-64x64x3-area, the champion's "
        "cats-64x64x3-area; give its experiment another name, or set the alias by hand"
    )
    assert capsys.readouterr().out.count(said) == 1
    moved = register("ema_0.3", 14.0, "s3://elsewhere/data/cats-64x64x3-area/")
    assert registry.resolve(key) == moved
    server().delete_registered_model_alias(key, registry.CHAMPION)
    register("ema_0.4", 16.0, "s3://b/data/cats-64x64x3-area")
    assert registry.resolve(key) == moved, "the best of its images, not of all"
    unknown = register("ema_0.5", 13.0, "")
    assert registry.resolve(key) == unknown, "a version that names no data set is compared as before"
    assert run.finish("FINISHED")


def test_a_distance_by_another_protocol_leaves_the_champion_in_its_place(key, bucket_uri, capsys):
    run = open_run(key)
    model = registered_model(key, run.run_id, bucket_uri)

    def register(weights: str, distance: float, num_samples: int | None) -> registry.RegisteredModel:
        protocol = json.dumps({"num_samples": num_samples, "sampling.eta": 0.0}) if num_samples else ""
        given = dataclasses.replace(model, weights=weights, distance=distance, protocol=protocol)
        return registry.register(given, loader_module="evaluation.sampling.pyfunc")

    few = register("ema_0.1", 98.4, 4)
    for _ in range(3):  # as three steps of a pipeline do
        register("ema_0.2", 89.7, 300)
    assert registry.resolve(key) == few, "a distance falls with the number of samples"
    said = (
        f"{key} version 2 does not compete with the registry's champion, version 1: its distance was measured by num_samples 300, the "
        "champion's 4; train and evaluate it as the champion, or set the alias by hand"
    )
    assert capsys.readouterr().out.count(said) == 1
    again = register("ema_0.1", 87.3, 300)
    assert registry.resolve(key) == again, "the champion by the other protocol too"
    register("ema_0.3", 50.0, 4)
    assert registry.resolve(key) == again
    unknown = register("ema_0.4", 80.0, None)
    assert registry.resolve(key) == unknown, "a version of earlier releases names no protocol, and is compared as before"
    known = register("ema_0.4", 80.0, 300)
    assert known.version == unknown.version, "it gets its protocol when it is registered again"
    assert registry.resolve(key).protocol == json.dumps({"num_samples": 300, "sampling.eta": 0.0})
    assert run.finish("FINISHED")


def test_a_model_is_registered_beside_another_at_the_same_moment_and_beside_a_champion_made_by_hand(key, bucket_uri, monkeypatch):
    from mlflow import MlflowClient

    run = open_run(key)
    model = registered_model(key, run.run_id, bucket_uri)
    search = MlflowClient.search_registered_models

    def search_just_before_another_makes_it(client, *arguments, **options):
        found = search(client, *arguments, **options)
        client.create_registered_model(key)
        return found

    monkeypatch.setattr(MlflowClient, "search_registered_models", search_just_before_another_makes_it)
    found = registry.register(model, loader_module="evaluation.sampling.pyfunc")
    assert registry.resolve(key) == found
    monkeypatch.undo()
    by_hand = server().create_model_version(key, source=bucket_uri)
    server().set_registered_model_alias(key, registry.CHAMPION, by_hand.version)
    better = registry.register(dataclasses.replace(model, weights="ema_0.9", distance=0.5), loader_module="evaluation.sampling.pyfunc")
    assert better.version not in (found.version, by_hand.version)
    assert server().get_model_version_by_alias(key, registry.CHAMPION).version == by_hand.version
    assert run.finish("FINISHED")

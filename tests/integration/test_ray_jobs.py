"""A step handed to a standing Ray cluster through its dashboard: a real head on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fake_kubernetes
import psutil
import pytest
from ray.job_submission import JobSubmissionClient
from recorded_workflows import workflow_states
from step_arguments import preprocess_arguments

from components.launch import dashboard as ray_jobs
from components.launch.call import call_of
from components.launch.dashboard import RayJobsError, run_on_dashboard
from components.launch.lease import DIRECTORY, Lease
from components.launch.rayjob.follow import Pace
from components.launch.rayjob.manifest import rayjob_name
from components.launch.repeat import LostError
from components.launch.run import run_step
from components.steps.registry import EVALUATE, PREPROCESS, TRAIN
from training import storage
from training.config.errors import UserError
from training.config.presets import preset
from training.data.format.manifest import read_manifest
from training.data.splits import prepare_experiment

pytestmark = pytest.mark.slow

_PACE = Pace(poll_seconds=0.5)


def _free_ports(count: int) -> list[int]:
    """Return free ports; all are open at once, so none is returned twice."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


_PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "ray-client-server-port")
"""Ports of a head whose defaults another cluster on this machine may use; Ray finds the others itself."""


@pytest.fixture(autouse=True)
def no_other_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets need a short path
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    port = ports["dashboard-port"]
    bin_folder = str(Path(sys.executable).parent)
    command = [f"{bin_folder}/ray", "start", "--head", "--block", "--num-cpus=3", "--node-ip-address=127.0.0.1"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += [f"--{name}={number}" for name, number in ports.items()]
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "1"  # it would wait half a minute for its work to move to other nodes
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert head.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_step_is_done_by_the_cluster_and_its_answer_and_lines_come_back(dashboard, tmp_path, capsys):
    uri = run_on_dashboard(PREPROCESS, preprocess_arguments(tmp_path), dashboard, pace=_PACE)
    assert read_manifest(f"{uri}/train").num_images > 1000
    made_at = Path(f"{uri}/train/manifest.json").stat().st_mtime_ns
    said = capsys.readouterr().out
    assert f"is submitted to {dashboard}" in said
    assert "preprocess is done on the Ray cluster" in said.partition("is submitted to")[2]  # the driver's own: a worker's may come too late
    arguments = preprocess_arguments(tmp_path)
    del arguments["resources"]
    again = run_step(PREPROCESS, arguments, json.dumps({"ray_mode": "address", "ray_address": dashboard, "num_workers": 2}))
    assert again == uri
    assert Path(f"{uri}/train/manifest.json").stat().st_mtime_ns == made_at
    assert "is submitted to" in capsys.readouterr().out  # what was found the last time is not taken for an answer


def test_a_step_that_fails_there_is_reported_in_one_line(dashboard, tmp_path, capsys):
    arguments = preprocess_arguments(tmp_path, experiment=json.dumps({"name": "no-such-experiment"}))
    with pytest.raises(RayJobsError, match=r"Ray job iddpm-preprocess-[\w-]+ ended as FAILED") as told:
        run_on_dashboard(PREPROCESS, arguments, dashboard, pace=_PACE)
    assert "\n" not in str(told.value)
    assert "data: " in capsys.readouterr().out


def test_a_step_whose_driver_is_killed_there_may_be_tried_again(dashboard, tmp_path):
    arguments = preprocess_arguments(tmp_path)
    call_uri = call_of(PREPROCESS, arguments).uri

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for process in psutil.process_iter(["cmdline"]):
                if (process.info["cmdline"] or [""])[-1] == call_uri:
                    process.kill()
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(LostError, match=r"Ray job iddpm-preprocess-[\w-]+ ended as FAILED: .* exit code (-9|137),"):
        run_on_dashboard(PREPROCESS, arguments, dashboard, pace=_PACE)
    killer.join()


def test_a_later_try_of_a_pipelines_step_takes_the_result_that_an_earlier_one_left(tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_POD_NAME", "train-x-system-container-impl-123")
    call = call_of(PREPROCESS, preprocess_arguments(tmp_path), scope="train-x")
    storage.write_json(call.result_uri, {"returned": "done"})
    assert run_on_dashboard(PREPROCESS, preprocess_arguments(tmp_path), "http://127.0.0.1:9") == "done"


def _terminated(program: str, *, within_seconds: float, follows: str = "is submitted to") -> str:
    """Send SIGTERM to a program once it follows its job; return the job's name."""
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert launcher.stdout is not None
        line = next(line for line in launcher.stdout if follows in line)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=within_seconds) == 143
    finally:
        launcher.kill()
        launcher.wait()
    return line.split("Ray job ")[1].split()[0]


def test_sigterm_stops_the_job_that_it_follows(dashboard, tmp_path):
    experiment = preset("digits-tiny-hybrid-cosine")
    arguments = {
        "experiment": experiment.to_json(),
        "data_uri": prepare_experiment(experiment, str(tmp_path / "data")),
        "reference_uri": "",
        "storage_root_uri": str(tmp_path),
        "tracking_experiment": "iddpm",
        "resources": {},
    }
    # The job waits for minutes: the run is trained on another machine.
    lease = Lease(owner="", host="another-machine pid:[1]", pid=1, began="5", id="other")
    storage.write_json(f"{call_of(TRAIN, arguments).directory_uri}/{DIRECTORY}/00000001.json", dataclasses.asdict(lease))
    job = _terminated(
        "from components.launch.dashboard import run_on_dashboard\n"
        "from components.steps.registry import TRAIN\n"
        f"run_on_dashboard(TRAIN, {arguments!r}, {dashboard!r})",
        within_seconds=60,
    )
    client = JobSubmissionClient(dashboard)
    deadline = time.monotonic() + 120
    while client.get_job_status(job).value != "STOPPED":
        assert time.monotonic() < deadline
        time.sleep(0.2)


Answer = tuple[int, str] | None
_VERSION = 200, '{"ray_version": "2.60.0"}'


@contextmanager
def _stand_in(answer: Callable[[str, str], Answer]) -> Iterator[str]:
    """A server that gives these answers by method and path, and none for None, until the block ends."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told = answer(self.command, self.path)
            if told is None:
                over.wait()
                return
            self.send_response(told[0])
            self.send_header("Content-Length", str(len(told[1])))
            self.end_headers()
            self.wfile.write(told[1].encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        serving.join()


def test_an_address_where_no_dashboard_is_says_so():
    with pytest.raises(LostError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:"):  # a head may be starting
        run_on_dashboard(EVALUATE, {"run_uri": "x"}, f"http://127.0.0.1:{_free_ports(1)[0]}")


def test_an_address_where_something_else_answers_says_so():
    with _stand_in(lambda method, path: (200, "<html>")) as address, pytest.raises(UserError, match=f"{address}' is no Ray dashboard"):
        run_on_dashboard(EVALUATE, {"run_uri": "x"}, address)


def test_another_cluster_that_the_environment_names_is_not_taken_in_its_place(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"RAY_ADDRESS is set, and Ray would take it in place of ray_address http://head:8265"):
        run_on_dashboard(EVALUATE, {"run_uri": "x"}, "http://head:8265")


def test_a_dashboard_that_accepts_and_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(ray_jobs, "_TIMEOUT_SECONDS", (5.0, 0.5))
    with _stand_in(lambda method, path: None) as address, pytest.raises(LostError, match="no Ray dashboard answers at"):
        run_on_dashboard(EVALUATE, {"run_uri": "x"}, address)


def test_a_dashboard_that_falls_silent_is_asked_again_and_then_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_jobs, "_TIMEOUT_SECONDS", (5.0, 0.3))
    monkeypatch.setattr(ray_jobs, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(ray_jobs, "_SECONDS_BETWEEN_TRIES", 0.05)
    asked: list[str] = []

    def answer(method: str, path: str) -> Answer:
        asked.append(path)
        return _VERSION if path == "/api/version" else None

    with _stand_in(answer) as address, pytest.raises(LostError, match=r"has not answered for 0\.5 s: .*[Tt]imed? ?out"):
        run_on_dashboard(PREPROCESS, preprocess_arguments(tmp_path), address)
    assert asked.count("/api/jobs/") > 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_reported_at_once_with_its_source(status, tmp_path):
    asked: list[str] = []

    def answer(method: str, path: str) -> Answer:
        asked.append(path)
        return (status, "Unauthorized") if path == "/api/jobs/" else _VERSION

    with (
        _stand_in(answer) as address,
        pytest.raises(RayJobsError, match=r"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN .* Secret iddpm-ray") as told,
    ):
        run_on_dashboard(PREPROCESS, preprocess_arguments(tmp_path), address)
    assert asked.count("/api/jobs/") == 1
    assert "\n" not in str(told.value)


def test_errors_of_the_server_are_waited_out_and_a_refusal_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_jobs, "_SECONDS_BETWEEN_TRIES", 0.05)
    answers = iter([(503, "no agent"), (429, "later"), (400, "no such field")])
    with (
        _stand_in(lambda method, path: _VERSION if path == "/api/version" else next(answers)) as address,
        pytest.raises(RayJobsError, match="the Ray dashboard refuses: it answered 400: no such field"),
    ):
        run_on_dashboard(PREPROCESS, preprocess_arguments(tmp_path), address)


def test_a_job_that_is_gone_may_be_tried_again(tmp_path):
    def answer(method: str, path: str) -> Answer:
        if path == "/api/version":
            return _VERSION
        if path == "/api/jobs/":
            return 200, "[]" if method == "GET" else '{"job_id": "x", "submission_id": "x"}'
        return 404, "no such job"

    with _stand_in(answer) as address, pytest.raises(LostError, match=r"Ray job iddpm-preprocess-[\w-]+ is gone"):
        run_on_dashboard(PREPROCESS, preprocess_arguments(tmp_path), address, pace=Pace(poll_seconds=0.02, sleep=lambda seconds: None))


def test_sigterm_ends_the_step_though_the_dashboard_has_fallen_silent(tmp_path):
    def answer(method: str, path: str) -> Answer:
        if path == "/api/version":
            return _VERSION
        if path == "/api/jobs/":
            return 200, "[]" if method == "GET" else '{"job_id": "x", "submission_id": "x"}'
        return None

    with _stand_in(answer) as address:
        _terminated(
            "from components.launch.dashboard import run_on_dashboard\n"
            "from components.steps.registry import PREPROCESS\n"
            f"run_on_dashboard(PREPROCESS, {preprocess_arguments(tmp_path)!r}, {address!r})",
            within_seconds=20,  # the answer would be waited for for half a minute
        )


@pytest.mark.parametrize("end", ["SUCCEEDED", "STOPPED"])
def test_a_job_of_another_run_that_ends_without_our_result_is_followed_by_our_own(tmp_path, end, monkeypatch, capsys):
    monkeypatch.setenv("KFP_POD_NAME", "train-x-system-container-impl-123")
    call = call_of(PREPROCESS, preprocess_arguments(tmp_path), scope="train-x")
    jobs: list[dict[str, Any]] = []

    def add(owner: str) -> None:
        name = f"{rayjob_name(call.key)}-{len(jobs) + 1}"
        metadata = {"iddpm/owner": owner}
        jobs.append({"submission_id": name, "type": "SUBMISSION", "status": "RUNNING", "entrypoint": "x", "metadata": metadata})

    def answer(method: str, path: str) -> Answer:
        if path == "/api/version":
            return _VERSION
        if method == "POST":
            add("train-x")
            return 200, json.dumps({"job_id": "x", "submission_id": jobs[-1]["submission_id"]})
        if path == "/api/jobs/":
            return 200, json.dumps(jobs)
        job = next(each for each in jobs if each["submission_id"] in path)
        if path.endswith("/logs"):
            job["status"] = end if job is jobs[0] else "SUCCEEDED"
            if job is not jobs[0]:
                Path(call.result_uri).write_text('{"returned": "done"}')
            return 200, '{"logs": ""}'
        return 200, json.dumps(job)

    add("another-run")
    with _stand_in(answer) as address:
        assert run_on_dashboard(PREPROCESS, preprocess_arguments(tmp_path), address, pace=Pace(poll_seconds=0.02)) == "done"
    assert len(jobs) == 2
    assert "of another run has ended without this run's result" in capsys.readouterr().out


_CANCELLED, _GOES_ON = (workflow_states("rayjob-cancelled")[index] for index in (-1, 0))


@pytest.mark.parametrize(
    ("owner", "state", "stops"),
    [("another-run", _CANCELLED, 0), ("train-x", _CANCELLED, 1), ("train-x", None, 1), ("train-x", _GOES_ON, 0)],
    ids=["of another run", "of an earlier try", "of a run that is deleted", "of a run that goes on, as after a drain"],
)
def test_sigterm_stops_a_job_that_it_found_there_only_if_it_is_its_own_and_the_run_is_over(tmp_path, owner, state, stops, monkeypatch):
    monkeypatch.setenv("KFP_POD_NAME", "train-x-retry-system-container-impl-123")
    name = f"{rayjob_name(call_of(PREPROCESS, preprocess_arguments(tmp_path), scope='train-x').key)}-1"
    job = {"submission_id": name, "type": "SUBMISSION", "status": "RUNNING", "entrypoint": "x", "metadata": {"iddpm/owner": owner}}
    posted: list[str] = []

    def answer(method: str, path: str) -> Answer:
        if method == "POST":
            posted.append(path)
            return 200, '{"stopped": true}'
        if path == "/api/version":
            return _VERSION
        if path.endswith("/logs"):
            return 200, '{"logs": ""}'
        return 200, json.dumps([job] if path == "/api/jobs/" else job)

    with _stand_in(answer) as address, fake_kubernetes.serve(tmp_path) as (cluster, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        if state:
            cluster.workflows["train-x"] = {**state, "metadata": {**state["metadata"], "name": "train-x"}}
        _terminated(
            "from components.launch.dashboard import run_on_dashboard\n"
            "from components.steps.registry import PREPROCESS\n"
            f"run_on_dashboard(PREPROCESS, {preprocess_arguments(tmp_path)!r}, {address!r})",
            within_seconds=60,
            follows="is there already",
        )
    assert posted == [f"/api/jobs/{name}/stop"] * stops

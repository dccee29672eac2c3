"""Messages to a person while MLflow does not answer, and failures that are none of MLflow's."""

import contextlib
import errno
import http.server
import json
import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests

from training.storage import StorageError
from training.tracking import client
from training.tracking import sender as sender_module
from training.tracking.client import TrackingError, connect, is_transient, request, shortened
from training.tracking.metrics_file import METRICS
from training.tracking.sender import BackgroundSender
from training.tracking.tracked_run import TrackedRun
from training.tracking.trainings import LatestTrainings

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/report.html")


@contextlib.contextmanager
def _answering(answers: list[tuple[int, str, dict[str, str]]]) -> Iterator[str]:
    """Serve these answers (status, body, headers) in order, the last one for ever; give the address."""
    left = iter(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = next(left, answers[-1])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(("slow_after", "told"), [(0.1, 1), (30.0, 0)])
def test_an_mlflow_that_accepts_connections_and_never_answers_is_named_while_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slow_after: float, told: int
) -> None:
    monkeypatch.setattr(client, "_SLOW_SECONDS", slow_after)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError, match="does not answer; is it running"):
            request(lambda: connect().get_run("0" * 32), seconds=1.0)
    assert capsys.readouterr().out.count(f"MLflow at {uri} has not answered for 0.1 s; waiting, and trying again for 1.0 s") == told


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (500, "readonly database", {}, "answers with error 500; its log has the reason"),
        (429, "", {}, "answers with error 429; its log has the reason"),
        (200, "<html>Sign in</html>", {}, "is no MLflow, perhaps a proxy or its login page"),
        (302, "", {"Location": "/login"}, "is no MLflow, perhaps a proxy or its login page"),
        (404, "", {}, "is no MLflow, perhaps a proxy or its login page"),
        (404, json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run not found"}), {}, "refused: RESOURCE_DOES_NOT_EXIST"),
    ],
)
def test_an_answer_that_is_an_error_or_no_mlflows_is_told_from_none(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str, headers: dict[str, str], said: str
) -> None:
    with _answering([(status, body, headers)]) as uri:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError, match=f"{uri} {said}"):
            request(lambda: connect().get_run("0" * 32), seconds=0.0)


def test_an_empty_404_of_a_gateway_is_asked_again_as_mlflow_may_be_starting_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(404, "", {}), (404, "", {}), (200, '{"experiment": {"experiment_id": "7", "name": "found"}}', {})]
    with _answering(answers) as uri:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert request(lambda: connect().get_experiment("7"), seconds=30.0).name == "found"


def test_a_long_error_keeps_its_end_which_names_the_cause() -> None:
    text = shortened(
        OSError("HTTPConnectionPool(host='mlflow'):\n" + "x" * 1000 + " (Caused by ResponseError('too many 500 error responses'))")
    )
    assert text.startswith("HTTPConnectionPool(host='mlflow'): xxx")
    assert text.endswith("(Caused by ResponseError('too many 500 error responses'))")
    assert len(text) < 320
    assert shortened(OSError("a\n b")) == "a b"


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (StorageError("the store restarts", transient=True), True),
        (StorageError("the disk is full"), False),
        (FULL, False),
        (FileNotFoundError(errno.ENOENT, "gone", "/tmp/x"), False),
        (requests.ConnectionError("no route"), True),
        (requests.Timeout("20 s"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ValueError("no number"), False),
    ],
)
def test_only_what_a_server_may_still_answer_is_repeated(error: Exception, passes: bool) -> None:
    assert is_transient(error) == passes


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (StorageError("s3://b/x: access denied"), StorageError, "^s3://b/x: access denied$"),
        (FULL, TrackingError, r"failed on this machine: \[Errno 28\] No space left on device: '/tmp/report\.html'$"),
    ],
)
def test_a_failure_of_storage_or_of_this_machine_is_not_told_as_one_of_mlflow(
    monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[Exception], message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    def fail() -> None:
        raise error

    with pytest.raises(kind, match=message):
        request(fail, seconds=30.0)


def test_a_request_that_can_not_succeed_is_said_once_and_holds_up_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise FULL

    delivered: list[int] = []
    sender = BackgroundSender(kept_in="memory")
    for number in range(3):
        sender.put("report.html", fail)
        sender.put("tags", lambda number=number: delivered.append(number))  # type: ignore[misc]
    assert sender.flush(30.0)
    assert delivered == [0, 1, 2]
    said = capsys.readouterr().out
    assert said.count("report.html can't be sent to MLflow: [Errno 28] No space left on device: '/tmp/report.html'") == 1
    assert "does not answer" not in said
    sender.put("report.html", lambda: None)
    sender.put("report.html", fail)
    assert sender.flush(30.0)
    assert "report.html can't be sent" in capsys.readouterr().out, "it had succeeded in between"


class _WithoutRoom(http.server.BaseHTTPRequestHandler):
    """An MLflow whose store of files is full: it answers `status` where it is asked for files, and takes all the rest."""

    status = 500
    taken: list[str]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status if "artifacts" in self.path else 200)
        info = {"run_id": "1", "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1/1/artifacts", "status": "RUNNING"}
        body = json.dumps({"run": {"info": info, "data": {}}, "run_info": info}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.command == "POST":
            self.taken.append(self.path.rpartition("/")[2])

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 - the names of http.server

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize("status", [500, 507], ids=["one that MLflow's client repeats", "one that it does not"])
def test_an_mlflow_that_has_no_room_for_a_picture_lacks_the_picture_alone(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = type("Handler", (_WithoutRoom,), {"status": status, "taken": []})
    monkeypatch.setattr(sender_module, "_FLUSH_PAUSE_SECONDS", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
        run = TrackedRun(connect(), "1", run_uri=str(tmp_path))
        run.log_image("samples", np.zeros((8, 8, 3), np.uint8), 200)
        run.log_metrics({"loss": 0.5}, 250)
        run.log_artifact("<p>report</p>", "report.html")
        assert run.finish("FINISHED", timeout_seconds=20.0)
        server.shutdown()
    assert handler.taken == ["log-batch", "update"]  # type: ignore[attr-defined]
    assert (tmp_path / METRICS).exists()
    said = capsys.readouterr().out
    for name in ("image samples of step 200", "report.html"):
        assert said.count(f"MLflow answers, but does not take {name}; the next step or the same command sends it (") == 1
    assert "does not answer" not in said


def test_a_file_waits_as_long_as_mlflow_is_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    attempts: list[int] = []
    monkeypatch.setattr(sender_module, "_FLUSH_PAUSE_SECONDS", 0.01)

    def ask() -> None:
        if len(attempts) < 20:
            raise requests.ConnectionError("no route")

    def send() -> None:
        attempts.append(1)
        ask()

    sender = BackgroundSender(kept_in="memory")
    sender.put("report.html", send, ask=ask)
    assert sender.flush(30.0)
    assert len(attempts) == 20
    said = capsys.readouterr().out
    assert said.count("MLflow does not answer; work goes on") == said.count("MLflow answers again") == 1
    assert "does not take" not in said


def test_the_thread_ends_when_nothing_is_sent_and_holds_nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_IDLE_SECONDS", 0.05)
    sender, sent = BackgroundSender(kept_in="memory"), []
    for number in range(3):
        payload = _Payload()
        held = weakref.ref(payload)
        sender.put("metrics", lambda payload=payload, number=number: sent.append((type(payload), number)))  # type: ignore[misc]
        del payload
        assert sender.flush(30.0)
        deadline = time.monotonic() + 30.0
        while sender._thread is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sender._thread is None
        assert held() is None
        assert sent == [(_Payload, n) for n in range(number + 1)]


class _Payload:
    """Can be referred to weakly."""


class _Client:
    """Takes what a run sends."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def get_run(self, run_id: str) -> Any:
        return type("Run", (), {"data": type("Data", (), {"metrics": {}})})

    def log_batch(self, run_id: str, metrics: Any = (), **rest: Any) -> None:
        self.sent += [(metric.step, metric.value) for metric in metrics]


def test_metrics_on_a_full_disk_are_kept_and_sent_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import storage

    server, write_bytes = _Client(), storage.write_bytes
    run = TrackedRun(server, "1", run_uri=str(tmp_path))  # type: ignore[arg-type]
    assert run.flush()

    def fail(uri: str, data: bytes) -> bool:
        raise StorageError(f"{uri}: the disk is full")

    monkeypatch.setattr(storage, "write_bytes", fail)
    for step in (1, 2):
        run.log_metrics({"loss": 0.5}, step)
        assert run.flush()
    assert server.sent == []
    said = capsys.readouterr().out
    assert said.count("metrics can't be sent to MLflow") == said.count(f"{METRICS}: the disk is full") == 1
    monkeypatch.setattr(storage, "write_bytes", write_bytes)
    run.log_metrics({"loss": 0.5}, 3)
    assert run.close()
    assert server.sent == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2, 3]


def test_a_damaged_record_of_metrics_holds_up_no_other_request_and_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "ti')
    run = TrackedRun(_Client(), "1", run_uri=str(tmp_path))  # type: ignore[arg-type]
    run.log_metrics({"loss": 0.5}, 2)
    run.set_tags({"a": "b"})
    assert run.flush()
    assert capsys.readouterr().out.count(f"{METRICS}: line 1 is no step") == 1
    with pytest.raises(StorageError, match="remove that line, or bring the whole file back"):
        run.close()
    assert (tmp_path / METRICS).read_bytes() == b'{"step": 1, "ti'


@pytest.mark.parametrize(
    ("scores", "best"), [([math.nan, 3.0, 2.0, math.nan], (2.0, 30)), ([math.nan], (None, None)), ([math.inf, 4.0], (4.0, 20))]
)
def test_a_score_that_is_no_number_is_never_the_best(scores: list[float], best: tuple[float | None, int | None]) -> None:
    history = [SimpleNamespace(value=value, step=10 * (number + 1)) for number, value in enumerate(scores)]
    server = SimpleNamespace(get_metric_history=lambda run_id, key: history)
    assert LatestTrainings()._best_score(server, "1", 40) == best  # type: ignore[arg-type]

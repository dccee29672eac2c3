"""The webhook, against a server: one message, a few attempts, and no log line with its address."""

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.resolve_model import resolve_model
from components.steps import nightly as nightly_run
from components.steps import webhook
from components.steps.close import End, tell_end

_NONSENSE = 0


class _Server(http.server.ThreadingHTTPServer):
    """Takes messages, and answers with the codes it is given, then with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: list[dict[str, object]] = []
        self.codes: list[int] = []
        self.num_requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/s3cr3t"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.num_requests += 1
        code = self.server.codes.pop(0) if self.server.codes else 200
        if code == 200:
            assert self.headers["Content-Type"] == "application/json"
            self.server.messages.append(json.loads(body))
        if code == _NONSENSE:
            self.wfile.write(b"nonsense\r\n\r\n")
            return
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    with _Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv(webhook.URL_VARIABLE, running.url)
        monkeypatch.setattr(webhook, "_PAUSE_SECONDS", 0.01)
        yield running
        running.shutdown()
        thread.join()


def test_a_message_is_sent_once_even_if_its_step_is_retried(server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = str(tmp_path / "sent.json")
    for _ in range(2):
        assert webhook.send_once({"text": "worse"}, receipt)
    assert server.messages == [{"text": "worse"}]
    printed = capsys.readouterr()
    assert "sent the message to the webhook" in printed.out + printed.err
    assert "s3cr3t" not in printed.out + printed.err + Path(receipt).read_text()


def test_a_server_error_is_retried(server: _Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    assert webhook.send_once({"text": "worse"}, str(tmp_path / "sent.json"))
    assert server.num_requests == 3


@pytest.mark.parametrize(
    ("codes", "requests", "reason"),
    [
        ([404], 1, "it answered 404"),
        ([302], 1, "it answered 302"),
        ([500] * 9, 3, "it answered 500, 3 times"),
        ([_NONSENSE] * 9, 3, "it does not answer as"),
    ],
)
def test_a_failed_webhook_is_logged_in_one_line_without_its_address(
    server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], codes: list[int], requests: int, reason: str
) -> None:
    server.codes = codes
    assert not webhook.send_once({"text": "worse"}, str(tmp_path / "sent.json"))
    assert server.num_requests == requests
    printed = "".join(capsys.readouterr())
    assert f"the webhook did not get the message: {reason}" in printed
    assert printed.count("\n") == 1
    assert "s3cr3t" not in printed
    assert not (tmp_path / "sent.json").exists(), "the next attempt tries again"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/s3cr3t", "ftp://host/s3cr3t", "s3cr3t", "http://[s3cr3t", "http://host/a s3cr3t", "http://host:s3cr3t"]
)
def test_an_unreachable_address_is_not_logged(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(webhook.URL_VARIABLE, url)
    monkeypatch.setattr(webhook, "_PAUSE_SECONDS", 0.01)
    assert not webhook.send_once({"text": "worse"}, str(tmp_path / "sent.json"))
    printed = "".join(capsys.readouterr())
    assert "the webhook did not get the message" in printed
    assert "s3cr3t" not in printed


def test_an_answer_that_is_not_http_is_logged_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for _ in range(3):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"220 mail.example.com\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv(webhook.URL_VARIABLE, f"http://127.0.0.1:{listening.getsockname()[1]}/s3cr3t")
        monkeypatch.setattr(webhook, "_PAUSE_SECONDS", 0.01)
        assert not webhook.send_once({"text": "worse"}, str(tmp_path / "sent.json"))
    assert "it does not answer as a web server does (BadStatusLine), 3 times" in "".join(capsys.readouterr())


def test_a_slow_answer_is_cut_off_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 " + b"O" * 2000:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.02)

        threading.Thread(target=drip, daemon=True).start()
        monkeypatch.setenv(webhook.URL_VARIABLE, f"http://127.0.0.1:{listening.getsockname()[1]}/s3cr3t")
        monkeypatch.setattr(webhook, "_BUDGET_SECONDS", 0.3)
        started = time.monotonic()
        assert not webhook.send_once({"text": "worse"}, str(tmp_path / "sent.json"))
    assert time.monotonic() - started < 10
    assert "the webhook did not get the message: it had not answered after 0.3 s" in "".join(capsys.readouterr())


def test_without_an_address_nothing_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(webhook.URL_VARIABLE, raising=False)
    assert not webhook.send_once({"text": "worse"}, str(tmp_path / "sent.json"))
    assert "".join(capsys.readouterr()) == ""


def test_a_model_that_cannot_be_evaluated_is_reported_once_and_the_failure_stays(server: _Server, tmp_path: Path) -> None:
    uri = f"{tmp_path}/checkpoints/step=00000100"
    for _ in range(2):
        with (
            pytest.raises(ValueError, match="no such weights"),
            nightly_run.reporting_failure(uri, "ema_0.9", str(tmp_path), "nightly-1"),
        ):
            raise ValueError("no such weights")
    (message,) = server.messages
    assert message["event"] == "evaluation_failed"
    assert uri in str(message["text"])
    assert "no such weights" in str(message["text"])


def test_a_model_that_is_not_found_is_reported(server: _Server, tmp_path: Path) -> None:
    missing = f"{tmp_path}/runs/no-such-run"
    with pytest.raises(ValueError, match="no-such-run"):
        resolve_model.python_func(missing, str(tmp_path), "nightly-1")
    (message,) = server.messages
    assert message["model"] == missing
    assert "no-such-run could not be evaluated: " in str(message["text"])


@pytest.mark.parametrize(
    ("end", "event", "text"),
    [
        (
            End(succeeded=False, errors={"train": "OOMKilled"}),
            "run_failed",
            "iDDPM: run p-1 failed at train: OOMKilled https://kfp/#/runs/details/p-1",
        ),
        (End(succeeded=False, cancelled=True), "run_cancelled", "iDDPM: run p-1 was cancelled https://kfp/#/runs/details/p-1"),
    ],
)
def test_the_webhook_is_told_once_of_a_run_that_failed_or_was_cancelled(
    server: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: End, event: str, text: str
) -> None:
    monkeypatch.setenv("IDDPM_KFP_PUBLIC_URL", "https://kfp/")
    for _ in range(2):
        tell_end(end, "p-1", str(tmp_path))
    tell_end(End(succeeded=True), "p-1", str(tmp_path))
    assert [(message["event"], message["text"]) for message in server.messages] == [(event, text)]

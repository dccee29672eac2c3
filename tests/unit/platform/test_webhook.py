"""The webhook, against a server: one message in its form, a few attempts, and no log line with its address."""

import base64
import contextlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from webhook_receiver import NONSENSE, SILENCE, Receiver, receive

from components.reaper.messages import HUNG_VARIABLE, tell_webhook
from components.resolve_model import resolve_model
from components.steps import nightly as nightly_run
from components.steps import webhook
from components.steps.compare import tell_comparison
from components.steps.run_messages import End, tell_end
from training.config.errors import UserError

_MESSAGE = {"event": "failed", "text": "worse"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receive() as receiver:
        monkeypatch.setenv(webhook.URL_VARIABLE, receiver.url)
        monkeypatch.setattr(webhook, "_PAUSE_SECONDS", 0.01)
        yield receiver


def test_a_message_is_sent_once_even_if_its_step_is_retried(server: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = str(tmp_path / "sent.json")
    for _ in range(2):
        assert webhook.send_once(_MESSAGE, receipt)
    assert server.messages == [_MESSAGE]
    printed = capsys.readouterr()
    assert "sent the message to the webhook" in printed.out + printed.err
    assert "s3cr3t" not in printed.out + printed.err + Path(receipt).read_text()


def test_the_message_of_a_comparison_names_a_model_without_a_finite_distance(server: Receiver, tmp_path: Path) -> None:
    numbers = ((1.5, 0.25), (None, None))
    results = [{"distance_name": "FID", "distance": value, "distance_standard_error": error} for value, error in numbers]
    models = [{"name": name, "result": result} for name, result in zip("ab", results, strict=True)]
    (tmp_path / "comparison.json").write_text(json.dumps({"models": models}))
    tell_comparison(f"{tmp_path}/comparison.html", "p-1", str(tmp_path))
    (message,) = server.messages
    assert "FID of a 1.50 ± 0.25; b not finite" in message["text"]
    assert [each["distance"] for each in message["numbers"]["models"]] == [1.5, None]


def test_a_server_error_is_retried(server: Receiver, tmp_path: Path) -> None:
    server.codes = [503, 429]
    assert webhook.send_once(_MESSAGE, str(tmp_path / "sent.json"))
    assert server.num_requests == 3


@pytest.mark.parametrize(
    ("codes", "requests", "reason"),
    [
        ([404], 1, "it answered 404"),
        ([302], 1, "it answered 302, a redirect, which is not followed; IDDPM_WEBHOOK_URL must be"),
        ([500] * 9, 3, "it answered 500, 3 times"),
        ([NONSENSE] * 9, 3, "it does not answer as"),
    ],
)
def test_a_failed_webhook_is_logged_in_one_line_without_its_address(
    server: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str], codes: list[int], requests: int, reason: str
) -> None:
    server.codes = codes
    assert not webhook.send_once(_MESSAGE, str(tmp_path / "sent.json"))
    assert server.num_requests == requests
    printed = "".join(capsys.readouterr())
    assert f"the webhook did not get the message: {reason}" in printed
    assert printed.count("\n") == 1
    assert "s3cr3t" not in printed
    server.codes = []
    assert webhook.send_once(_MESSAGE, str(tmp_path / "sent.json")), "the next attempt tries again"
    assert server.messages == [_MESSAGE]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/s3cr3t", "ftp://host/s3cr3t", "s3cr3t", "http://[s3cr3t", "http://host/a s3cr3t", "http://host:s3cr3t"]
)
def test_an_unreachable_address_is_not_logged(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(webhook.URL_VARIABLE, url)
    monkeypatch.setattr(webhook, "_PAUSE_SECONDS", 0.01)
    assert not webhook.send_once(_MESSAGE, str(tmp_path / "sent.json"))
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
        assert not webhook.send_once(_MESSAGE, str(tmp_path / "sent.json"))
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

        answer = threading.Thread(target=drip, daemon=True)
        answer.start()
        monkeypatch.setenv(webhook.URL_VARIABLE, f"http://127.0.0.1:{listening.getsockname()[1]}/s3cr3t")
        monkeypatch.setattr(webhook, "_BUDGET_SECONDS", 0.3)
        assert not webhook.send_once(_MESSAGE, str(tmp_path / "sent.json"))
        assert answer.is_alive(), "nobody waited for its end"
    assert "the webhook did not get the message: it had not answered after 0.3 s" in "".join(capsys.readouterr())


def test_without_an_address_nothing_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(webhook.URL_VARIABLE, raising=False)
    assert webhook.send_once(_MESSAGE, str(tmp_path / "sent.json")), "nobody waits for it"
    assert "".join(capsys.readouterr()) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_evaluated_is_reported_once_and_the_failure_stays(server: Receiver, tmp_path: Path) -> None:
    uri = f"{tmp_path}/checkpoints/step=00000100"
    for _ in range(2):
        with (
            pytest.raises(ValueError, match="no such weights"),
            nightly_run.reporting_failure(uri, "ema_0.9", str(tmp_path), "nightly-1"),
        ):
            raise ValueError("no such weights at https://me:hidden@host/x")
    (message,) = server.messages
    assert message["event"] == "failed"
    assert (message["run_id"], message["errors"]) == ("1", {"nightly": "no such weights at https://***@host/x"})
    assert "hidden" not in json.dumps(message) + "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert uri in str(message["text"])
    assert "no such weights" in str(message["text"])


def test_a_model_that_is_not_found_is_reported(server: Receiver, tmp_path: Path) -> None:
    missing = f"{tmp_path}/runs/no-such-run"
    with pytest.raises(ValueError, match="no-such-run"):
        resolve_model.python_func(missing, str(tmp_path), "nightly-1")
    (message,) = server.messages
    assert message["model"] == missing
    assert "no-such-run could not be evaluated: " in str(message["text"])


def test_a_webhook_that_times_out_and_comes_back_gets_the_first_message_with_its_first_id(
    server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_TIMEOUT_SECONDS", 0.1)
    server.codes = [SILENCE, 503, SILENCE]
    uri = str(tmp_path / "sent.json")
    assert not webhook.send_once(_MESSAGE, uri)
    first = json.loads(Path(uri).read_text())["id"]
    assert webhook.send_once({**_MESSAGE, "text": "said later, by somebody who knows less"}, uri)
    assert server.messages == [_MESSAGE]
    assert server.signed[0][0]["webhook-id"] == first


def test_a_run_that_was_tried_again_is_told_again(server: Receiver, tmp_path: Path) -> None:
    uri = str(tmp_path / "sent.json")
    for since in ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2099-01-01T00:00:00Z"):
        assert webhook.send_once(_MESSAGE, uri, since=since)
    assert len(server.messages) == 2
    for _ in range(2):
        assert webhook.send_once({"event": "finished", "text": "well"}, uri)
    assert [message["event"] for message in server.messages] == ["failed", "failed", "finished"]


def test_a_record_that_cannot_be_written_leaves_the_message_to_the_reaper_which_needs_none(server: Receiver, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    uri = f"{tmp_path}/file/sent.json"
    assert not webhook.send_once(_MESSAGE, uri)
    assert server.messages == []
    assert webhook.send_once(_MESSAGE, uri, needs_record=False)
    assert server.messages == [_MESSAGE]


def test_a_signature_is_that_of_the_library_of_standard_webhooks() -> None:
    """The library is standardwebhooks 1.0, and its `Webhook(key).sign` gave the value."""
    signature = webhook.sign("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "rest", ["ab-_" * 8, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw!!!!", "MfKQ 9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTw"]
)
def test_a_key_with_letters_that_are_not_base64_is_refused(rest: str) -> None:
    """The decoder leaves them out if it is not asked to check, so the key would be another one than people see."""
    with pytest.raises(ValueError, match=r"base64|padding"):
        webhook.sign(f"whsec_{rest}", "m", 1, b"x")


def test_an_empty_key_is_refused() -> None:
    """A Secret that was made from a variable without a value has the first letters alone, and with an empty key anybody can sign."""
    with pytest.raises(ValueError, match="the key is empty"):
        webhook.sign("whsec_", "m", 1, b"x")


def test_a_message_is_signed_with_its_id_and_time_if_a_key_is_set(
    server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert webhook.send_once(_MESSAGE, str(tmp_path / "1.json"))
    assert "webhook-signature" not in server.signed[0][0]
    monkeypatch.setenv(webhook.KEY_VARIABLE, "s3cr3t words")
    assert webhook.send_once(_MESSAGE, str(tmp_path / "2.json"))
    headers, body = server.signed[1]
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    mac = hmac.new(b"s3cr3t words", f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body, "sha256")
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(mac.digest()).decode()}"
    monkeypatch.setenv(webhook.KEY_VARIABLE, "whsec_?s3cr3t")
    assert not webhook.send_once(_MESSAGE, str(tmp_path / "3.json"))
    printed = "".join(capsys.readouterr())
    assert "IDDPM_WEBHOOK_KEY is not whsec_ and base64" in printed
    assert "s3cr3t" not in printed


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("slack", {"text": "a &lt;b&gt; &amp; @channel https://kfp/#/r"}),
        ("mattermost", {"text": "a <b> & @\u200bchannel https://kfp/#/r"}),
    ],
)
def test_a_chat_gets_its_own_form_and_no_error_calls_everybody(
    server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, expected: dict[str, str]
) -> None:
    monkeypatch.setenv(webhook.FORMAT_VARIABLE, form)
    message = {"event": "failed", "text": "a <b> & @channel", "links": {"kfp": "https://kfp/#/r"}}
    assert webhook.send_once(message, str(tmp_path / "sent.json"))
    assert server.messages == [expected]


def test_teams_gets_a_card_with_a_button(server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(webhook.FORMAT_VARIABLE, "teams")
    message = {"event": "failed", "text": "train: " + 3000 * "x", "links": {"directory": "s3://b/k", "kfp": "https://kfp/#/r"}}
    assert webhook.send_once(message, str(tmp_path / "sent.json"))
    (sent,) = server.messages
    (attachment,) = sent["attachments"]
    assert (sent["type"], attachment["contentType"]) == ("message", "application/vnd.microsoft.card.adaptive")
    assert len(attachment["content"]["body"][0]["text"]) < 2010
    assert [action["url"] for action in attachment["content"]["actions"]] == ["https://kfp/#/r"]


def test_a_form_that_is_not_known_is_named_and_its_messages_come_once_it_is_mended(
    server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(webhook.FORMAT_VARIABLE, "irc")
    assert not webhook.send_once(_MESSAGE, str(tmp_path / "sent.json"))
    assert "IDDPM_WEBHOOK_FORMAT must be one of json, slack, mattermost, teams; it is 'irc'" in "".join(capsys.readouterr())
    monkeypatch.delenv(webhook.FORMAT_VARIABLE)
    assert webhook.send_once(_MESSAGE, str(tmp_path / "sent.json"))


@pytest.mark.parametrize(
    ("events", "told"),
    [("", ["failed"]), ("started, failed", ["started", "failed"]), ("Started FAILED", ["started", "failed"]), ("hung", [])],
)
def test_only_events_that_are_wanted_are_told(
    server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: str, told: list[str]
) -> None:
    monkeypatch.setenv(webhook.EVENTS_VARIABLE, events)
    for event in ("started", "failed"):
        assert webhook.send_once({"event": event, "text": ""}, str(tmp_path / f"{event}.json"))
    assert [message["event"] for message in server.messages] == told


@pytest.mark.parametrize("word", ["-5", "nan", "inf", "an hour"])
def test_a_time_after_which_no_training_can_hang_is_refused(server: Receiver, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv(HUNG_VARIABLE, word)
    with pytest.raises(UserError, match=rf"must be a number of minutes, 0 or more; it is '{word}'"):
        tell_webhook(None)  # type: ignore[arg-type]  # the cluster is not asked
    assert server.messages == []


def test_events_that_do_not_exist_are_named_once(
    server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(webhook.EVENTS_VARIABLE, "failure, Regression, ended")
    for number in range(2):
        assert webhook.send_once(_MESSAGE, str(tmp_path / f"{number}.json"))
    printed = "".join(capsys.readouterr())
    assert printed.count("IDDPM_WEBHOOK_EVENTS (events of the Secret): there is no event failure, ended; the events are started, ") == 1
    assert server.messages == []
    assert webhook.send_once({**_MESSAGE, "event": "regression"}, str(tmp_path / "r.json"))
    assert len(server.messages) == 1


@pytest.mark.parametrize(
    ("end", "event", "text"),
    [
        (End(succeeded=False, errors={"train": "OOMKilled"}), "failed", "failed at train: OOMKilled"),
        (End(succeeded=False, cancelled=True), "cancelled", "was cancelled"),
        (End(succeeded=True), "finished", "finished: FID 3.2"),
    ],
)
def test_the_webhook_is_told_once_how_a_run_ended_and_where_to_look(
    server: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: End, event: str, text: str
) -> None:
    monkeypatch.setenv("IDDPM_KFP_PUBLIC_URL", "https://kfp/")
    for _ in range(2):
        assert tell_end(end, "p-1", str(tmp_path), name="my digits", numbers={"summary": "FID 3.2"} if end.succeeded else {})
    sent = f"iDDPM: my digits {text} (run p-1) https://kfp/#/runs/details/p-1"
    assert [(message["event"], message["text"]) for message in server.messages] == [(event, sent)]

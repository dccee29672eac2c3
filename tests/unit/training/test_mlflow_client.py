"""What a person is told while MLflow does not answer."""

import socket

import pytest

from training.tracking import client
from training.tracking.client import TrackingError, connect, in_one_line, request


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


def test_a_long_error_keeps_its_end_which_names_the_cause() -> None:
    text = in_one_line(
        OSError("HTTPConnectionPool(host='mlflow'):\n" + "x" * 1000 + " (Caused by ResponseError('too many 500 error responses'))")
    )
    assert text.startswith("HTTPConnectionPool(host='mlflow'): xxx")
    assert text.endswith("(Caused by ResponseError('too many 500 error responses'))")
    assert len(text) < 320
    assert in_one_line(OSError("a\n b")) == "a b"

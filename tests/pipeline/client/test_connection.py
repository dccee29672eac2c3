"""The way to KFP: its address, tokens, TLS, what goes wrong on it, and kubectl's port-forward."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_kfp
import pytest
from fake_kfp import FakeKfp
from recorded_workflows import workflow_states

from pipelines.client.connection import Connection, is_unencrypted
from pipelines.client.errors import KfpError
from pipelines.client.follow import Polling, retrying
from pipelines.client.kfp_client import connected
from training.config.errors import UserError

Iddpm = Callable[..., "tuple[int, str, str]"]
pytestmark = pytest.mark.usefixtures("elsewhere")


def test_without_an_endpoint_the_error_says_how_to_give_one(iddpm: Iddpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    status, _, err = iddpm("cancel", "RUN_ID")
    assert status == 1
    assert "--endpoint https://" in err
    assert "KF_PIPELINES_ENDPOINT" in err
    assert "--port-forward" in err


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("localhost:8080", "did you mean http://localhost:8080?"),
        ("kfp.example.com", "did you mean https://kfp.example.com?"),
        ("http://", "has no host"),
        ("http://host:port", "is malformed"),
        ("https://me:secret@host", "must not contain a password"),
        ("me:secret@host", "must not contain a password"),
        ("ftp://me:secret@host:port", "must not contain a password"),
        ("ftp://host", "did you mean https://host?"),
        ("http://[::1:8888", "is malformed: Invalid IPv6 URL"),
        ("https://[me/secret@host", "the endpoint is malformed; write it like https://kfp.example.com"),
        ("me:1/secret@host", "the endpoint starts with neither http:// nor https://; write it like https://kfp.example.com"),
        ("https:///secret@host", "the endpoint has no host; write it like https://kfp.example.com"),
    ],
)
def test_a_malformed_endpoint_is_refused(endpoint: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        _ = Connection(endpoint=endpoint).address
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_the_uis_address_from_a_browser_is_an_endpoint(server: FakeKfp, iddpm: Iddpm) -> None:
    assert iddpm("runs", "--endpoint", f"{server.url}/#/runs?x=1")[0] == 0


def test_in_a_pod_the_service_is_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert Connection(kfp_namespace="kfp").address == "http://ml-pipeline.kfp.svc.cluster.local:8888"


def test_in_a_pod_its_own_token_is_sent(server: FakeKfp, iddpm: Iddpm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pod-token").write_text("from-the-kubelet")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "pod-token"))
    assert iddpm("runs")[0] == 0
    assert {request.authorization for request in server.requests} == {"Bearer from-the-kubelet"}


def test_the_token_of_a_file_is_read_again_for_each_request(server: FakeKfp, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    server.tokens = {"first"}
    with connected(Connection(endpoint=server.url, token_file=str(file)), lambda line: None) as kfp:
        server.tokens = {"second"}
        with pytest.raises(KfpError, match=r"refuses the token \(401\): it has expired"):
            kfp.client.list_runs()
        file.write_text("second\n")
        kfp.client.list_runs()


def test_a_refused_token_is_not_shown(server: FakeKfp, iddpm: Iddpm, monkeypatch: pytest.MonkeyPatch) -> None:
    server.tokens = {"good"}
    assert "needs a token (401): give one by --token-file or KFP_TOKEN" in iddpm("runs")[2]
    monkeypatch.setenv("KFP_TOKEN", "bad-and-secret")
    status, out, err = iddpm("runs")
    assert status == 1
    assert "refuses the token (401)" in err
    assert "secret" not in out + err
    monkeypatch.setenv("KFP_TOKEN", "good")
    assert iddpm("runs")[0] == 0


@pytest.mark.parametrize(("text", "said"), [(None, "No such file"), ("", "contains no token"), ("two words", "contains no token")])
def test_a_token_file_without_a_token_is_refused(iddpm: Iddpm, tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    status, _, err = iddpm("runs", "--token-file", str(file))
    assert status == 1
    assert said in err


def test_nobody_at_the_endpoint_is_said_in_one_line(iddpm: Iddpm) -> None:
    status, _, err = iddpm("runs", "--endpoint", "http://127.0.0.1:9")
    assert (status, err.count("\n")) == (1, 1)
    assert "no answer from http://127.0.0.1:9: nothing listens there" in err
    assert "0x" not in err


def test_a_name_that_is_not_known_here(iddpm: Iddpm) -> None:
    assert "the name is not known here" in iddpm("runs", "--endpoint", "http://kfp.invalid:8888")[2]


def test_the_environments_proxy_is_the_way_to_an_endpoint(server: FakeKfp, iddpm: Iddpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)  # which answers as what lies behind it
    assert iddpm("runs", "--endpoint", "http://kfp.invalid:8888") == (0, "no runs\n", "")
    monkeypatch.setenv("no_proxy", "other.invalid,.invalid")
    assert "the name is not known here" in iddpm("runs", "--endpoint", "http://kfp.invalid:8888")[2]


def test_no_proxy_stands_before_this_machine_or_the_inside_of_the_cluster(
    server: FakeKfp, iddpm: Iddpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert iddpm("runs")[0] == 0
    assert "the name is not known here" in iddpm("runs", "--endpoint", "http://ml-pipeline.kubeflow.svc.cluster.local:8888")[2]


def test_a_proxy_that_is_away_is_named_as_the_reason_without_its_password(iddpm: Iddpm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "me:secret@127.0.0.1:9")
    for endpoint in ("http://kfp.invalid:8888", "https://kfp.invalid"):
        status, out, err = iddpm("runs", "--endpoint", endpoint)
        assert (status, err.count("\n")) == (1, 1)
        assert "the environment's proxy (https_proxy, http_proxy) fails" in err
        assert "0x" not in err
        assert "secret" not in out + err


def test_a_log_in_page_is_recognised(server: FakeKfp, iddpm: Iddpm) -> None:
    server.page = "<html><body>Log in</body></html>"
    assert "is it a log-in page?" in iddpm("runs")[2]


@pytest.mark.parametrize(("question", "command"), [(("GET", "/runs"), ("runs",)), (("POST", "/runs"), ("submit", "train", "--no-wait"))])
def test_a_log_in_page_behind_a_health_check_that_asks_for_none_is_no_answer(
    question: tuple[str, str], command: tuple[str, ...], server: FakeKfp, iddpm: Iddpm
) -> None:
    server.faults[question] = ["page"]
    status, out, err = iddpm(*command)
    assert (status, out) == (1, "")
    assert "is it a log-in page?" in err


def test_a_server_that_is_not_kfps(server: FakeKfp, iddpm: Iddpm) -> None:
    server.faults["GET", "/healthz"] = [404]
    assert "there is no KFP API at" in iddpm("runs")[2]


def test_a_server_error_is_told_with_what_it_said(server: FakeKfp, iddpm: Iddpm) -> None:
    server.faults["GET", "/runs"] = [500]
    status, _, err = iddpm("runs")
    assert status == 1
    assert "KFP failed at" in err
    assert "told to answer 500" in err


def test_a_connection_that_breaks_while_a_run_is_started_leaves_no_certainty_and_says_so(server: FakeKfp, iddpm: Iddpm) -> None:
    server.faults["POST", "/runs"] = ["lose"]
    status, _, err = iddpm("submit", "nightly-fid")
    assert status == 1
    assert "the request may have been carried out" in err
    assert len(server.runs) == 1


def test_another_version_is_warned_of(server: FakeKfp, iddpm: Iddpm) -> None:
    server.version = "2.16.1"
    status, out, err = iddpm("runs")
    assert (status, out) == (0, "no runs\n")
    assert err.startswith("warning: KFP at ")
    assert "2.16.1" in err


def test_a_namespace_that_a_kfp_of_one_user_leaves_unread_is_warned_of(server: FakeKfp, iddpm: Iddpm) -> None:
    said = "serves one user, so --namespace team-a does not move its runs; leave it out"
    assert said in iddpm("runs", "--namespace", "team-a")[2]
    server.namespaces = {"team-a"}
    assert said not in iddpm("runs", "--namespace", "team-a")[2]


def test_a_token_over_an_unencrypted_way_is_warned_of() -> None:
    assert is_unencrypted("http://kfp.example.com")
    assert not is_unencrypted("http://localhost:8080")
    assert not is_unencrypted("https://kfp.example.com")


def test_tls_needs_a_certificate_that_is_trusted(tmp_path: Path, iddpm: Iddpm) -> None:
    certificate = tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(
        [*made, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    certificate.write_text((tmp_path / "cert.pem").read_text() + (tmp_path / "key.pem").read_text())
    with fake_kfp.serve(certificate) as server:
        assert "its certificate is not trusted here; give the authority's by --ca-file" in iddpm("runs", "--endpoint", server.url)[2]
        assert iddpm("runs", "--endpoint", server.url, "--ca-file", str(tmp_path / "cert.pem"))[0] == 0
        # No shell expands ~ in --ca-file=~/cert.pem. HOME is this directory.
        assert iddpm("runs", "--endpoint", server.url, "--ca-file", "~/cert.pem")[0] == 0
        (tmp_path / "words.pem").write_text("no certificate")
        for name in (f"{tmp_path}/none.pem", f"{tmp_path}/words.pem", "~nobody-here/cert.pem"):
            err = iddpm("runs", "--endpoint", server.url, "--ca-file", name)[2]
            assert f"the certificates {name} (--ca-file, SSL_CERT_FILE) cannot be read: " in err


def test_https_at_an_http_server(server: FakeKfp, iddpm: Iddpm) -> None:
    assert "is it http:// instead of https://?" in iddpm("runs", "--endpoint", server.url.replace("http:", "https:"))[2]


# -- kubectl port-forward ----------------------------------------------------------------------------------------------


def _is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_port_forward_lasts_for_the_time_of_the_command(iddpm: Iddpm, kubectl: Callable[..., Path]) -> None:
    log = kubectl()
    assert iddpm("runs", "--port-forward", "--kfp-namespace", "kfp")[:2] == (0, "no runs\n")
    words = log.read_text().split()
    assert words[:6] == ["--namespace", "kfp", "port-forward", "--address", "127.0.0.1", "svc/ml-pipeline"]
    assert not _is_running(int(words[-1]))


def test_a_port_forward_that_ends_is_opened_again(server: FakeKfp, kubectl: Callable[..., Path]) -> None:
    log = kubectl(connections=1)
    with connected(Connection(port_forward=True), lambda line: None) as kfp:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(log.read_text().splitlines()) < 2:
            try:
                kfp.client.list_runs()
            except KfpError:
                time.sleep(0.05)
    calls = log.read_text().splitlines()
    assert len(calls) >= 2
    assert len({call.split()[-2] for call in calls}) == 1  # at the same port


def test_a_cluster_that_does_not_answer_kubectl_for_a_while_is_asked_again(server: FakeKfp, kubectl: Callable[..., Path]) -> None:
    log = kubectl(connections=1)
    with connected(Connection(port_forward=True), lambda line: None) as kfp:  # its look at the version was the one connection
        kubectl_pid = int(log.read_text().split()[-1])
        os.waitid(os.P_PID, kubectl_pid, os.WEXITED | os.WNOWAIT)  # the command still finds it to have ended
        kubectl(refuse="unable to connect to the server")
        said: list[str] = []

        def answer_again(line: str) -> None:
            said.append(line)
            kubectl()

        polling = dataclasses.replace(Polling(), interval_seconds=0.1)
        assert retrying(kfp, answer_again, polling)(kfp.client.list_runs).runs is None
    assert len(said) == 1
    assert "unable to connect to the server" in said[0]
    assert "the run goes on, and this command asks again" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize(("told", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_follower_that_is_stopped_leaves_the_run_and_ends_kubectl(
    server: FakeKfp, kubectl: Callable[..., Path], told: signal.Signals, status: int
) -> None:
    log = kubectl()
    server.script = workflow_states("nightly-succeeded")[3:4]
    command = [str(Path(sys.executable).with_name("iddpm")), "submit", "nightly-fid", "--port-forward"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "resolve-model" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(told)
        try:
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == status
    assert (f"the run goes on; `iddpm cancel {next(iter(server.runs))}` ends it" in said) == (told == signal.SIGINT)
    assert "Traceback" not in said
    assert next(iter(server.runs.values()))["state"] == "RUNNING"
    assert not _is_running(int(log.read_text().split()[-1]))


def test_no_page_is_shown_of_a_forwarded_port_which_leads_to_the_bare_api(iddpm: Iddpm, kubectl: Callable[..., Path]) -> None:
    kubectl()
    status, out, _ = iddpm("submit", "nightly-fid", "--port-forward", "--no-wait")
    assert status == 0
    assert "page" not in out


def test_kubectls_refusal_is_told(iddpm: Iddpm, kubectl: Callable[..., Path]) -> None:
    kubectl(refuse='services "ml-pipeline" not found')
    status, _, err = iddpm("runs", "--port-forward")
    assert (status, err.count("\n")) == (1, 1)
    assert 'services "ml-pipeline" not found' in err


def test_without_kubectl_the_error_says_so(iddpm: Iddpm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "--port-forward needs kubectl" in iddpm("runs", "--port-forward")[2]


def test_an_endpoint_and_a_port_forward_are_one_too_many(iddpm: Iddpm) -> None:
    assert "exclude each other" in iddpm("runs", "--port-forward", "--endpoint", "http://localhost:8080")[2]

